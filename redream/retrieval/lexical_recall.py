"""Word search: the captions that hold the words of a prompt, by BM25 (Robertson et al., 1994) over stems.

It needs no model: it knows every name that a caption may hold, and so finds what an embedding outside its world does
not. `bm25s` (Lù, 2024) counts the words of an index once; its scores are a sparse matrix of words and rows, three
arrays that are mapped like vectors. A score is a sum of inverse document frequencies, in nats: how much more probable
the prompt's words are in the caption that is meant than in any other.

A word of a prompt also finds its relatives (`nouns.py`), which count in proportion to their likeness, and of those only
the best that a caption holds: "a New York yellow cab" finds the taxi.

    words.txt   the stems, sorted, one a line      starts.npy  int64 [words + 1]: where the entries of a word begin
    rows.npy    int32 [entries]                    scores.npy  float32 [entries]
"""

# ruff: noqa: SIM905  (a list of words reads best as one text)

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64

from redream.retrieval.nouns import named_things, relatives, singular
from redream.retrieval.text_recall import read_array

LEXICAL_FILES = ("words.txt", "starts.npy", "rows.npy", "scores.npy")
K1 = 1.5  # how soon further occurrences of a word in a caption stop to count
NAME_WEIGHT = 2.0  # of the words that name the thing: "a cow standing in a field" is about a cow
MAX_RELATIVES = 32  # of a word of a prompt, the most alike

# Words of English that are in every caption and say nothing of the object.
_STOP = frozenset(
    "a an and are as at be been but by for from had has have he her his if in into is it its no not of on or our over "
    "she so such than that the their them then there these they this to under up was were which while who will with "
    "you your 3d".split()
)
_WORD = re.compile(r"[^\W_]+")


class LexicalRecall:
    """The words of an index's captions, open for search."""

    def __init__(
        self,
        words: Sequence[str],
        starts: Int64[np.ndarray, " bounds"],
        rows: Int32[np.ndarray, " entries"],
        scores: Float32[np.ndarray, " entries"],
        num_rows: int,
    ) -> None:
        is_sound = len(rows) == len(scores) and len(starts) == len(words) + 1 and bool((np.diff(starts) >= 0).all())
        if not is_sound or starts[0] != 0 or starts[-1] != len(rows):
            raise ValueError("its word search contradicts itself")
        self._places = {word: place for place, word in enumerate(words)}
        self._starts, self._rows, self._scores, self._num_rows = starts, rows, scores, num_rows

    def scores(self, prompt: str) -> Float[np.ndarray, " rows"]:
        """Return the score of every row, in nats; 0 where a caption holds nothing of the prompt."""
        total = np.zeros(self._num_rows, np.float32)
        best = np.zeros(self._num_rows, np.float32)  # of a word and its relatives
        names = {word for thing in named_things(prompt) for word in thing.split()}
        for word in dict.fromkeys(words_of(prompt)):
            weight = NAME_WEIGHT if singular(word) in names else 1.0
            alike = [(*self._entries(place), weight * likeness) for place, likeness in self._alike(word)]
            if len(alike) == 1:  # most words have no relatives here
                rows, scores, factor = alike[0]
                total[rows] += factor * scores
                continue
            for rows, scores, factor in alike:
                best[rows] = np.maximum(best[rows], factor * scores)
            total += best
            for rows, _, _ in alike:
                best[rows] = 0.0
        return total

    def nearest(self, prompt: str, num: int, may_be_found: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return at most `num` rows that hold something of the prompt, the best first, and the score of every row."""
        scores = self.scores(prompt)
        rows = np.flatnonzero(scores > 0 if may_be_found is None else may_be_found & (scores > 0))
        found = scores[rows]
        if len(rows) > num:
            lowest = np.partition(found, len(found) - num)[len(found) - num]
            rows, found = rows[found >= lowest], found[found >= lowest]
        return rows[np.argsort(-found, kind="stable")][:num], scores

    def _entries(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        begin, end = self._starts[place], self._starts[place + 1]
        rows = self._rows[begin:end]
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self._num_rows:
            raise ValueError("its word search names rows that it does not have")
        return rows, self._scores[begin:end]

    def _alike(self, word: str) -> list[tuple[int, float]]:
        """Return the places of a word and of its relatives among the index's words, with their weights."""
        found: dict[int, float] = {}
        for other, weight in sorted(((word, 1.0), *relatives(singular(word)).items()), key=lambda each: -each[1]):
            place = self._places.get(stem(other))
            if place is not None:
                found.setdefault(place, weight)
            if len(found) > MAX_RELATIVES:
                break
        return list(found.items())


def open_lexical(folder: Path, num_rows: int) -> LexicalRecall:
    """Map the files of a word search.

    Raises:
        ValueError: they hold something else.
    """
    words = (folder / "words.txt").read_text(encoding="utf-8").split("\n")[:-1]
    starts = read_array(folder / "starts.npy", np.int64, (len(words) + 1,))
    shape = (max(int(starts[-1]), 0),)
    # As plain arrays, of which slices cost less than of `memmap`; the files stay mapped.
    rows = np.asarray(read_array(folder / "rows.npy", np.int32, shape))
    scores = np.asarray(read_array(folder / "scores.npy", np.float32, shape))
    return LexicalRecall(words, starts, rows, scores, num_rows)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without those that say nothing."""
    return [word for word in _WORD.findall(text.lower()) if word not in _STOP]


def stem(word: str) -> str:
    return _stemmer().stemWord(word)


def write_lexical(captions: Iterable[str], folder: Path) -> None:
    """Count the words of captions, and write what searching them needs to a new folder."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # by default it tells the terminal what it does
    numbers: dict[str, int] = {}
    texts = [[numbers.setdefault(each, len(numbers)) for each in _stems(caption)] for caption in captions]
    words = sorted(numbers)
    place_of = np.empty(len(words), np.int64)
    place_of[[numbers[word] for word in words]] = np.arange(len(words))
    ids = [place_of[text].tolist() for text in texts]
    entries: dict[str, np.ndarray] = {"data": np.zeros(0), "indices": np.zeros(0), "indptr": np.zeros(1)}
    if words:
        counted = bm25s.BM25(k1=K1)
        counted.index((ids, {word: place for place, word in enumerate(words)}), show_progress=False)
        entries = counted.scores
    folder.mkdir()
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8", newline="\n")
    np.save(folder / "starts.npy", entries["indptr"].astype(np.int64))
    np.save(folder / "rows.npy", entries["indices"].astype(np.int32))
    # Lucene, which bm25s follows, leaves out the constant factor that makes the scores nats.
    np.save(folder / "scores.npy", ((K1 + 1) * entries["data"]).astype(np.float32))


def _stems(text: str) -> list[str]:
    return _stemmer().stemWords(words_of(text))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("english")
