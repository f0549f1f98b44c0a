"""Check an index: every byte, its recall against exact search, and whether assets and meshes belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from redream.records import MESH_SUFFIXES
from redream.retrieval.index import AssetIndex
from redream.retrieval.index_files import check_files
from redream.retrieval.text_recall import float_blocks

SAMPLE, NUM_NEIGHBORS = 100, 100
MAX_NAMED = 20  # of missing or orphaned files


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexReport:
    """`missing` assets have no mesh here; `orphaned` meshes lie below the assets' folder and are in no asset.

    An Objaverse index is missing most meshes, which are fetched when they are retrieved.
    """

    num_assets: int
    num_queries: int
    num_neighbors: int
    num_pictures: int  # assets whose renders are embedded
    text_recall: float  # share of the exact nearest that text recall finds, from captions of the index
    # The same from renders, which lie as far from captions as prompts do or farther; 0 without pictures.
    cross_recall: float
    image_recall: float  # share of the nearest of N' by float32 cosine that image rerank puts first
    num_missing: int
    num_orphaned: int
    missing: tuple[str, ...]
    orphaned: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        names = ("text_recall", "cross_recall", "image_recall", "num_missing", "num_orphaned")
        return {name: float(getattr(self, name)) for name in names}


def check_index(index: AssetIndex, num_queries: int = SAMPLE, seed: int = 0) -> IndexReport:
    """Measure an index on a sample of its own assets.

    Raises:
        IndexMismatch: a byte of it differs from what was written.
    """
    check_files(index.manifest, fully=True)
    num_assets = len(index.assets)
    num_neighbors = min(NUM_NEIGHBORS, num_assets)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(num_assets, min(num_queries, num_assets), replace=False))
    captions = _unit(index.text_vectors[rows])
    pictured = index.pictures.rows()
    shown = np.sort(rng.choice(pictured, min(num_queries, len(pictured)), replace=False))
    shown = rows if index.pictures.is_complete else shown
    renders = _unit(index.pictures.of(shown).astype(np.float32).mean(axis=1))
    exact = exact_neighbors(index.text_vectors, np.concatenate([captions, renders]), num_neighbors)
    found = [index.recall(query, num_neighbors)[0] for query in (*captions, *renders)]
    shares = [len(set(a) & set(b)) / num_neighbors for a, b in zip(found, exact, strict=True)]
    missing, orphaned = _strays(index)
    return IndexReport(
        num_assets=num_assets,
        num_queries=len(rows),
        num_neighbors=num_neighbors,
        num_pictures=len(pictured),
        text_recall=float(np.mean(shares[: len(rows)])),
        cross_recall=float(np.mean(shares[len(rows) :])) if len(shown) else 0.0,
        image_recall=float(np.mean([_image_recall(index, query) for query in captions])),
        num_missing=len(missing),
        num_orphaned=len(orphaned),
        missing=tuple(missing[:MAX_NAMED]),
        orphaned=tuple(orphaned[:MAX_NAMED]),
    )


def exact_neighbors(
    vectors: Float[np.ndarray, "rows dim"], queries: Float[np.ndarray, "queries dim"], num: int
) -> Int[np.ndarray, "queries num"]:
    """Return the nearest rows of each query by float32 cosines, in any order."""
    rows = np.zeros((len(queries), 0), np.int64)
    cosines = np.zeros((len(queries), 0), np.float32)
    start = 0
    for block in float_blocks(vectors):
        numbers = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        rows = np.concatenate([rows, numbers], axis=1)
        cosines = np.concatenate([cosines, queries @ block.T], axis=1)
        kept = np.argpartition(-cosines, min(num, cosines.shape[1]) - 1, axis=1)[:, :num]
        rows, cosines = np.take_along_axis(rows, kept, axis=1), np.take_along_axis(cosines, kept, axis=1)
        start += len(block)
    return rows


def _image_recall(index: AssetIndex, query: Float[np.ndarray, " dim"]) -> float:
    """Compare the order that image rerank gives with one in double precision, over the first half of N'."""
    recalled, _ = index.recall(query, min(2 * NUM_NEIGHBORS, len(index.assets)))
    recalled = recalled[index.pictures.has(recalled)]
    if not len(recalled):
        return 0.0
    num = max(1, len(recalled) // 2)
    scores = (index.pictures.of(recalled).astype(np.float64) @ query.astype(np.float64)).max(axis=1)
    found = np.argsort(-index.image_scores(query, recalled), kind="stable")[:num]
    return len(set(found) & set(np.argsort(-scores, kind="stable")[:num])) / num


def _strays(index: AssetIndex) -> tuple[list[str], list[str]]:
    """Return the assets whose meshes are not here, and the meshes that are no asset's."""
    root = index.manifest.asset_folder
    paths = index.assets.table["mesh_path"].to_pylist()
    known = set(paths)
    missing = [path for path in paths if not (root / path).is_file()]
    if not root.is_dir() or index.manifest.catalog == "objaverse":  # its cache holds whatever was ever fetched
        return missing, []
    meshes = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix.lower() in MESH_SUFFIXES)
    return missing, sorted(path for path in meshes if path not in known)


def _unit(vectors: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
