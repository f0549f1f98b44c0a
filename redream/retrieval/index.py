"""Retrieval: the assets of the database that are nearest to a prompt (ReDream, Sec. 5.1).

The query is the CLIP text embedding of the prompt. Text recall finds N' assets by the embeddings of their captions with
ScaNN (Guo et al., 2020); image rerank orders these by the embeddings of their renders and keeps N. Embeddings are
L2-normalised, every score is a cosine, higher is nearer. `index_files.py` says what an index is on disk,
`text_recall.py` how the first step searches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from redream.records import Neighbor, Retrieval
from redream.retrieval.index_files import (
    ASSET_SCHEMA,
    AssetRows,
    IndexManifest,
    IndexMismatch,
    check_files,
    read_manifest,
    read_table,
    read_vectors,
)
from redream.retrieval.text_recall import allowed_nearest, open_recall


@runtime_checkable
class TextEncoder(Protocol):
    """What an index asks with: a `Clip`, or the `TextTower` of one."""

    embedding_dim: int

    @property
    def identity(self) -> str: ...

    def embed_prompt(self, prompt: str) -> Float[np.ndarray, " dim"]: ...


class AssetIndex:
    """An open index; any number of processes may have it open while it is built anew.

    `backend` says how text recall is computed: `scann-ah` or `exact`.
    """

    def __init__(self, manifest: IndexManifest, clip: TextEncoder) -> None:
        self.manifest = manifest
        folder = manifest.folder
        self.assets = AssetRows(read_table(folder / "assets.arrow", ASSET_SCHEMA), manifest.asset_folder)
        rows, dim = manifest.num_assets, manifest.embedding_dim
        if len(self.assets) != rows or clip.embedding_dim != dim:
            raise IndexMismatch(
                f"index {manifest.index_dir} holds {len(self.assets)} assets for a CLIP of {dim} dimensions, but its "
                f"manifest says {rows} and its CLIP has {clip.embedding_dim}; rebuild it"
            )
        self.text_vectors: Float[np.ndarray, "assets dim"] = read_vectors(folder / "text.npy", (rows, dim))
        image_shape = (rows, manifest.num_views, dim)
        self.image_vectors: Float[np.ndarray, "assets views dim"] = read_vectors(folder / "image.npy", image_shape)
        self._clip = clip
        try:
            self._recall, self.backend = open_recall(self.text_vectors, folder / "scann", manifest.recall)
        except (ValueError, RuntimeError) as error:  # the latter is ScaNN's
            raise IndexMismatch(f"index {manifest.index_dir} is damaged: {error}; rebuild it") from error

    @classmethod
    def open(cls, index_dir: str | Path, clip: TextEncoder, asset_root: str | Path | None = None) -> AssetIndex:
        """Open an index made with the same CLIP model.

        Args:
            asset_root: where the assets lie now, if they were moved since the index was made.

        Raises:
            IndexMismatch: the index is damaged or incomplete, or was made with another model.
        """
        manifest = read_manifest(index_dir)
        while True:
            try:
                return cls._open(manifest, clip, asset_root)
            except IndexMismatch:
                # A build may have replaced the generation between the two reads; then the newer one is read.
                newer = read_manifest(index_dir)
                if newer.generation == manifest.generation:
                    raise
                manifest = newer

    @classmethod
    def _open(cls, manifest: IndexManifest, clip: TextEncoder, asset_root: str | Path | None) -> AssetIndex:
        check_files(manifest)  # while a `TextTower` hashes its weights
        if manifest.clip_model != clip.identity:
            raise IndexMismatch(
                f"index {manifest.index_dir} was made with CLIP {manifest.clip_model}, not with "
                f"{clip.identity}; rebuild it, or search with the model it was made with"
            )
        return cls(manifest if asset_root is None else replace(manifest, asset_root=str(asset_root)), clip)

    def search(
        self, prompt: str, num_recall: int, top_k: int, allows: Callable[[str], bool] | None = None
    ) -> Retrieval:
        """Find the `top_k` assets nearest to a prompt, or all of a smaller index.

        Args:
            num_recall: N', how many assets text recall passes on to image rerank.
            allows: says of the text of a licence whether assets under it may be found.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty; describe an object in a few words")
        if not 1 <= top_k <= num_recall:
            raise ValueError(f"top_k is {top_k} and num_recall {num_recall}; they must be 1 <= top_k <= num_recall")
        query = self._clip.embed_prompt(prompt)
        return Retrieval(prompt=prompt, neighbors=self.nearest(query, num_recall, top_k, allows))

    def nearest(
        self,
        query: Float[np.ndarray, " dim"],
        num_recall: int,
        top_k: int,
        allows: Callable[[str], bool] | None = None,
    ) -> tuple[Neighbor, ...]:
        """Answer a unit vector: text recall, then image rerank."""
        recalled, text_scores = self.recall(query, num_recall, allows)
        image_scores = self.image_scores(query, recalled)
        if not np.isfinite(image_scores).all() or not np.isfinite(text_scores).all():
            raise IndexMismatch(f"index {self.manifest.index_dir} is damaged: a vector is not finite; rebuild it")
        # Equal scores, as of assets that share a caption or a mesh, keep the order of the index on every machine.
        order = np.lexsort((recalled, -image_scores))[:top_k]
        return tuple(
            Neighbor(
                asset=self.assets[int(recalled[i])], score=float(image_scores[i]), text_score=float(text_scores[i])
            )
            for i in order
        )

    def recall(
        self, query: Float[np.ndarray, " dim"], num: int, allows: Callable[[str], bool] | None = None
    ) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Return the rows whose captions are nearest to a unit vector, and their cosines."""
        num = min(num, len(self.assets))
        if allows is None:
            return self._recall(query, num)
        return allowed_nearest(self._recall, self.text_vectors, self._licensed(allows), query, num)

    def image_scores(self, query: Float[np.ndarray, " dim"], rows: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        """Return the cosines of a unit vector with the renders of some assets: the best one's where all are kept."""
        return (self.image_vectors[rows].astype(np.float32) @ query.astype(np.float32)).max(axis=1, initial=-np.inf)

    def _licensed(self, allows: Callable[[str], bool]) -> Bool[np.ndarray, " assets"]:
        """Tell which rows have a licence that is allowed; each distinct text is judged once."""
        texts = self.assets.table["license"].combine_chunks().dictionary_encode()
        is_allowed = np.array([allows(text) for text in texts.dictionary.to_pylist()], dtype=bool)
        return is_allowed[texts.indices.to_numpy()]
