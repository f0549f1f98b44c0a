"""Conditions on annotations: what they say, and that nothing but a condition is read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from redream.retrieval.filters import matching, read_table

COLUMNS = {
    "faceCount": pa.chunked_array([pa.array([10, 600_000, None, 300])]),
    "quality": pa.chunked_array([pa.array([0.5, 0.9, 0.1, -1.0])]),
    "isAgeRestricted": pa.chunked_array([pa.array([False, True, None, False])]),
    "license": pa.chunked_array([pa.array(["by", "cc0", "BY", "by-nc"])]),
    "tags": pa.chunked_array([pa.array([["Chair", "red"], [], None, ["table"]])]),
}


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("faceCount < 500000", [0, 3]),
        ("not faceCount < 500000", [1]),  # what is not stated fulfils neither
        ("100 <= faceCount <= 1000", [3]),
        ("faceCount < 500000 and quality > 0 or license == 'CC0'", [0, 1]),
        ("quality == -1", [3]),
        ("not isAgeRestricted", [0, 3]),
        ("isAgeRestricted == true", [1]),
        ('"chair" in tags', [0]),
        ('"chair" not in tags', [1, 3]),
        ("license in ('by', 'cc0')", [0, 1, 2]),
        ('"nc" in license', [3]),
        ("(faceCount > 5) and not ('red' in tags)", [1, 3]),
    ],
)
def test_a_condition_chooses_rows(condition: str, rows: list[int]):
    assert matching(condition, COLUMNS).nonzero()[0].tolist() == rows


@pytest.mark.parametrize(
    ("condition", "cause"),
    [
        ("faceCount <", "cannot be read"),
        ("", "1 to 2,000 characters"),
        ("facecount < 3", "did you mean faceCount"),
        ("faceCount < 'x'", "is a number and cannot be compared so with a text"),
        ("license < 'x'", "cannot be compared"),
        ("faceCount", "is not a condition"),
        ("1 < 2", "both fixed"),
        ("__import__('os').system('true')", "is not a column"),
        ("faceCount.__class__ == 3", "is not a column"),
        ("[x for x in tags] == 3", "is not a column"),
        ("faceCount < 2 ** 9999999", "is not a column"),
        ("(lambda: 1)()", "is not a column"),
        ("not " * 300 + "isAgeRestricted", "nested"),
        ("(" * 1000 + "1" + ")" * 999, "cannot be read"),
    ],
)
def test_anything_but_a_condition_is_refused_in_one_line(condition: str, cause: str):
    with pytest.raises(ValueError, match=cause) as refused:
        matching(condition, COLUMNS)
    assert "\n" not in str(refused.value)


def test_a_table_is_joined_by_id(tmp_path: Path):
    (tmp_path / "quality.csv").write_text("uid,score,block\nb,0.5,true\na,2,false\nz,9,true\n")
    columns = read_table(tmp_path / "quality.csv", pa.chunked_array([pa.array(["a", "b", "c"])]))
    assert columns["score"].to_pylist() == [2.0, 0.5, None]
    assert matching("not block", columns).tolist() == [True, False, False]
    (tmp_path / "other.csv").write_text("name,score\nb,0.5\n")
    for name, cause in (("other.csv", "no column uid"), ("none.csv", "no such file")):
        with pytest.raises(ValueError, match=cause):
            read_table(tmp_path / name, pa.chunked_array([pa.array(["a"])]))
