"""Build an index: plan what has to be embedded, embed it in shards, put the shards together.

What an asset's embeddings depend on is hashed into its key. Keys that the index of before or a finished shard has are
not embedded again, so that a changed folder costs its changed assets and a killed build its unfinished shards. Shards
lie in `<index>/building/` until the index that they became is in place.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from jaxtyping import Float
from numpy.lib.format import open_memmap

from index_build.catalogs.catalog import Catalog
from index_build.embeddings import PASSING, Shard, embed_assets, read_shard, write_shard
from index_build.views import MESH_LIMITS, ViewSource
from redream.clip import Clip
from redream.records import Asset
from redream.retrieval.index_files import (
    ANNOTATIONS,
    ASSET_SCHEMA,
    IMAGE_ROWS,
    MANIFEST,
    REFUSED_SCHEMA,
    AssetRows,
    IndexManifest,
    IndexMismatch,
    asset_table,
    check_files,
    content_hash,
    drop_other_generations,
    new_generation,
    read_assets,
    read_manifest,
    read_pictures,
    read_table,
    read_vectors,
    refused_table,
    seal_files,
    write_manifest,
    write_table,
)
from redream.retrieval.lexical_recall import write_lexical
from redream.retrieval.text_recall import train_recall
from redream.settings import RetrievalConfig
from redream.versions import package_versions

EmbedTexts = Callable[[list[str]], Float[np.ndarray, "texts dim"]]
CAPTIONS_TOGETHER = 512  # between two lines of progress
SHARD_SIZES = ("assets_per_shard", "captions_per_shard")
CAPTIONS = pa.schema([("caption", pa.string())])
RECORDED_PACKAGES = ("open_clip_torch", "torch", "numpy", "pyarrow", "scann", "bm25s", "pyrender2", "trimesh")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """A build under way: a record, so that shards can be made by any process that sees the folder.

    `building/assets.arrow` holds all assets with their keys, `building/pending.arrow` those to be embedded.
    """

    index_dir: str
    catalog: str
    clip_model: str
    num_views: int  # kept per asset
    asset_root: str
    settings: dict[str, Any]
    dropped: dict[str, int]
    num_assets: int
    num_pending: int
    num_shards: int
    has_pictures: bool = True  # False where captions alone are embedded

    @property
    def folder(self) -> Path:
        return Path(self.index_dir, "building")

    def shard(self, number: int) -> tuple[list[Asset], list[str]]:
        """Return the assets of a shard and their keys."""
        table = read_table(self.folder / "pending.arrow", ASSET_SCHEMA)
        size = self.settings["assets_per_shard"]
        rows = table.slice(number * size, size)
        return list(AssetRows(rows, self.asset_root)), rows["key"].to_pylist()

    def captions(self, number: int) -> list[str]:
        """Return the captions of a shard of a build from captions alone."""
        size = self.settings["captions_per_shard"]
        return read_table(self.folder / "pending.arrow", CAPTIONS)["caption"].slice(number * size, size).to_pylist()

    def shard_path(self, keys: Sequence[str]) -> Path:
        return self.folder / "shards" / f"{hashlib.sha256(''.join(keys).encode()).hexdigest()[:24]}.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexStep:
    """One asset done; the last step carries the manifest of the finished index."""

    done: int
    total: int
    asset_id: str
    manifest: IndexManifest | None = None


def build_index(
    catalog: Catalog, clip: Clip, config: RetrievalConfig, views: ViewSource, index_dir: str | Path
) -> Iterator[IndexStep]:
    """Make the index of a catalog in this process, or bring the one in `index_dir` up to date."""
    plan = plan_build(catalog, clip, config, views, index_dir)
    done = plan.num_assets - plan.num_pending
    last = IndexStep(done=plan.num_assets, total=plan.num_assets, asset_id="")
    for number in range(plan.num_shards):
        for asset_id in embed_shard(plan, number, clip, views):
            done += 1
            last = IndexStep(done=done, total=plan.num_assets, asset_id=asset_id)
            if done < plan.num_assets:
                yield last
    yield replace(last, manifest=assemble(plan))


def plan_build(
    catalog: Catalog,
    clip: Clip,
    config: RetrievalConfig,
    views: ViewSource,
    index_dir: str | Path,
    has_pictures: bool = True,
) -> BuildPlan:
    """Find out what has to be embedded and write it down beside the index.

    Args:
        has_pictures: False to embed captions alone; searches then add the pictures that they need.
    """
    index_dir = Path(index_dir)
    _check(catalog, index_dir)
    assets, asset_root = catalog.assets, Path(catalog.root)
    num_views = views.num_views if config.views == "each" else 1
    settings = {**views.settings(), "pooling": config.views}
    settings |= {name: getattr(config, name) for name in SHARD_SIZES}
    plan = BuildPlan(
        index_dir=str(index_dir),
        catalog=catalog.name,
        clip_model=clip.identity,
        num_views=num_views,
        asset_root=str(asset_root),
        settings=settings,
        dropped=catalog.dropped,
        num_assets=len(assets),
        num_pending=0,
        num_shards=0,
        has_pictures=has_pictures,
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    annotations = plan.folder / ANNOTATIONS
    annotations.unlink(missing_ok=True)
    if catalog.annotations is not None:
        write_table(annotations, catalog.annotations)
    looks = {name: value for name, value in settings.items() if name not in (*SHARD_SIZES, MESH_LIMITS)}
    identity = json.dumps([clip.identity, looks], sort_keys=True)
    keys = [_key(identity, asset.caption, catalog.digest(asset), views.digest(asset)) for asset in assets]
    if not has_pictures:
        return plan_captions(plan, asset_table(assets, keys, asset_root))
    known = _known_keys(plan)
    pending = {key: i for i, key in enumerate(keys) if key not in known}
    rows = sorted(pending.values())  # of two equal assets, one
    table = asset_table(assets, keys, asset_root)
    write_table(plan.folder / "assets.arrow", table)
    write_table(plan.folder / "pending.arrow", table.take(pa.array(rows, pa.int64())))
    return replace(plan, num_pending=len(rows), num_shards=-(-len(rows) // config.assets_per_shard))


def embed_shard(plan: BuildPlan, number: int, clip: Clip, views: ViewSource) -> Iterator[str]:
    """Make one shard of a plan, yielding its assets' names; one that is there already is left as it is."""
    assets, keys = plan.shard(number)
    path = plan.shard_path(keys)
    if read_shard(path) is not None:
        yield from (asset.asset_id for asset in assets)
        return
    with views.open() as make_views:
        yield from embed_assets(assets, keys, make_views, clip, plan.num_views, path)


