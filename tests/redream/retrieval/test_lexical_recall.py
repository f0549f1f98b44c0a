"""Laws of word search."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from redream.retrieval.lexical_recall import LEXICAL_FILES, LexicalRecall, open_lexical, write_lexical

CAPTIONS = [
    "a yellow taxi with a white roof sign",
    "a red truck with black wheels",
    "a white refrigerator",
    "a small orange fish",
    "a red chair",
    "a red truck",
    "",
]
Open = Callable[[list[str]], LexicalRecall]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def make(captions: list[str]) -> LexicalRecall:
        folder = tmp_path / uuid.uuid4().hex
        write_lexical(captions, folder)
        return open_lexical(folder, len(captions))

    return make


def first(words: LexicalRecall, prompt: str) -> int:
    return int(words.nearest(prompt, 1)[0][0])


def test_a_caption_word_for_word_is_found_first(opened: Open) -> None:
    words = opened(CAPTIONS)
    assert [first(words, caption) for caption in CAPTIONS[:5]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("prompt", "row"), [("a New York cab", 0), ("goldfishes", 3), ("an old fridge", 2)])
def test_synonyms_kinds_and_plurals_are_found(opened: Open, prompt: str, row: int) -> None:
    assert first(opened(CAPTIONS), prompt) == row


def test_only_captions_that_hold_something_of_a_prompt_are_found(opened: Open) -> None:
    rows, scores = opened(CAPTIONS).nearest("a red truck", 100)
    assert set(rows) == {1, 4, 5} == set(np.flatnonzero(scores))
    assert list(opened(CAPTIONS).nearest("the of with", 100)[0]) == []


def test_the_name_of_the_thing_counts_more_than_how_it_looks(opened: Open) -> None:
    words = opened(["a cow", "a field", "a stone", "a tree"])
    assert first(words, "a cow standing in a field") == 0
    assert first(words, "a field with a cow") == 1


def test_fewer_rows_are_the_first_of_more_and_equal_ones_keep_their_order(opened: Open) -> None:
    words = opened(["a red truck"] * 5 + CAPTIONS)
    more, scores = words.nearest("a red truck", 9)
    assert list(words.nearest("a red truck", 3)[0]) == list(more[:3]) == [0, 1, 2]
    assert (np.diff(scores[more]) <= 0).all()


def test_rows_that_may_not_be_found_are_not(opened: Open) -> None:
    may_be_found = np.array([row != 5 for row in range(len(CAPTIONS))])
    assert set(opened(CAPTIONS).nearest("a red truck", 100, may_be_found)[0]) == {1, 4}


@pytest.mark.parametrize("captions", [["", ""], ["..."]])
def test_captions_without_words_find_nothing(opened: Open, captions: list[str]) -> None:
    assert list(opened(captions).nearest("a red truck", 3)[0]) == []


def test_the_files_are_the_same_for_the_same_captions_and_hold_nothing_else(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_lexical(CAPTIONS, tmp_path / name)
    assert {path.name for path in (tmp_path / "one").iterdir()} == set(LEXICAL_FILES)
    for name in LEXICAL_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("damage", ["rows", "starts", "scores", "words", "bounds"])
def test_what_contradicts_itself_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "lexical"
    write_lexical(CAPTIONS, folder)
    if damage == "words":
        (folder / "words.txt").write_text("one\n")
    elif damage == "bounds":
        rows = np.load(folder / "rows.npy")
        np.save(folder / "rows.npy", np.full_like(rows, len(CAPTIONS)))
    else:
        np.save(folder / f"{damage}.npy", np.load(folder / f"{damage}.npy")[::-1][:-1])
    with pytest.raises(ValueError, match=r"word search|instead of"):
        open_lexical(folder, len(CAPTIONS)).nearest("a red truck", 3)
