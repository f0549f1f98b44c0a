"""A folder of meshes: which files are assets, what they are called, and why the others are none."""

from __future__ import annotations

import csv
import json
import os
import struct
from pathlib import Path

import pytest

from index_build.catalogs.catalog import Catalog
from index_build.catalogs.folder import words_of
from index_build.catalogs.opening import open_catalog

DATA = Path(__file__).parents[3] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")


def glb(**asset: object) -> bytes:
    text = json.dumps({"asset": {"version": "2.0", **asset}}).encode()
    return b"glTF" + struct.pack("<III", 2, 20 + len(text), len(text)) + b"JSON" + text


def make(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def open_it(folder: Path, captions: Path | None = None, *licenses: str) -> Catalog:
    name = str(captions) if captions else None
    return open_catalog(str(folder), name, licenses, cache_dir=folder.parent / "cache")


def captions_of(catalog: Catalog) -> dict[str, str]:
    return {asset.asset_id: asset.caption for asset in catalog.assets}


def test_every_kind_of_mesh_is_found_in_any_case_and_depth_and_named_by_its_path(tmp_path: Path):
    folder = make(
        tmp_path / "m",
        b_dot_GLB=glb(),
        a_dot_obj=b"v",
        sub__c_dot_ply=b"ply",
        sub__deep__d_dot_stl=b"solid",
        e_dot_gltf=b"{}",
        f_dot_bin=b"x",
        g_dot_png=b"x",
    )
    catalog = open_it(folder)
    assert [a.asset_id for a in catalog.assets] == ["a.obj", "b.GLB", "e.gltf", "sub/c.ply", "sub/deep/d.stl"]
    assert all(Path(asset.mesh_path).is_file() and Path(asset.mesh_path).is_absolute() for asset in catalog.assets)
    assert catalog.dropped == {} and catalog.root == str(folder.resolve())


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("props/RedTruck_v2.glb", "red truck v2"),
        ("red-truck/scene.gltf", "red truck"),
        ("scene.gltf", "scene"),
        ("tennis-racquet.obj", "tennis racquet"),
        ("Старый_дом.glb", "старый дом"),
        ("___.glb", ""),
    ],
)
def test_a_file_name_is_read_as_words(file: str, words: str):
    assert words_of(file) == words


def test_a_caption_comes_from_the_csv_else_from_the_file_else_from_its_name(tmp_path: Path):
    extras = {"title": "Bike", "author": "Oliver", "license": "CC-BY-4.0 (http://...)", "source": "https://x/bike"}
    folder = make(
        tmp_path / "m",
        one_dot_glb=glb(extras=extras),
        two_dot_glb=glb(extras={**extras, "caption": "a  red\nbike"}),
        three_dot_glb=glb(extras=extras),
        four_dot_glb=glb(copyright="CC-BY 4.0 by Ada"),
        plain_chair_dot_obj=b"v",
    )
    (tmp_path / "captions.csv").write_text("three,a bicycle from the table\n")
    catalog = open_it(folder, tmp_path / "captions.csv")
    by_caption = {asset.caption: asset for asset in catalog.assets}
    assert set(by_caption) == {"Bike", "a red bike", "a bicycle from the table", "four", "plain chair"}
    assert by_caption["Bike"].author == "Oliver" and by_caption["Bike"].source == "https://x/bike"
    assert by_caption["a bicycle from the table"].asset_id == "three"
    assert by_caption["a bicycle from the table"].license == extras["license"], "the file's, where the table has none"
    assert by_caption["four"].license == "CC-BY 4.0 by Ada" and by_caption["plain chair"].source == "plain_chair.obj"


@pytest.mark.parametrize("name", ["chair", "chair.glb", "sub/chair", "sub/chair.glb"])
def test_cap3ds_form_names_a_file_by_its_name_or_path(tmp_path: Path, name: str):
    folder = make(tmp_path / "m", sub__chair_dot_glb=glb())
    (tmp_path / "captions.csv").write_text(f"{name},a chair\nnowhere,a table\n")
    catalog = open_it(folder, tmp_path / "captions.csv")
    assert captions_of(catalog) == {name: "a chair"} and catalog.dropped == {"caption of no file": 1}


def test_rows_that_fit_several_files_or_one_file_twice_are_counted(tmp_path: Path):
    folder = make(tmp_path / "m", a__chair_dot_glb=glb(), b__chair_dot_glb=glb())
    (tmp_path / "captions.csv").write_text("chair,which\na/chair,first\na/chair.glb,second\nb/chair.glb,other\n")
    catalog = open_it(folder, tmp_path / "captions.csv")
    assert captions_of(catalog) == {"a/chair": "first", "b/chair.glb": "other"}
    assert catalog.dropped == {"caption of several files": 1, "second caption of a file": 1}


