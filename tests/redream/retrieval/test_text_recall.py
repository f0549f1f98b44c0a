"""Laws of text recall, by ScaNN and without it."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from redream.retrieval import text_recall
from redream.retrieval.text_recall import EXACT, SCANN, allowed_nearest, open_recall, pack_codes, train_recall
from tests.redream.conftest import unit_rows

NUM_ROWS, DIM = 3000, 33  # an odd number of codes


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the rule for many vectors hold from 1,000 on, and few be compared again."""
    pytest.importorskip("scann", reason="ScaNN has no wheel for this machine")
    monkeypatch.setattr(text_recall, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(text_recall, "MIN_CANDIDATES", 200)


@pytest.fixture
def no_scann(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ScaNN as absent as on a machine that it has no wheel for."""
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)


def exact(rows: np.ndarray, query: np.ndarray, num: int) -> np.ndarray:
    return np.argsort(-(rows @ query), kind="stable")[:num]


def test_however_many_parts_the_codes_are_cut_into_the_same_is_found(
    few_are_many: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = unit_rows(8, num=NUM_ROWS, dim=DIM)
    rows[1000:1400] = rows[:400]  # with the same scores
    train_recall(rows, tmp_path / "scann")
    found = []
    for num_cores in (1, 2, 7, 100):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, num=num_cores: set(range(num)))
        recall, _ = open_recall(rows.astype(np.float16), tmp_path / "scann", SCANN)
        found.append([recall(query, 300) for query in unit_rows(7, num=5, dim=DIM)])
    for other in found[1:]:
        for (expected_rows, expected_cosines), (other_rows, other_cosines) in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(other_rows, expected_rows)
            np.testing.assert_array_equal(other_cosines, expected_cosines)


@pytest.mark.parametrize("num", [1, 2, 17, 500])
def test_few_vectors_are_all_compared_and_need_nothing_beside_them(num: int, tmp_path: Path):
    rows, query = unit_rows(4, num=num, dim=24), unit_rows(5, num=1, dim=24)[0]
    assert train_recall(rows, tmp_path / "scann") == EXACT
    assert not (tmp_path / "scann").exists()
    recall, method = open_recall(rows.astype(np.float16), tmp_path / "scann", EXACT)
    assert method == EXACT
    for k in {1, min(10, num), num}:
        found, cosines = recall(query, k)
        np.testing.assert_array_equal(found, exact(rows, query, k))
        np.testing.assert_allclose(cosines, (rows @ query)[found], atol=1e-6)


def test_scann_keeps_the_nearest_neighbors_of_many_vectors_and_their_exact_cosines(few_are_many: None, tmp_path: Path):
    rows = unit_rows(6, num=NUM_ROWS, dim=DIM)
    method = train_recall(rows, tmp_path / "scann")
    recall, opened = open_recall(rows.astype(np.float16), tmp_path / "scann", method)
    assert method == opened == SCANN
    for query in unit_rows(7, num=20, dim=DIM):
        found, cosines = recall(query, 20)
        assert len(set(found) & set(exact(rows, query, 20))) >= 18
        assert found[0] == exact(rows, query, 1)[0]
        np.testing.assert_allclose(cosines, (rows @ query)[found], atol=1e-6)
        assert (np.diff(cosines) <= 0).all()


def test_training_and_opening_print_nothing_and_leave_only_known_files(
    few_are_many: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    rows = unit_rows(6, num=NUM_ROWS, dim=DIM)
    open_recall(rows, tmp_path / "scann", train_recall(rows, tmp_path / "scann"))
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in (tmp_path / "scann").iterdir()} == set(text_recall.SCANN_FILES)


def test_no_pickle_and_no_path_in_an_index_is_followed(few_are_many: None, tmp_path: Path):
    rows = unit_rows(6, num=NUM_ROWS, dim=DIM)
    method = train_recall(rows, tmp_path / "scann")
    (tmp_path / "scann" / "scann_docids.pkl").write_bytes(b"no pickle")
    (tmp_path / "scann" / "scann_assets.pbtxt").write_text(
        'assets { asset_type: AH_CENTERS asset_path: "/etc/passwd" }'
    )
    recall, _ = open_recall(rows, tmp_path / "scann", method)
    assert recall(rows[3], 1)[0][0] == 3


def test_codes_of_another_shape_are_refused(few_are_many: None, tmp_path: Path):
    rows = unit_rows(6, num=NUM_ROWS, dim=DIM)
    method = train_recall(rows, tmp_path / "scann")
    with pytest.raises(ValueError, match=r"codes\.npy"):
        open_recall(rows[:-1], tmp_path / "scann", method)


@pytest.mark.parametrize("num_blocks", [1, 2, 7, 8])
def test_packed_codes_come_back(num_blocks: int):
    codes = np.random.default_rng(0).integers(0, 16, (50, num_blocks), dtype=np.uint8)
    packed = pack_codes(codes)
    assert packed.shape == (50, -(-num_blocks // 2))
    file = io.BytesIO()
    text_recall.write_unpacked_codes(packed, num_blocks, file)
    file.seek(0)
    np.testing.assert_array_equal(np.load(file), codes)


def test_without_scann_an_index_of_many_vectors_is_searched_exactly_and_says_so(
    few_are_many: None, no_scann: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rows, query = unit_rows(6, num=NUM_ROWS, dim=DIM), unit_rows(7, num=1, dim=DIM)[0]
    assert train_recall(rows, tmp_path / "scann") == EXACT
    with caplog.at_level(logging.WARNING):
        recall, method = open_recall(rows, tmp_path / "scann", SCANN)  # as built where there was ScaNN
    assert method == EXACT
    assert ["no ScaNN" in record.message for record in caplog.records] == [True]
    np.testing.assert_array_equal(recall(query, 30)[0], exact(rows, query, 30))


@pytest.mark.parametrize("share", [0.9, 0.5, 0.01])
def test_of_allowed_rows_the_nearest_are_found_however_few_or_far(few_are_many: None, share: float, tmp_path: Path):
    rows, query = unit_rows(6, num=NUM_ROWS, dim=DIM), unit_rows(7, num=1, dim=DIM)[0]
    recall, _ = open_recall(rows, tmp_path / "scann", train_recall(rows, tmp_path / "scann"))
    farthest = np.argsort(rows @ query)[: int(share * NUM_ROWS)]
    is_allowed = np.zeros(NUM_ROWS, bool)
    is_allowed[farthest] = True
    found, cosines = allowed_nearest(recall, rows, is_allowed, query, 10)
    expected = np.flatnonzero(is_allowed)[exact(rows[is_allowed], query, 10)]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(cosines, (rows @ query)[found], atol=1e-6)
