"""Captions come from files that nobody vetted: each row comes out once or is counted once."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_build.catalogs.captions import (
    EMPTY_CAPTION,
    EMPTY_ID,
    MALFORMED,
    MAX_CAPTION,
    NOT_UTF8,
    REFUSAL,
    TOO_LONG,
    UNKNOWN_FRONT,
    CaptionRow,
    clean_text,
    read_captions,
)

DATA = Path(__file__).parents[3] / "../shared/data/captions"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/captions")


def read(path: Path) -> tuple[list[CaptionRow], Counter[str]]:
    dropped: Counter[str] = Counter()
    return list(read_captions(path, dropped)), dropped


def read_bytes(tmp_path: Path, content: bytes) -> tuple[list[CaptionRow], Counter[str]]:
    path = tmp_path / "captions.csv"
    path.write_bytes(content)
    return read(path)


@needs_data
def test_every_row_of_cap3ds_own_sample_is_read():
    rows, dropped = read(DATA / "cap3d_v1_sample.csv")
    assert len(rows) == 39 and not dropped
    assert rows[0] == CaptionRow(uid="ed51a51909ee46c780db3a85e821feb2", caption="A green and white rifle.")
    assert any('words "picture mind" on it' in row.caption for row in rows)


@needs_data
def test_hostile_rows_are_kept_whole_or_counted_by_reason():
    rows, dropped = read(DATA / "cap3d_quirks.csv")
    captions = {row.uid[-8:]: row.caption for row in rows}
    assert dropped == {MALFORMED: 4, EMPTY_CAPTION: 4, EMPTY_ID: 1, REFUSAL: 1}
    assert captions["00000001"] == "first line second line of the same caption"
    assert captions["00000002"] == "carriage return inside the caption"
    assert captions["00000014"] == "swallowed by the open quote", "an open quote takes no other row with it"
    assert captions["0000000a"] == "leading and trailing spaces" and captions["00000010"] == "tab inside"
    assert captions["0000000e"] == "café, 椅子, 🪑, rtl", "the character that turns text around is gone"
    assert len(captions["0000000d"]) <= MAX_CAPTION and captions["0000000f"] == "=1+1"
    uids = {row.uid for row in rows}
    assert {"kiDgUIcaC7c4YaIcLCJeq4kS7rK", "kidguicac7c4yaiclcjeq4ks7rk"} <= uids, "case makes another id"
    assert {"12345678901234567890123456789012", "00e10000000000000000000000000000"} <= uids, "ids are texts"
    assert "00000000000000000000000000000009" in uids


def test_five_hostile_rows_are_kept_whole_or_counted(tmp_path: Path):
    """The quirks of Cap3D's file that have bitten, as they stand there."""
    content = (
        'a1,"first line\nsecond line of the ""same"" caption"\n'
        'a2,"opened and never closed\n'
        "a3,swallowed by the open quote\n"
        "A3,caf\u00e9 \u202e\u6905\u5b50\tin tabs  \n"
        "a5,nan\n"
        "a6,too,many,columns\n"
        "0012,  =1+1\n"
    )
    rows, dropped = read_bytes(tmp_path, content.encode())
    assert [(row.uid, row.caption) for row in rows] == [
        ("a1", 'first line second line of the "same" caption'),
        ("a3", "swallowed by the open quote"),
        ("A3", "caf\u00e9 \u6905\u5b50 in tabs"),
        ("0012", "=1+1"),
    ]
    assert dropped == {MALFORMED: 2, EMPTY_CAPTION: 1}


@pytest.mark.parametrize("caption", ["I'm sorry, I cannot describe it.", "As an AI language model, I see a box"])
def test_what_a_captioner_said_in_place_of_a_caption_is_counted(caption: str, tmp_path: Path):
    rows, dropped = read_bytes(tmp_path, f'a,"{caption}"\nb,a sorry box\n'.encode())
    assert [row.uid for row in rows] == ["b"] and dropped == {REFUSAL: 1}


def test_columns_are_named_by_a_header_in_any_order_and_one_without_an_id_is_refused(tmp_path: Path):
    content = b"License,caption,uid,author,path\nCC0-1.0,a fox,fox,Pixel,assets/fox.glb\n"
    rows, dropped = read_bytes(tmp_path, content)
    assert not dropped
    assert rows == [CaptionRow(uid="fox", caption="a fox", path="assets/fox.glb", license="CC0-1.0", author="Pixel")]
    with pytest.raises(ValueError, match="has a header without an id"):
        read_bytes(tmp_path, b"row,caption\n0,a fox\n")


@needs_data
def test_a_header_names_the_columns():
    rows, dropped = read(DATA.parent / "assets.csv")
    fox = next(row for row in rows if row.uid == "fox")
    assert len(rows) == 38 and not dropped
    assert (fox.path, fox.license[:7]) == ("assets/fox.glb", "CC0-1.0") and fox.author.startswith("PixelMannen")


def test_a_front_axis_is_one_of_the_ground_or_keep_and_another_costs_its_row(tmp_path: Path):
    table = "a,x,+Y,+X\nb,x,+Y,-z\nc,x,,Keep\nd,x,Z,-y\ne,x,,\nf,x,+Y,+Y\ng,x,Z,Z\nh,x,,front\n"
    (tmp_path / "t.csv").write_text("uid,caption,up_axis,front_axis\n" + table)
    rows, dropped = read(tmp_path / "t.csv")
    assert {row.uid: row.front_axis for row in rows} == {"a": "+X", "b": "-Z", "c": "keep", "d": "-Y", "e": ""}
    assert dropped == {UNKNOWN_FRONT: 3}