def test_a_bare_name_in_the_path_column_is_found_in_any_folder(tmp_path: Path):
    folder = make(tmp_path / "meshes", sub__chair_dot_glb=b"x", lamp_dot_stl=b"x")
    captions = tmp_path / "captions.csv"
    captions.write_text("path,caption,uid\nchair.glb,a chair,one\nlamp,a lamp,two\n")
    assert captions_of(open_it(folder, captions)) == {"one": "a chair", "two": "a lamp"}


def test_captions_that_match_no_file_are_named_with_the_nearest(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    right = {f"thing{number}_dot_glb": b"x" for number in range(3)}  # a table of which most rows are wrong is refused
    folder = make(tmp_path / "meshes", chair_dot_glb=b"x", a__cup_dot_glb=b"x", b__cup_dot_glb=b"x", **right)
    captions = tmp_path / "captions.csv"
    rows = "".join(f"thing{number}.glb,a thing\n" for number in range(3))
    captions.write_text(f"path,caption\n{rows}chiar.glb,a chair\ncup.glb,a cup\nzebra.obj,a zebra\n")
    open_it(folder, captions)
    assert caplog.messages == [
        "a caption of 'chiar.glb' is left out: there is no such file; did you mean chair.glb?",
        "a caption of 'cup.glb' is left out: that could be a/cup.glb or b/cup.glb",
        "a caption of 'zebra.obj' is left out: there is no such file",
    ]


def test_two_files_never_share_an_id(tmp_path: Path):
    folder = make(tmp_path / "m", a_dot_glb=glb(), b_dot_glb=glb())
    (tmp_path / "captions.csv").write_text("uid,path,caption\nx,a.glb,one\nx,b.glb,two\n")
    catalog = open_it(folder, tmp_path / "captions.csv")
    assert captions_of(catalog) == {"x": "one"} and catalog.dropped == {"id of another file": 1}


@pytest.mark.parametrize(
    "path", ["sub\\chair.glb", "SUB/Chair.glb", ".\\sub\\chair.glb", "C:\\data\\chair.glb", "/home/me/chair.glb"]
)
def test_a_path_of_another_system_names_its_file(tmp_path: Path, path: str):
    folder = make(tmp_path / "m", sub__chair_dot_glb=glb())
    (tmp_path / "captions.csv").write_text(f"path;caption\n{path};a chair\n")
    assert captions_of(open_it(folder, tmp_path / "captions.csv")) == {"sub/chair.glb": "a chair"}


def test_a_table_that_names_other_files_is_refused_with_its_first_rows(tmp_path: Path):
    folder = make(tmp_path / "m", a_dot_glb=glb())
    (tmp_path / "captions.csv").write_text("name,text\na,one\nb,two\nc,three\n")
    with pytest.raises(ValueError, match="2 of 3 rows do not apply; the first: 'b': caption of no file; 'c'"):
        open_it(folder, tmp_path / "captions.csv")


def test_paths_of_the_csv_are_never_followed(tmp_path: Path):
    (tmp_path / "secret.glb").write_bytes(glb())
    folder = make(tmp_path / "m", a_dot_glb=glb(), b_dot_glb=glb(), c_dot_glb=glb())
    rows = "path,caption\n../secret.glb,x\n/etc/passwd,x\n" + f"{tmp_path}/secret.glb,x\n" + "../m/a.glb,a fine chair\n"
    rows += "b.glb,b\nC.GLB,c\n"
    (folder / "captions.csv").write_text(rows)
    catalog = open_it(folder, folder / "captions.csv")
    assert captions_of(catalog) == {"a.glb": "a fine chair", "b.glb": "b", "c.glb": "c"}
    assert catalog.dropped == {"caption of no file": 3}


def test_what_looks_like_a_mesh_and_is_not_used_is_counted(tmp_path: Path):
    outside = make(tmp_path / "outside", x_dot_glb=glb())
    folder = make(
        tmp_path / "m",
        good_dot_glb=glb(),
        empty_dot_glb=b"",
        _dot_hidden_dot_glb=glb(),
        _dot_git__x_dot_glb=glb(),
    )
    (folder / "out.glb").symlink_to(outside / "x.glb")
    (folder / "twice.glb").symlink_to(folder / "good.glb")
    (folder / "broken.glb").symlink_to(folder / "nowhere.glb")
    (folder / "loop.glb").symlink_to(folder / "loop.glb")
    (folder / "linked").symlink_to(outside)
    (folder / "store.dat").write_bytes(glb())
    (folder / "stored.glb").symlink_to(folder / "store.dat")
    (folder / "new\nline.glb").write_bytes(glb())
    (folder / "folder.glb").mkdir()
    os.mkfifo(folder / "pipe.glb")
    catalog = open_it(folder)
    assert [asset.asset_id for asset in catalog.assets] == ["good.glb", "stored.glb"]
    assert catalog.dropped == {
        "empty file": 1,
        "hidden file": 1,
        "hidden folder": 1,
        "linked folder": 1,
        "link out of the folder": 1,
        "link to a file that is listed": 1,
        "broken link": 2,
        "unprintable name": 1,
        "no regular file": 1,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_files_and_folders_without_permission_are_counted(tmp_path: Path):
    folder = make(tmp_path / "m", good_dot_glb=glb(), locked_dot_glb=glb(), shut__x_dot_glb=glb())
    (folder / "locked.glb").chmod(0)
    (folder / "shut").chmod(0)
    try:
        catalog = open_it(folder)
    finally:
        (folder / "shut").chmod(0o755)
    assert len(catalog.assets) == 1 and catalog.dropped == {"unreadable file": 1, "unreadable folder": 1}


def test_licences_filter_and_are_counted(tmp_path: Path):
    folder = make(tmp_path / "m", a_dot_glb=glb(extras={"license": "CC0-1.0"}), b_dot_glb=glb())
    catalog = open_it(folder, None, "cc0", "by")
    assert [asset.asset_id for asset in catalog.assets] == ["a.glb"] and catalog.dropped == {"license unknown": 1}


def test_an_id_stays_when_a_file_changes_and_its_digest_does_not(tmp_path: Path):
    folder = make(tmp_path / "m", a_dot_glb=glb(), b_dot_glb=glb())
    before = open_it(folder)
    make(folder, a_dot_glb=glb(generator="another"), c_dot_glb=glb())
    (folder / "b.glb").rename(folder / "d.glb")
    after = open_it(folder)
    assert [asset.asset_id for asset in after.assets] == ["a.glb", "c.glb", "d.glb"]
    digests = {asset.asset_id: after.digest(asset) for asset in after.assets}
    assert digests["a.glb"] != digests["c.glb"] == digests["d.glb"]
    assert before.digest(before.assets[0]) == digests["a.glb"], "asked for late, a digest is of what is there"


def test_an_up_axis_that_no_table_names_is_the_one_asked_for(tmp_path: Path):
    folder = make(tmp_path / "m", tower_dot_stl=b"solid", lamp_dot_stl=b"solid")
    (tmp_path / "t.csv").write_text("uid,caption,up_axis\ntower,a tower,\nlamp,a lamp,+Y\n")
    catalog = open_catalog(str(folder), str(tmp_path / "t.csv"), cache_dir=tmp_path / "cache", up_axis="+Z")
    assert {asset.asset_id: asset.up_axis for asset in catalog.assets} == {"tower": "+Z", "lamp": "+Y"}


def test_a_folder_without_meshes_is_refused_with_what_was_found(tmp_path: Path):
    folder = make(tmp_path / "m", empty_dot_glb=b"")
    with pytest.raises(ValueError, match=r"has no asset to index \(1 x empty file\)"):
        open_it(folder)


@needs_data
def test_every_real_asset_is_found_with_its_row(tmp_path: Path):
    catalog = open_catalog(str(DATA / "assets"), str(DATA / "assets.csv"), cache_dir=tmp_path)
    with (DATA / "assets.csv").open(newline="") as file:
        rows = {row["uid"]: row for row in csv.DictReader(file)}
    assert len(catalog.assets) == 38 and catalog.dropped == {}
    for asset in catalog.assets:
        row = rows[asset.asset_id]
        assert (asset.caption, asset.license, asset.author) == (row["caption"], row["licence"], row["attribution"])
        assert Path(asset.mesh_path).samefile(DATA / row["path"])
        assert asset.up_axis == row["up_axis"]
    by_form = open_catalog(str(DATA / "assets"), str(DATA / "captions/assets_cap3d_format.csv"), cache_dir=tmp_path)
    assert captions_of(by_form) == captions_of(catalog)
    assert len({catalog.digest(asset) for asset in catalog.assets}) == 38


@needs_data
def test_hostile_files_break_nothing_before_they_are_opened(tmp_path: Path):
    catalog = open_catalog(str(DATA / "bad"), cache_dir=tmp_path)
    assert len(catalog.assets) > 50 and all(asset.caption.isprintable() for asset in catalog.assets)
    assert all(catalog.digest(asset) for asset in catalog.assets)
