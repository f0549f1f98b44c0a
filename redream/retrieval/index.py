"""Retrieval: the assets of the database that are nearest to a prompt (ReDream, Sec. 5.1).

The query is the CLIP text embedding of the prompt. Text recall finds N' assets by the embeddings of their captions with
ScaNN (Guo et al., 2020), word search N' more by the words of their captions (`lexical_recall.py`, ours). What the
prompt's words and the renders say of each is added up as evidence, in nats: words by their rarity, cosines by how
captions and renders of other objects of this index score (`calibration.py`). At most N are kept. An asset is a weak
match unless its caption is the prompt, or names the same kind of thing, or its renders are convincing.

Embeddings are L2-normalised, every score of them is a cosine, higher is nearer. `index_files.py` says what an index is
on disk, `text_recall.py` how the first step searches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol, SupportsFloat, SupportsInt, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from redream.records import Neighbor, Retrieval
from redream.retrieval.calibration import SAMPLE, Calibration
from redream.retrieval.filters import RESTRICTED, matching, read_table
from redream.retrieval.index_files import (
    AssetRows,
    IndexManifest,
    IndexMismatch,
    check_files,
    read_annotations,
    read_assets,
    read_manifest,
    read_pictures,
    read_vectors,
)
from redream.retrieval.lexical_recall import LexicalRecall, open_lexical
from redream.retrieval.nouns import colors_of, is_named, named_things
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
        self.assets = AssetRows(read_assets(manifest), manifest.asset_folder)
        rows, dim = manifest.num_assets, manifest.embedding_dim
        if len(self.assets) != rows or clip.embedding_dim != dim:
            raise IndexMismatch(
                f"index {manifest.index_dir} holds {len(self.assets)} assets for a CLIP of {dim} dimensions, but its "
                f"manifest says {rows} and its CLIP has {clip.embedding_dim}; rebuild it"
            )
        self.text_vectors: Float[np.ndarray, "assets dim"] = read_vectors(folder / "text.npy", (rows, dim))
        self.pictures = read_pictures(manifest, self.assets.table["key"])
        self._clip = clip
        try:
            self._recall, self.backend = open_recall(self.text_vectors, folder / "scann", manifest.recall)
            self._words: LexicalRecall | None = open_lexical(folder / "lexical", rows) if manifest.has_words else None
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
        self,
        prompt: str,
        num_recall: int,
        top_k: int,
        allows: Callable[[str], bool] | None = None,
        leave_out: Sequence[str] = (),
        among: Bool[np.ndarray, " assets"] | None = None,
        max_likeness: float = math.inf,
    ) -> Retrieval:
        """Find the assets that a prompt means, at most `top_k`.

        Weak matches are marked; those that hold no word of the prompt are dropped.

        Args:
            num_recall: N', how many assets text recall and word search each pass on.
            allows: says of the text of a licence whether assets under it may be found.
            leave_out: ids of assets that must not be found.
            among: which assets may be found by other conditions; None for all.
            max_likeness: cosine of two assets' renders from which the second is a near copy, and ranks behind.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty; describe an object in a few words")
        if not 1 <= top_k <= num_recall:
            raise ValueError(f"top_k is {top_k} and num_recall {num_recall}; they must be 1 <= top_k <= num_recall")
        query = self._clip.embed_prompt(prompt)
        rows, word_scores = self._candidates(prompt, query, num_recall, self.allowed(allows, leave_out, among))
        found = self._by_evidence(prompt, query, rows, word_scores, max_likeness)
        return Retrieval(prompt=prompt, neighbors=tuple(islice(found, top_k)))

    def lacking(
        self,
        prompt: str,
        num_recall: int,
        allows: Callable[[str], bool] | None = None,
        leave_out: Sequence[str] = (),
        among: Bool[np.ndarray, " assets"] | None = None,
    ) -> list[int]:
        """Return the rows whose pictures a search needs and the index lacks, those that promise most first.

        With all of these the search answers as it would with the pictures of every asset: they are the candidates of
        both recalls, and the sample by which cosines are calibrated.
        """
        if self.pictures.is_complete:
            return []
        query = self._clip.embed_prompt(prompt)
        rows, word_scores = self._candidates(prompt, query, num_recall, self.allowed(allows, leave_out, among))
        order = np.lexsort((rows, -(word_scores + self._text_scores(query, rows))))
        wanted = np.array(list(dict.fromkeys([*rows[order].tolist(), *self._sample().tolist()])), np.int64)
        lacking = wanted[~self.pictures.has(wanted)].tolist()
        return [row for row in lacking if row not in self.pictures.refused]

    def refresh(self) -> None:
        """Take in the pictures that were added meanwhile."""
        self.pictures.refresh()
        self.__dict__.pop("calibration", None)

    def _candidates(
        self,
        prompt: str,
        query: Float[np.ndarray, " dim"],
        num_recall: int,
        may_be_found: Bool[np.ndarray, " assets"] | None,
    ) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Return the rows that text recall and word search pass on, and what the prompt's words say of each."""
        if may_be_found is not None and not may_be_found.any():
            raise ValueError(f"index {self.manifest.index_dir} has no asset that the filters and --not leave over")
        rows, _ = self._recall_among(query, num_recall, may_be_found)
        if self._words is None:
            return rows, np.zeros(len(rows), np.float32)
        worded, scores = self._words.nearest(prompt, num_recall, may_be_found)
        rows = np.union1d(rows, worded)
        return rows, scores[rows]

    def chosen(self, prompt: str, asset_ids: Sequence[str]) -> Retrieval:
        """Return the assets that the user chose, in that order, scored as a search would.

        Raises:
            ValueError: the index has no such asset.
        """
        query, rows = self._clip.embed_prompt(prompt), np.array(self.assets.places(asset_ids), np.int64)
        word_scores = np.zeros(len(self.assets)) if self._words is None else self._words.scores(prompt)
        image_scores, text_scores = self.image_scores(query, rows), self._text_scores(query, rows)
        return Retrieval(
            prompt=prompt,
            neighbors=tuple(
                self._neighbor(row, *scores)
                for row, *scores in zip(rows, image_scores, text_scores, word_scores[rows], strict=True)
            ),
        )

    def _by_evidence(
        self,
        prompt: str,
        query: Float[np.ndarray, " dim"],
        rows: Int[np.ndarray, " k"],
        word_scores: Float[np.ndarray, " k"],
        max_likeness: float,
    ) -> Iterator[Neighbor]:
        """Yield assets by their evidence: exact captions first, weak matches last; what has none is left out.

        Assets without a picture follow behind all others, by what their captions say.
        """
        image_scores, text_scores = self.image_scores(query, rows), self._text_scores(query, rows)
        has_picture = self.pictures.has(rows)
        log_odds = np.zeros(len(rows), np.float32)
        if has_picture.any():
            pictured = self.pictures.of(rows[has_picture])
            log_odds[has_picture] = self.calibration.log_odds(query, image_scores[has_picture], pictured)
        self._require_finite(image_scores, text_scores, log_odds)
        evidence = word_scores + np.where(has_picture, log_odds, text_scores)
        captions = self.assets.table["caption"].take(pa.array(rows)).to_pylist()
        asked, things = _plain(prompt), named_things(prompt)
        is_exact = np.array([_plain(caption) == asked for caption in captions], bool)
        is_named_so = np.array([is_named(things, caption) for caption in captions], bool)
        is_weak = ~is_named_so & ~is_exact & (log_odds <= self.calibration.convincing)
        fit = 1.0 / (1.0 + np.exp(np.clip(self.calibration.convincing - word_scores - log_odds, -50.0, 50.0)))
        # Equal evidence, as of assets that share a caption or a mesh, keeps the order of the index on every machine.
        order = np.lexsort((rows, -evidence, is_weak, ~is_exact, ~has_picture))
        # Near copies rank behind other things that fit as well: of the kind that the prompt names, if there is one.
        standing = 2 * is_weak.astype(int) if is_named_so.any() or is_exact.any() else np.zeros(len(rows), int)
        standing += self._is_copy(rows, order, max_likeness)
        colors = colors_of(prompt)
        is_other_color = np.array([bool(colors and (has := colors_of(c)) and not colors & has) for c in captions], bool)
        standing[is_other_color & (standing == 0)] = 1
        place = np.argsort(order)
        for i in np.lexsort((place, is_other_color, standing, ~has_picture)):
            if not is_weak[i] or word_scores[i] > 0 or not has_picture[i]:
                yield self._neighbor(rows[i], image_scores[i], text_scores[i], word_scores[i], is_weak[i], fit[i])

    def _is_copy(
        self, rows: Int[np.ndarray, " k"], order: Int[np.ndarray, " k"], max_likeness: float
    ) -> Bool[np.ndarray, " k"]:
        """Tell which assets look like one that comes before them in an order, which is not a copy itself."""
        is_copy, has_picture = np.zeros(len(rows), bool), self.pictures.has(rows)
        seen: list[Float[np.ndarray, " dim"]] = []
        for i in (i for i in order if has_picture[i]):
            look = self.pictures.of(rows[[i]])[0].astype(np.float32).mean(axis=0)
            look /= np.linalg.norm(look)
            is_copy[i] = bool(seen) and float((np.stack(seen) @ look).max()) >= max_likeness
            if not is_copy[i]:
                seen.append(look)
        return is_copy

    def _neighbor(
        self,
        row: SupportsInt,
        score: SupportsFloat,
        text_score: SupportsFloat,
        lexical_score: SupportsFloat = 0.0,
        is_weak: SupportsInt = False,
        fit: SupportsFloat = 0.0,
    ) -> Neighbor:
        return Neighbor(
            asset=self.assets[int(row)],
            score=float(score),
            text_score=float(text_score),
            lexical_score=float(lexical_score),
            is_weak=bool(is_weak),
            fit=float(fit),
            has_picture=bool(self.pictures.has(np.array([row]))[0]),
        )

    def nearest(
        self,
        query: Float[np.ndarray, " dim"],
        num_recall: int,
        top_k: int,
        allows: Callable[[str], bool] | None = None,
    ) -> tuple[Neighbor, ...]:
        """Answer a unit vector by embeddings alone: text recall, then image rerank."""
        recalled, text_scores = self.recall(query, num_recall, allows)
        image_scores = self.image_scores(query, recalled)
        self._require_finite(image_scores, text_scores)
        order = np.lexsort((recalled, -text_scores, -image_scores, ~self.pictures.has(recalled)))[:top_k]
        return tuple(self._neighbor(recalled[i], image_scores[i], text_scores[i]) for i in order)

    def recall(
        self, query: Float[np.ndarray, " dim"], num: int, allows: Callable[[str], bool] | None = None
    ) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Return the rows whose captions are nearest to a unit vector, and their cosines."""
        return self._recall_among(query, num, self.allowed(allows))

    def _recall_among(
        self, query: Float[np.ndarray, " dim"], num: int, may_be_found: Bool[np.ndarray, " assets"] | None
    ) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        num = min(num, len(self.assets))
        if may_be_found is None:
            return self._recall(query, num)
        return allowed_nearest(self._recall, self.text_vectors, may_be_found, query, num)

    def image_scores(self, query: Float[np.ndarray, " dim"], rows: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        """Return the cosines of a unit vector with the renders of some assets: the best one's where all are kept.

        0 where an asset has no picture yet.
        """
        scores, has_picture = np.zeros(len(rows), np.float32), self.pictures.has(rows)
        pictured = self.pictures.of(rows[has_picture]).astype(np.float32)
        scores[has_picture] = (pictured @ query.astype(np.float32)).max(axis=1, initial=-np.inf)
        return scores

    def _text_scores(self, query: Float[np.ndarray, " dim"], rows: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        return self.text_vectors[rows].astype(np.float32) @ query.astype(np.float32)

    def _require_finite(self, *scores: Float[np.ndarray, " k"]) -> None:
        if not all(np.isfinite(each).all() for each in scores):
            raise IndexMismatch(f"index {self.manifest.index_dir} is damaged: a vector is not finite; rebuild it")

    @cached_property
    def calibration(self) -> Calibration:
        """What this index's cosines are worth, measured on assets spread evenly over it."""
        sample = self._sample()
        texts = self.assets.table["caption"].take(pa.array(sample)).to_pylist()
        rows = sample[self.pictures.has(sample)]
        if len(rows) < len(sample):  # other pictures stand in for those that are missing
            others = np.setdiff1d(self.pictures.rows(), rows)
            places = np.linspace(0, len(others) - 1, min(SAMPLE - len(rows), len(others))).astype(np.int64)
            rows = np.sort(np.concatenate([rows, others[np.unique(places)]]))
        return Calibration.of(self.text_vectors[rows], self.pictures.of(rows), texts)

    def _sample(self) -> Int[np.ndarray, " sample"]:
        return np.unique(np.linspace(0, len(self.assets) - 1, SAMPLE).astype(np.int64))

    def matching(
        self, condition: str, table: str = "", age_restricted: bool = False
    ) -> Bool[np.ndarray, " assets"] | None:
        """Return which assets fulfil a condition on their annotations (`filters.py`); None for all.

        Args:
            table: a CSV whose columns the condition may name.
            age_restricted: whether assets that are marked so may be found.

        Raises:
            ValueError: the condition or the table cannot be used.
        """
        ids = self.assets.table["asset_id"]
        columns = {name: self.assets.table[name] for name in ("caption", "license", "author", "source")}
        columns |= {"uid": ids, **read_annotations(self.manifest)}
        if table:
            columns |= read_table(table, ids)
        found = matching(condition, columns) if condition else None
        if not age_restricted and RESTRICTED in columns:
            is_open = ~columns[RESTRICTED].fill_null(False).to_numpy()
            found = is_open if found is None else found & is_open
        return found

    def allowed(
        self,
        allows: Callable[[str], bool] | None,
        leave_out: Sequence[str] = (),
        among: Bool[np.ndarray, " assets"] | None = None,
    ) -> Bool[np.ndarray, " assets"] | None:
        """Tell which rows may be found; None stands for all. Each distinct licence is judged once."""
        if allows is None and not leave_out and among is None and not self.pictures.refused:
            return None
        may_be_found = np.ones(len(self.assets), bool) if among is None else among.copy()
        may_be_found[list(self.pictures.refused)] = False
        if allows is not None:
            texts = self.assets.table["license"].combine_chunks().dictionary_encode()
            is_allowed = np.array([allows(text) for text in texts.dictionary.to_pylist()], dtype=bool)
            may_be_found &= is_allowed[texts.indices.to_numpy()]
        if leave_out:
            named = pc.is_in(self.assets.table["asset_id"], value_set=pa.array(leave_out, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]  # made at import
            may_be_found &= ~named.to_numpy()
        return may_be_found


def _plain(text: str) -> str:
    """Return a text as it counts for a caption word for word: without case, punctuation and spacing."""
    return " ".join(re.findall(r"\w+", text.lower()))
