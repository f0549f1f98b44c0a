"""A digest changes when the mesh or a file that it names changes, and only then."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from index_build.catalogs.digests import FileDigest
from redream.meshes.reading import client
from redream.meshes.reading.refusal import ReaderFailed
from redream.records import Asset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A glTF with its buffer and texture, and an OBJ with its material and texture, all settled long ago."""
    folder = tmp_path / "meshes"
    (folder / "maps").mkdir(parents=True)
    names = {"buffers": [{"uri": "chair%20a.bin"}, {"uri": "data:,x"}], "images": [{"uri": "maps/wood.png"}]}
    contents = {
        "chair.gltf": json.dumps(names),
        "chair a.bin": "numbers",
        "maps/wood.png": "pixels",
        "table.obj": "# a table\nmtllib table.mtl\nv 0 0 0\n",
        "table.mtl": "newmtl top\nmap_Kd -s 1 1 1 maps/stone.png\n",
        "maps/stone.png": "stone",
        "other.png": "named by nobody",
    }
    for name, text in contents.items():
        write(folder / name, text)
    return folder


def write(path: Path, text: str, seconds_ago: float = 60.0) -> None:
    path.write_text(text)
    then = time.time() - seconds_ago
    os.utime(path, (then, then))


def digests(folder: Path) -> dict[str, str]:
    digest = FileDigest(folder=str(folder), cache=str(folder.parent / "cache" / "digests.sqlite"))
    return {
        name: digest(Asset(asset_id=name, mesh_path=str(folder / name), caption="", source="", license=""))
        for name in ("chair.gltf", "table.obj")
    }


@pytest.mark.parametrize(
    ("changed", "follows"),
    [
        ("chair.gltf", {"chair.gltf"}),
        ("chair a.bin", {"chair.gltf"}),
        ("maps/wood.png", {"chair.gltf"}),
        ("table.obj", {"table.obj"}),
        ("table.mtl", {"table.obj"}),
        ("maps/stone.png", {"table.obj"}),
        ("other.png", set()),
    ],
)
def test_a_change_changes_the_digests_of_the_meshes_that_name_the_file(folder: Path, changed: str, follows: set[str]):
    before = digests(folder)
    assert digests(folder) == before
    write(folder / changed, (folder / changed).read_text() + " ", seconds_ago=30)
    after = digests(folder)
    assert {name for name in before if before[name] != after[name]} == follows


def test_a_file_that_was_changed_just_now_is_hashed_each_time(folder: Path):
    write(folder / "maps/wood.png", "pixels", seconds_ago=-600)  # later than now: no clock here can settle it
    stat = (folder / "maps/wood.png").stat()
    before = digests(folder)
    (folder / "maps/wood.png").write_text("PIXELS")
    os.utime(folder / "maps/wood.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digests(folder)["chair.gltf"] != before["chair.gltf"]


def test_what_was_hashed_is_not_read_again(folder: Path):
    before = digests(folder)
    stat = (folder / "maps/wood.png").stat()
    (folder / "maps/wood.png").write_text("PIXELS")
    os.utime(folder / "maps/wood.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digests(folder) == before, "size and time stand for the content, once they have settled"
    (folder.parent / "cache" / "digests.sqlite").unlink()
    assert digests(folder)["chair.gltf"] != before["chair.gltf"]


def test_what_a_killed_reader_could_not_tell_is_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = client._ask

    def killed(*_: object) -> bytes:
        raise ReaderFailed("table.obj could not be read.")

    monkeypatch.setattr(client, "_ask", killed)
    blind = digests(folder)
    monkeypatch.setattr(client, "_ask", asked)
    seeing = digests(folder)
    write(folder / "maps/stone.png", "other stone", seconds_ago=30)
    assert digests(folder)["table.obj"] != seeing["table.obj"] != blind["table.obj"]


def test_a_damaged_memory_is_forgotten(folder: Path):
    before = digests(folder)
    (folder.parent / "cache" / "digests.sqlite").write_bytes(b"no database" * 999)
    assert digests(folder) == before


def test_a_file_that_comes_or_goes_changes_the_digest_of_what_names_it(folder: Path):
    before = digests(folder)
    (folder / "maps/wood.png").rename(folder / "maps/gone.png")
    without = digests(folder)
    assert without["chair.gltf"] != before["chair.gltf"] and without["table.obj"] == before["table.obj"]
    (folder / "maps/gone.png").rename(folder / "maps/wood.png")
    assert digests(folder) == before


@pytest.mark.parametrize(
    "uri", ["../secret.txt", "/etc/hostname", "..%2Fsecret.txt", "link.txt", "maps/../../secret.txt"]
)
def test_files_outside_the_folder_are_not_read_whatever_names_them(folder: Path, uri: str):
    write(folder.parent / "secret.txt", "one")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    write(folder / "chair.gltf", json.dumps({"buffers": [{"uri": uri}]}))
    before = digests(folder)
    write(folder.parent / "secret.txt", "two", seconds_ago=30)
    assert digests(folder) == before


def test_files_that_name_each_other_end(folder: Path):
    write(folder / "table.mtl", "map_Kd table.obj\nmap_Ks table.mtl\n")
    assert digests(folder)["table.obj"]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"buffers": 7, "images": [7, {"uri": 7}]}', "[" * 100_000],
    ids=["cut", "list", "types", "deep"],
)
def test_a_gltf_file_may_hold_anything(folder: Path, text: str):
    write(folder / "chair.gltf", text)
    first = digests(folder)["chair.gltf"]
    write(folder / "chair.gltf", text + " ", seconds_ago=30)
    assert digests(folder)["chair.gltf"] != first
