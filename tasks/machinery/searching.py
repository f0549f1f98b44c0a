"""Searching an index: what both the retrieval stage and `redream search` do, without the seconds that Prefect takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from redream.settings import DownloadConfig, MeshLimits, RetrievalConfig
from tasks.machinery.progress import say, track, waiting

MAX_NAMED = 10  # assets without a picture that are listed

if TYPE_CHECKING:
    import numpy as np

    from redream.retrieval.index import AssetIndex, Retrieval, TextEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexPlace:
    """An index that can be opened: its folder, where its meshes lie, and the hash of its content."""

    index_dir: str
    asset_root: str
    content_hash: str
    num_assets: int


def given_index(index_dir: str) -> IndexPlace:
    """Return an index that the user names."""
    from redream.retrieval.index_files import read_manifest
    from redream.retrieval.pictures import PictureLog

    manifest = read_manifest(Path(index_dir))
    content_hash = manifest.content_hash
    if not manifest.has_all_pictures:  # what it finds changes with the pictures that searches add
        content_hash += f"+{PictureLog(index_dir, manifest.num_views, manifest.embedding_dim).size}"
    return IndexPlace(
        index_dir=index_dir,
        asset_root=str(manifest.asset_folder),
        content_hash=content_hash,
        num_assets=manifest.num_assets,
    )


def require_assets(index: IndexPlace, asset_ids: Sequence[str]) -> None:
    """Raise `ValueError` if an index lacks one of some assets."""
    from redream.retrieval.index_files import AssetRows, read_assets, read_manifest

    AssetRows(read_assets(read_manifest(index.index_dir)), index.asset_root).places(asset_ids)


def search(
    index: IndexPlace,
    prompt: str,
    config: RetrievalConfig,
    download: DownloadConfig = DownloadConfig(),  # noqa: B008  (frozen)
    limits: MeshLimits = MeshLimits(),  # noqa: B008
) -> Retrieval:
    """Open an index and ask it; the pictures that it lacks of candidates are fetched first, within the budget."""
    from redream.retrieval.index import AssetIndex
    from redream.retrieval.licenses import check_licenses, is_allowed

    check_licenses(config.licenses)
    with waiting("opening the index"):
        opened = AssetIndex.open(index.index_dir, _text_encoder(config.clip_model), index.asset_root)
    allows = partial(is_allowed, codes=config.licenses) if config.licenses else None
    if not opened.manifest.has_words:
        say(f"index {index.index_dir} was built without word search; build it again to search by words too")
    if config.use:
        return opened.chosen(prompt, config.use)
    among = opened.matching(config.where, config.table, config.age_restricted)
    if among is not None and not among.any():
        raise ValueError(f"no asset of index {index.index_dir} fulfils {config.where!r}")
    allowed = opened.allowed(allows)
    if allowed is not None and not allowed.any():
        raise ValueError(f"no asset of index {index.index_dir} is licensed under {', '.join(config.licenses)} alone")
    if not opened.pictures.is_complete:
        _add_pictures(opened, prompt, config, allows, among, download, limits)
    return opened.search(
        prompt, config.num_recall, config.num_assets, allows, config.leave_out, among, config.max_likeness
    )


def _add_pictures(
    index: AssetIndex,
    prompt: str,
    config: RetrievalConfig,
    allows: Callable[[str], bool] | None,
    among: np.ndarray | None,
    download: DownloadConfig,
    limits: MeshLimits,
) -> None:
    """Fetch, render and embed the candidates that have no picture yet, and say what is still lacking."""
    from index_build.filling import Budget, Filled, fill
    from redream.clip import Clip

    wanted = partial(index.lacking, prompt, config.num_recall, allows, config.leave_out, among)
    budget = Budget(objects=config.fetch_objects, num_bytes=config.fetch_bytes, seconds=config.fetch_seconds)
    tried: dict[str, Filled] = {}
    clip = None
    while not budget.is_spent:
        # A mesh that cannot be used makes room for another candidate, hence more than one round.
        rows = [row for row in wanted() if index.assets[row].asset_id not in tried]
        if not rows:
            break
        clip = clip or Clip(config.clip_model)
        num = min(len(rows), budget.objects)
        for filled in track(fill(index, rows, clip, download, limits, budget), "fetching pictures", num):
            tried[filled.asset_id] = filled
        index.refresh()
    for failed in [filled for filled in tried.values() if filled.reason][:MAX_NAMED]:
        say(f"no picture of {failed.asset_id}: {failed.reason}")
    if lacking := len(wanted()):
        num_pictures = len(index.pictures.rows())
        say(
            f"{lacking:,} candidates have no picture yet and rank by their captions, behind the others; "
            f"{num_pictures:,} of the index's {len(index.assets):,} assets have one (retrieval.fetch_objects, "
            "fetch_bytes and fetch_seconds bound what a search may add)"
        )


def _text_encoder(clip_model: str) -> TextEncoder:
    from redream.retrieval.text_tower import open_text_tower

    tower = open_text_tower(clip_model)
    if tower is not None:
        return tower
    from redream.clip import Clip

    return Clip(clip_model)  # one prompt is no work for a GPU
