"""Searching an index: what both the retrieval stage and `redream search` do, without the seconds that Prefect takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from redream.settings import RetrievalConfig
from tasks.machinery.progress import say, waiting

if TYPE_CHECKING:
    from redream.retrieval.index import Retrieval, TextEncoder


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

    manifest = read_manifest(Path(index_dir))
    return IndexPlace(
        index_dir=index_dir,
        asset_root=str(manifest.asset_folder),
        content_hash=manifest.content_hash,
        num_assets=manifest.num_assets,
    )


def require_assets(index: IndexPlace, asset_ids: Sequence[str]) -> None:
    """Raise `ValueError` if an index lacks one of some assets."""
    from redream.retrieval.index_files import AssetRows, read_assets, read_manifest

    AssetRows(read_assets(read_manifest(index.index_dir)), index.asset_root).places(asset_ids)


def search(index: IndexPlace, prompt: str, config: RetrievalConfig) -> Retrieval:
    """Open an index and ask it."""
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
    allowed = opened.allowed(allows)
    if allowed is not None and not allowed.any():
        raise ValueError(f"no asset of index {index.index_dir} is licensed under {', '.join(config.licenses)} alone")
    return opened.search(prompt, config.num_recall, config.num_assets, allows, config.leave_out)


def _text_encoder(clip_model: str) -> TextEncoder:
    from redream.retrieval.text_tower import open_text_tower

    tower = open_text_tower(clip_model)
    if tower is not None:
        return tower
    from redream.clip import Clip

    return Clip(clip_model)  # one prompt is no work for a GPU