def plan_captions(plan: BuildPlan, table: pa.Table) -> BuildPlan:
    """Write down which captions have to be embedded: each once, the short ones first, as they are embedded together."""
    known = set(_known_captions(plan))
    captions = pc.unique(table["caption"]).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]  # made at import
    pending = sorted((text for text in captions if caption_key(plan.clip_model, text) not in known), key=len)
    write_table(plan.folder / "assets.arrow", table)
    write_table(plan.folder / "pending.arrow", pa.table({"caption": pending}, schema=CAPTIONS))
    return replace(plan, num_pending=len(pending), num_shards=-(-len(pending) // plan.settings["captions_per_shard"]))


def embed_caption_shard(plan: BuildPlan, number: int, embed: EmbedTexts) -> Iterator[int]:
    """Make one shard of captions, yielding how many are done; one that is there already is left as it is."""
    captions = plan.captions(number)
    keys = [caption_key(plan.clip_model, text) for text in captions]
    path = plan.shard_path(keys)
    if read_shard(path) is not None:
        yield len(captions)
        return
    vectors = []
    for start in range(0, len(captions), CAPTIONS_TOGETHER):
        together = captions[start : start + CAPTIONS_TOGETHER]
        vectors.append(embed(together).astype(np.float16))
        yield len(together)
    text = np.concatenate(vectors)
    write_shard(path, Shard(keys, text, np.zeros((len(text), 0, text.shape[1]), np.float16), {}))


def caption_key(clip_model: str, caption: str) -> str:
    return _key(clip_model, caption)


def assemble(plan: BuildPlan) -> IndexManifest:
    """Write the index of a plan whose shards are all there, as a new generation, and make it the index."""
    with FileLock(plan.folder / "assemble.lock"):
        generation = new_generation(Path(plan.index_dir))
        try:
            manifest = _write_generation(plan, generation)
            write_manifest(manifest)
        except BaseException:
            shutil.rmtree(generation, ignore_errors=True)
            raise
        drop_other_generations(manifest)
    shutil.rmtree(plan.folder)
    return manifest


def _write_generation(plan: BuildPlan, generation: Path) -> IndexManifest:
    return _write_pictured(plan, generation) if plan.has_pictures else _write_captioned(plan, generation)


def _write_captioned(plan: BuildPlan, generation: Path) -> IndexManifest:
    """Write an index whose texts are all there, and of its pictures those that an earlier one had."""
    table = read_table(plan.folder / "assets.arrow", ASSET_SCHEMA)
    earlier = next(_earlier_index(plan), None)
    sources = list(_caption_sources(plan))
    places = {key: (number, row) for number, shard in enumerate(sources) for row, key in enumerate(shard.keys)}
    wanted = [caption_key(plan.clip_model, caption) for caption in table["caption"].to_pylist()]
    if lacking := sum(key not in places for key in wanted):
        raise ValueError(f"{plan.index_dir}: {lacking:,} captions are in no finished shard; build again to make them")
    write_table(generation / "refused.arrow", refused_table([]))
    text = _gather(
        [shard.text for shard in sources], np.array([places[key] for key in wanted]), generation / "text.npy"
    )
    pictured = {key: row for row, key in enumerate(earlier.keys)} if earlier else {}
    rows = np.array([row for row, key in enumerate(table["key"].to_pylist()) if key in pictured], np.int64)
    where = [pictured[key] for key in table["key"].take(pa.array(rows)).to_pylist()]
    shape = (0, plan.num_views, text.shape[1])
    np.save(generation / "image.npy", earlier.image[where] if earlier and where else np.zeros(shape, np.float16))
    np.save(generation / IMAGE_ROWS, rows)
    return _finished(plan, generation, table, text, np.arange(len(table)), num_refused=0)


def _write_pictured(plan: BuildPlan, generation: Path) -> IndexManifest:
    sources = [*_pictured_shards(plan), *_earlier_index(plan)]
    places = {key: (number, row) for number, shard in enumerate(sources) for row, key in enumerate(shard.keys)}
    refused = {key: reason for shard in sources for key, reason in shard.refused.items()}
    table = read_table(plan.folder / "assets.arrow", ASSET_SCHEMA)
    keys = table["key"].to_pylist()
    if lacking := [key for key in keys if key not in places and key not in refused]:
        raise ValueError(f"{plan.index_dir}: {len(lacking)} assets are in no finished shard; build again to make them")
    kept = [row for row, key in enumerate(keys) if key in places]
    if not kept:
        raise ValueError(f"none of the {len(keys)} assets can be indexed; the first: {refused[keys[0]]}")

    is_kept = np.array([key in places for key in keys])
    ids = table["asset_id"].to_pylist()
    left_out = [(ids[row], keys[row], refused[keys[row]]) for row in np.flatnonzero(~is_kept)]
    write_table(generation / "refused.arrow", refused_table(left_out))
    where = np.array([places[keys[row]] for row in kept])
    text = _gather([shard.text for shard in sources], where, generation / "text.npy")
    _gather([shard.image for shard in sources], where, generation / "image.npy")
    del sources  # gigabytes, and training takes some more
    return _finished(plan, generation, table.take(pa.array(kept, pa.int64())), text, np.array(kept), len(left_out))


def _finished(
    plan: BuildPlan, generation: Path, table: pa.Table, text: np.ndarray, kept: np.ndarray, num_refused: int
) -> IndexManifest:
    """Write what follows from assets and texts, and return the manifest."""
    if (plan.folder / ANNOTATIONS).is_file():
        stated = pa.ipc.open_file(pa.memory_map(str(plan.folder / ANNOTATIONS))).read_all()
        write_table(generation / ANNOTATIONS, stated.take(pa.array(kept)))
    write_table(generation / "assets.arrow", table)
    write_lexical(table["caption"].to_pylist(), generation / "lexical")
    recall = train_recall(text, generation / "scann")
    files = seal_files(generation)
    return IndexManifest(
        index_dir=plan.index_dir,
        generation=generation.name,
        catalog=plan.catalog,
        clip_model=plan.clip_model,
        embedding_dim=text.shape[1],
        num_assets=len(table),
        num_refused=num_refused,
        dropped=plan.dropped,
        num_views=plan.num_views,
        recall=recall,
        content_hash=content_hash(files),
        asset_root=plan.asset_root,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=files,
        settings=plan.settings,
        versions=package_versions(RECORDED_PACKAGES),
    )


def _gather(sources: list[np.ndarray], where: np.ndarray, path: Path) -> np.ndarray:
    """Write the rows at (source, row) pairs as one array, and map it."""
    shape = (len(where), *next(source.shape[1:] for source in sources if len(source)))
    gathered = open_memmap(path, "w+", np.float16, shape)
    for number, source in enumerate(sources):
        rows = np.flatnonzero(where[:, 0] == number)
        gathered[rows] = source[where[rows, 1]]
    gathered.flush()
    return gathered


def _known_keys(plan: BuildPlan) -> set[str]:
    """Return the keys that are embedded or refused already; shards that are damaged are removed."""
    sources = [*_pictured_shards(plan), *_earlier_index(plan)]
    refused = {key for shard in sources for key, why in shard.refused.items() if not why.startswith(PASSING)}
    return refused.union(*(shard.keys for shard in sources))


def _pictured_shards(plan: BuildPlan) -> Iterator[Shard]:
    return (shard for shard in _finished_shards(plan) if shard.image.shape[1] > 0)


def _known_captions(plan: BuildPlan) -> Iterator[str]:
    for shard in _caption_sources(plan):
        yield from shard.keys


def _caption_sources(plan: BuildPlan) -> Iterator[Shard]:
    """Return embedded captions by their keys: of finished shards, and of an earlier index."""
    yield from (shard for shard in _finished_shards(plan) if shard.image.shape[1] == 0)
    if (manifest := _earlier_manifest(plan)) is not None:
        text = read_vectors(manifest.folder / "text.npy", (manifest.num_assets, manifest.embedding_dim))
        captions = read_assets(manifest)["caption"].to_pylist()
        keys = [caption_key(plan.clip_model, caption) for caption in captions]
        yield Shard(keys, text, text[:, None][:, :0], {})


def _finished_shards(plan: BuildPlan) -> Iterator[Shard]:
    for path in sorted((plan.folder / "shards").glob("*.safetensors")):
        shard = read_shard(path)
        if shard is None:
            path.unlink(missing_ok=True)
        else:
            yield shard


def _earlier_index(plan: BuildPlan) -> Iterator[Shard]:
    """Return the assets with pictures that an earlier build and searches left in the folder, as one large shard."""
    if (manifest := _earlier_manifest(plan)) is None:
        return
    refused = read_table(manifest.folder / "refused.arrow", REFUSED_SCHEMA)
    keys = read_assets(manifest)["key"]
    text = read_vectors(manifest.folder / "text.npy", (manifest.num_assets, manifest.embedding_dim))
    pictures = read_pictures(manifest, keys)
    reasons = dict(zip(refused["key"].to_pylist(), refused["reason"].to_pylist(), strict=True))
    reasons |= {keys[row].as_py(): reason for row, reason in pictures.refused.items()}
    if manifest.settings.get(MESH_LIMITS) != plan.settings.get(MESH_LIMITS):
        reasons = {}  # what was above the limits may be below the new ones
    rows: Any = slice(None) if pictures.is_complete else pictures.rows()  # a slice copies no vectors
    yield Shard(np.array(keys.to_pylist(), object)[rows].tolist(), text[rows], pictures.of(rows), reasons)


def _earlier_manifest(plan: BuildPlan) -> IndexManifest | None:
    """Return the manifest of what an earlier build left in the folder, unless it is damaged or of other settings."""
    try:
        manifest = read_manifest(plan.index_dir)
        if manifest.clip_model != plan.clip_model or manifest.num_views != plan.num_views:
            return None
        check_files(manifest, fully=True)
        return manifest
    except IndexMismatch:
        return None


def _key(*inputs: str) -> str:
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]


def _check(catalog: Catalog, index_dir: Path) -> None:
    if not catalog.assets:
        raise ValueError("an index needs at least one asset")
    if len({asset.asset_id for asset in catalog.assets}) != len(catalog.assets):
        raise ValueError("two assets of the index share an asset_id; every asset needs its own")
    is_ours = (index_dir / MANIFEST).is_file() or (index_dir / "building").is_dir()
    if index_dir.exists() and not is_ours and (not index_dir.is_dir() or any(index_dir.iterdir())):
        raise ValueError(f"{index_dir} exists and is not empty; remove it or name another folder for the index")
