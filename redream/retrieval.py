"""Retrieval: the assets of the database that are nearest to a prompt (ReDream, Sec. 5.1).

The query is the CLIP text embedding of the prompt. Text recall finds N' assets by the embeddings of their captions with
ScaNN (Guo et al., 2020); image rerank orders these by the embeddings of their renders and keeps N. Embeddings are
L2-normalised, every score is a cosine, higher is nearer.

An index is a folder of three files: `manifest.json`, `assets.jsonl` (one `Asset` a line, mesh paths relative to the
manifest's `asset_root`) and `embeddings.safetensors` (`text` and `image`, one row per asset in the same order).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file

from redream.assets import Asset
from redream.clip import Clip

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

# Up to here ScaNN compares with every vector, which takes about 10 ms at this number and loses no neighbour. Above, it
# scores quantised vectors and compares again with the best of them: a seventh of the time, and still no tree, because a
# tree loses true neighbours to save milliseconds that one query per run does not need.
EXHAUSTIVE_UP_TO = 100_000
AH_TRAINING_SAMPLE = 20_000  # by default ScaNN trains on all rows: five times as long for the same recall
AH_REORDER = 500  # vectors compared again in full precision, at least

Recall = Callable[[Float[np.ndarray, " dim"], int], tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]]


class IndexMismatch(ValueError):
    """An index that cannot answer: damaged, incomplete, or made with another CLIP model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexManifest:
    """What an index holds and how it was made; `content_hash` covers its assets and embeddings, and no path outside."""

    index_dir: str
    clip_model: str  # `Clip.identity`
    embedding_dim: int
    num_assets: int
    content_hash: str
    asset_root: str  # folder that the mesh paths start from
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbor:
    """An asset near a prompt. `azimuth_offset_deg` is where its front was found; turning it by minus that aligns it."""

    asset: Asset
    score: float  # cosine of the prompt with the mean of its renders
    text_score: float  # cosine of the prompt with its caption
    azimuth_offset_deg: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    prompt: str
    neighbors: tuple[Neighbor, ...]  # nearest first