def test_a_front_axis_is_judged_by_the_builds_up_axis_where_its_row_names_none(tmp_path: Path):
    (tmp_path / "t.csv").write_text("uid,caption,front_axis\na,x,+Y\nb,x,-X\nc,x,+Z\nd,x,keep\n")
    dropped: Counter[str] = Counter()
    rows = list(read_captions(tmp_path / "t.csv", dropped, up_axis="+Z"))
    assert {row.uid: row.front_axis for row in rows} == {"a": "+Y", "b": "-X", "d": "keep"}
    assert dropped == {UNKNOWN_FRONT: 1}


def test_an_up_axis_is_read_in_any_case_and_an_unknown_one_costs_its_row(tmp_path: Path):
    axes = {"a": "+Z", "b": "z", "c": "", "d": "+y", "e": "-X"}
    table = "".join(f"{uid},a thing,{axis}\n" for uid, axis in axes.items())
    (tmp_path / "t.csv").write_text("uid,caption,up_axis\n" + table)
    rows, dropped = read(tmp_path / "t.csv")
    assert {row.uid: row.up_axis for row in rows} == {"a": "+Z", "b": "+Z", "c": None, "d": "+Y"}
    assert dropped == {"up axis other than +Y and +Z": 1}


@needs_data
def test_a_header_without_an_id_is_refused():
    with pytest.raises(ValueError, match="has a header without an id"):
        read(DATA / "cap3d_full_captions_by_row.csv")


def test_rows_that_are_no_text_or_have_no_end_cost_only_themselves(tmp_path: Path):
    content = b"a,one\n" + b"b,\xff\xfe\n" + b"c," + b"x" * 200_000 + b"\n" + b"d,two\nnul,x\0y\n" + b'e,"three'
    rows, dropped = read_bytes(tmp_path, content)
    assert [(row.uid, row.caption) for row in rows] == [("a", "one"), ("d", "two"), ("nul", "x y")]
    assert dropped == {NOT_UTF8: 1, TOO_LONG: 1, MALFORMED: 1}


def test_many_quotes_that_are_never_closed_are_passed_in_time(tmp_path: Path):
    content = b"".join(b'%d,"open\n%d,x\n%d,x\n' % (i, i, i) for i in range(3_000))
    rows, dropped = read_bytes(tmp_path, content)
    assert len(rows) + dropped[MALFORMED] >= 6_000 and dropped[MALFORMED] >= 1_000


def test_a_file_without_captions_is_refused_with_what_was_wrong(tmp_path: Path):
    for content, reason in ((b"", "it is empty"), (b"a,\nb,nan\n", "2 x empty caption"), (b"\xff\xfea\0", "malformed")):
        with pytest.raises(ValueError, match=f"holds no usable caption .*{reason}"):
            read_bytes(tmp_path, content)
    with pytest.raises(ValueError, match="there is no caption file"):
        read(tmp_path / "nowhere.csv")


words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


parts = st.lists(words | st.sampled_from(['"', ",", "\n", "\r\n"]), min_size=1, max_size=30)


@given(st.lists(st.tuples(words, parts), min_size=1, max_size=20))
def test_whatever_a_csv_writer_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, pairs: list):
    rows = [(f"id{i}-{uid}", "x " + " ".join(parts)) for i, (uid, parts) in enumerate(pairs)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "captions.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    found, dropped = read(path)
    assert not dropped and [row.uid for row in found] == [uid for uid, _ in rows]
    assert [row.caption for row in found] == [clean_text(caption, MAX_CAPTION) for _, caption in rows]


@pytest.mark.parametrize("row", ["a,red; old; chair;", "a;b,red; old", "a\tred, old, worn; chair", "a;a red chair"])
def test_a_file_without_a_header_is_split_once_per_row(tmp_path: Path, row: str):
    rows, dropped = read_bytes(tmp_path, row.encode())
    assert len(rows) == 1 and not dropped and rows[0].caption.startswith(("red", "a red"))


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.mktemp("csv") / "captions.csv"
    path.write_bytes(content)
    try:
        rows, _ = read(path)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(row.caption.isprintable() and row.caption for row in rows)


TABLE = [("name", "text"), ("chair", "ein gr\u00fcner Stuhl, alt"), ("table", 'a "round" table'), ("lamp", "a lamp")]


def sheet(separator: str, end: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=end).writerows(TABLE)
    return out.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_are_read_as_spreadsheets_write_them(tmp_path: Path, separator: str, end: str, encoding: str):
    rows, dropped = read_bytes(tmp_path, sheet(separator, end).encode(encoding))
    assert [(row.uid, row.caption) for row in rows] == TABLE[1:] and not dropped


def test_a_separator_that_excel_names_is_no_row(tmp_path: Path):
    rows, _ = read_bytes(tmp_path, ("sep=;\r\n" + sheet(";", "\r\n")).encode("utf-8-sig"))
    assert len(rows) == 3


def test_a_file_that_mostly_does_not_apply_is_refused_with_its_first_rows(tmp_path: Path):
    with pytest.raises(ValueError, match=r"3 of 4 rows do not apply; the first: 'b,c,d': malformed row; 'e': malf"):
        read_bytes(tmp_path, b"a,one\nb,c,d\ne\nf,g,h,i\n")
