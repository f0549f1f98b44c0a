"""What a catalog must hold, and how a wrong line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from index_build.catalogs.opening import open_catalog, read_catalog


def record(name: str, **changes: object) -> dict[str, object]:
    return {
        "uid": name,
        "file": f"{name}.glb",
        "caption": f"a {name}",
        "license": "CC0-1.0",
        "author": "someone",
        "source": "test",
        **changes,
    }


def write(folder: Path, *lines: object) -> Path:
    """Write a catalog of records or raw lines, and a mesh file for each of `a`, `b` and `c`."""
    folder.mkdir(exist_ok=True)
    for uid in "abc":
        (folder / f"{uid}.glb").write_bytes(b"mesh")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "catalog.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


def test_assets_are_read_in_the_catalogs_order_with_all_that_it_says_of_them(tmp_path: Path):
    assets = read_catalog(write(tmp_path / "c", record("b", caption="ein Vögelchen"), record("a", extra=1)))
    assert [asset.asset_id for asset in assets] == ["b", "a"]
    first = assets[0]
    assert (first.caption, first.license, first.author, first.source) == ("ein Vögelchen", "CC0-1.0", "someone", "test")
    assert Path(first.mesh_path) == (tmp_path / "c" / "b.glb").resolve() and Path(first.mesh_path).is_absolute()


def test_the_truth_beside_a_catalog_is_not_read(tmp_path: Path):
    folder = write(tmp_path / "c", record("a"))
    without = read_catalog(folder)
    (folder / "truth.json").write_text("{ not json")
    assert read_catalog(folder) == without


def test_line_separators_inside_a_caption_do_not_split_the_line(tmp_path: Path):
    line = json.dumps(record("a", caption="one\u2028two\u0085three"), ensure_ascii=False)
    assert read_catalog(write(tmp_path / "c", line))[0].caption == "one\u2028two\u0085three"


@pytest.mark.parametrize(
    ("second_line", "complaint"),
    [
        (record("a"), "'a' occurs twice"),
        (record("b", file="nowhere.glb"), "'nowhere.glb' does not exist"),
        (record("b", file="../outside.glb"), "outside"),
        (record("b", file="/etc/hostname"), "outside"),
        (record("b", file=""), "'file' is empty"),
        (record("b", caption="  "), "'caption' is empty"),
        (record("b", caption=None), "'caption' is None"),
        ({k: v for k, v in record("b").items() if k != "license"}, "'license' is None"),
        (record("b", uid=7), "'uid' is 7"),
        ("{ not json", "not JSON"),
        ("[1, 2]", "not an object"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(tmp_path: Path, second_line: object, complaint: str):
    (tmp_path / "outside.glb").write_bytes(b"mesh")
    folder = write(tmp_path / "c", record("a"), "", second_line)
    with pytest.raises(ValueError, match="catalog.jsonl line 3: ") as refusal:
        read_catalog(folder)
    assert complaint in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    folder = write(tmp_path / "c", record("d"))
    (tmp_path / "outside.glb").write_bytes(b"mesh")
    (folder / "d.glb").symlink_to(tmp_path / "outside.glb")
    with pytest.raises(ValueError, match="outside"):
        read_catalog(folder)


def test_a_folder_without_a_catalog_and_an_empty_catalog_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no catalog\.jsonl"):
        read_catalog(tmp_path)
    with pytest.raises(ValueError, match="lists no assets"):
        read_catalog(write(tmp_path / "c", ""))


def test_a_folder_with_a_catalog_of_its_own_is_read_as_such(tmp_path: Path):
    folder = write(tmp_path / "c", record("a"), record("b", license="CC-BY-NC-4.0"))
    catalog = open_catalog(str(folder), cache_dir=tmp_path / "cache")
    assert list(catalog.assets) == read_catalog(folder) and catalog.dropped == {}
    assert catalog.digest(catalog.assets[0]) == catalog.digest(catalog.assets[1]), "both hold the same bytes"
    (folder / "b.glb").write_bytes(b"another mesh")
    assert catalog.digest(catalog.assets[0]) != catalog.digest(catalog.assets[1])
    filtered = open_catalog(str(folder), None, ("cc0",), cache_dir=tmp_path / "cache")
    assert [asset.asset_id for asset in filtered.assets] == ["a"] and filtered.dropped == {"license by-nc": 1}
    with pytest.raises(ValueError, match=r"has captions of its own; leave x\.csv out"):
        open_catalog(str(folder), "x.csv")


def test_what_is_no_catalog_is_refused_with_what_there_could_be(tmp_path: Path):
    with pytest.raises(ValueError, match="give objaverse, mini, or a folder of meshes"):
        open_catalog(str(tmp_path / "nowhere"))


def test_the_miniature_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("index_build.catalogs.opening.VARIANTS_PER_PAIR", 1)
    first = open_catalog("mini", cache_dir=tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("mini-*/assets/*")}
    assert len(first.assets) == len(stamps) == 128 and Path(first.root).parent == tmp_path
    assert open_catalog("mini", None, ("cc0",), cache_dir=tmp_path).assets == first.assets
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("mini-*/assets/*")}
    assert [path.name for path in tmp_path.iterdir()] == [Path(first.root).name], "nothing is left aside"