class AssetIndex:
    """An open index. `backend` says how text recall is computed: `scann-exhaustive`, `scann-ah` or `numpy-exact`."""

    def __init__(
        self,
        manifest: IndexManifest,
        assets: list[Asset],
        text_embeddings: Float[np.ndarray, "assets dim"],
        image_embeddings: Float[np.ndarray, "assets dim"],
        clip: Clip,
    ) -> None:
        self.manifest = manifest
        self.assets = assets
        self.image_embeddings = image_embeddings
        self._clip = clip
        self._recall, self.backend = text_recall(text_embeddings)

    @classmethod
    def open(cls, index_dir: str | Path, clip: Clip, asset_root: str | Path | None = None) -> AssetIndex:
        """Open an index made with the same CLIP model.

        Args:
            asset_root: where the assets lie now, if they were moved since the index was made.

        Raises:
            IndexMismatch: the index is damaged or incomplete, or was made with another model.
        """
        index_dir = Path(index_dir)
        manifest = read_manifest(index_dir)
        if manifest.clip_model != clip.identity:
            raise IndexMismatch(
                f"index {index_dir} was made with CLIP {manifest.clip_model}, not with "
                f"{clip.identity}; rebuild it, or search with the model it was made with"
            )
        if asset_root is not None:
            manifest = replace(manifest, asset_root=str(asset_root))
        if content_hash(index_dir) != manifest.content_hash:
            raise IndexMismatch(f"index {index_dir} is damaged: its content differs from its manifest; rebuild it")
        assets = read_assets(index_dir / "assets.jsonl", Path(manifest.asset_root))
        text, image = _read_embeddings(index_dir / "embeddings.safetensors")
        shape = (manifest.num_assets, manifest.embedding_dim)
        if len(assets) != shape[0] or text.shape != shape or image.shape != shape or clip.embedding_dim != shape[1]:
            raise IndexMismatch(
                f"index {index_dir} holds {len(assets)} assets and embeddings of shape {text.shape} "
                f"and {image.shape}, but its manifest says {shape}; rebuild it"
            )
        return cls(manifest, assets, text, image, clip)

    def search(self, prompt: str, num_recall: int, top_k: int) -> Retrieval:
        """Find the `top_k` assets nearest to a prompt, or all of a smaller index.

        Args:
            num_recall: N', how many assets text recall passes on to image rerank.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty; describe an object in a few words")
        if not 1 <= top_k <= num_recall:
            raise ValueError(f"top_k is {top_k} and num_recall {num_recall}; they must be 1 <= top_k <= num_recall")
        query = self._clip.embed_text([prompt])[0].cpu().numpy()
        return Retrieval(prompt=prompt, neighbors=self.nearest(query, num_recall, top_k))

    def nearest(self, query: Float[np.ndarray, " dim"], num_recall: int, top_k: int) -> tuple[Neighbor, ...]:
        """Answer a unit vector: text recall, then image rerank."""
        recalled, text_scores = self._recall(query, min(num_recall, len(self.assets)))
        image_scores = self.image_embeddings[recalled].astype(np.float32) @ query
        # Equal scores, as of assets that share a caption or a mesh, keep the order of the index on every machine.
        order = np.lexsort((recalled, -image_scores))[:top_k]
        return tuple(
            Neighbor(asset=self.assets[recalled[i]], score=float(image_scores[i]), text_score=float(text_scores[i]))
            for i in order
        )


def text_recall(embeddings: Float[np.ndarray, "assets dim"]) -> tuple[Recall, str]:
    """Return a function (query, k) -> (indices, cosines) of the k nearest rows, and the name of its backend."""
    try:
        from scann.scann_ops.py import scann_ops_pybind  # no wheel on macOS, Windows and arm64
    except ImportError:
        logger.warning("ScaNN has no wheel for this machine: retrieval searches exactly with numpy")
        return _numpy_recall(embeddings), "numpy-exact"
    vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
    num_default = min(len(vectors), 100)  # what a query without k would get; ours always name it
    builder: Any = scann_ops_pybind.builder(vectors, num_default, "dot_product")
    if len(vectors) <= EXHAUSTIVE_UP_TO:
        return _scann_recall(builder.score_brute_force().build(), 0), "scann-exhaustive"
    hashed = builder.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=AH_TRAINING_SAMPLE)
    return _scann_recall(hashed.reorder(AH_REORDER).build(), AH_REORDER), "scann-ah"


def _scann_recall(searcher: Any, num_reorder: int) -> Recall:
    def recall(query: Float[np.ndarray, " dim"], num: int) -> tuple[np.ndarray, np.ndarray]:
        # -1 is ScaNN's word for "the searcher's default": the exhaustive one has nothing to reorder.
        pre_reorder = max(num_reorder, 5 * num) if num_reorder else -1
        indices, cosines = searcher.search(query.astype(np.float32), num, pre_reorder)
        return indices.astype(np.int64), cosines

    return recall


def _numpy_recall(embeddings: Float[np.ndarray, "assets dim"]) -> Recall:
    vectors = embeddings.astype(np.float32)

    def recall(query: Float[np.ndarray, " dim"], num: int) -> tuple[np.ndarray, np.ndarray]:
        cosines = vectors @ query.astype(np.float32)
        indices = np.argsort(-cosines, kind="stable")[:num]
        return indices, cosines[indices]

    return recall


def read_manifest(index_dir: Path) -> IndexManifest:
    """Read an index's manifest, or raise `IndexMismatch`."""
    path = index_dir / "manifest.json"
    if not path.is_file():
        raise IndexMismatch(f"{index_dir} is no index: it has no manifest.json; build one from a catalog first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither UTF-8 nor JSON
        raise IndexMismatch(f"index {index_dir} is damaged: its manifest is not JSON ({error}); rebuild it") from error
    version = content.pop("format_version", None) if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise IndexMismatch(f"index {index_dir} has format {version!r}, not {FORMAT_VERSION}; rebuild it")
    expected = {f.name for f in fields(IndexManifest)} - {"index_dir"}
    if set(content) != expected:
        differing = ", ".join(sorted(set(content) ^ expected))
        raise IndexMismatch(f"index {index_dir} is damaged: its manifest lacks or adds {differing}; rebuild it")
    return IndexManifest(index_dir=str(index_dir), **content)


def write_manifest(path: Path, manifest: IndexManifest) -> None:
    content = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    del content["index_dir"]  # the folder may move
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_assets(path: Path, asset_root: Path) -> list[Asset]:
    """Read assets and complete their mesh paths."""
    with path.open(encoding="utf-8") as lines:
        assets = [Asset(**json.loads(line)) for line in lines]
    return [replace(asset, mesh_path=str(asset_root / asset.mesh_path)) for asset in assets]


def write_assets(path: Path, assets: list[Asset], asset_root: Path) -> None:
    """Write assets with mesh paths relative to `asset_root`."""
    with path.open("w", encoding="utf-8") as lines:
        for asset in assets:
            relative = Path(os.path.relpath(Path(asset.mesh_path).resolve(), asset_root)).as_posix()
            lines.write(json.dumps(asdict(replace(asset, mesh_path=relative)), ensure_ascii=False) + "\n")


def content_hash(index_dir: Path) -> str:
    """Hash what an index holds; files that are missing raise `IndexMismatch`."""
    digest = hashlib.sha256()
    for name in ("assets.jsonl", "embeddings.safetensors"):
        if not (index_dir / name).is_file():
            raise IndexMismatch(f"index {index_dir} is damaged: it has no {name}; rebuild it")
        with (index_dir / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_embeddings(path: Path) -> tuple[Float[np.ndarray, "assets dim"], Float[np.ndarray, "assets dim"]]:
    try:
        tensors = load_file(path)
        return tensors["text"], tensors["image"]
    except (SafetensorError, KeyError) as error:
        raise IndexMismatch(
            f"index {path.parent} is damaged: {path.name} is unreadable ({error}); rebuild it"
        ) from error
