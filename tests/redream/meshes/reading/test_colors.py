"""Every spelling of a colour that other programs write gives that colour, or one warning that names the line."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals

from benchmarks.fuzz_gltf_types import rich_gltf
from redream.meshes.assets import load_mesh, named_files, scene_parts
from redream.meshes.reading.folder import Folder
from redream.meshes.reading.folder import named_files as find_named
from redream.meshes.reading.names import Named
from redream.settings import MeshLimits

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 1\nvt 0 0\nvt 1 0\nvt 0 1\n"
RED = (250, 10, 20)


def write(folder: Path, obj: str, mtl: str = "", picture: str = "red.png") -> Path:
    """Write a mesh in a folder of its own, its material, and a red picture."""
    (folder / "asset").mkdir(exist_ok=True)
    (folder / "asset" / "a.obj").write_text(obj)
    (folder / "asset" / "a.mtl").write_text(mtl)
    place = folder / "asset" / picture
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), RED).save(place, format="png")
    return folder / "asset" / "a.obj"


def textured(line: str) -> tuple[str, str]:
    return f"mtllib a.mtl\nusemtl paint\n{TRIANGLE}f 1/1 2/2 3/3\n", f"newmtl paint\nKd 1 1 1\n{line}\n"


def visual(path: Path, **options: Any) -> Any:
    return scene_parts(load_mesh(path, **options))[0][0].visual


@pytest.mark.parametrize(
    ("line", "picture"),
    [
        ("map_Kd red.png", "red.png"),
        ("map_Kd -s 1 1 1 red.png", "red.png"),
        ("map_Kd -o 0.5 -s 1 1 -blendu on -bm 0.2 -clamp on my red.png", "my red.png"),
        ("map_Kd -mm 0 1 red.png", "red.png"),
        ('map_Kd "my red.png"', "my red.png"),
        ("map_Kd .\\red.png", "red.png"),
        ("map_Kd textures\\red.png", "textures/red.png"),
        ("map_Kd RED.PNG", "red.png"),
        ("map_Kd Textures/Red.png", "textures/red.PNG"),
        ("map_Kd C:\\Users\\me\\red.png", "red.png"),
        ("map_Kd /home/me/red.png", "red.png"),
        ("map_kd red.png", "red.png"),
        ("map_Kd ../textures/red.png", "../textures/red.png"),
        ("map_Kd ..\\textures\\red.png", "../textures/red.png"),
        ("map_Kd -1.png", "-1.png"),
        ("map_Kd caf\u00e9.png", "cafe\u0301.png"),
    ],
)
def test_a_picture_is_found_by_every_spelling_and_taken_along(
    tmp_path: Path, line: str, picture: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, *textured(line), picture)
    assert visual(path).material.image.getpixel((0, 0)) == RED
    assert caplog.text == ""
    assert [file.resolve() for file in named_files(path)][2:] == [(tmp_path / "asset" / picture).resolve()]


@pytest.mark.parametrize("line", ["map_Kd ../../red.png", "map_Kd ../textures/../../red.png", "map_Kd ../note.png"])
def test_nothing_beyond_the_border_and_nothing_but_pictures_is_read_outside(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "note.png").write_text("a secret")
    Image.new("RGB", (4, 4), RED).save(tmp_path / "red.png")
    path = write(tmp_path / "inner", *textured(line))
    assert visual(path).material.image is None
    assert "a.mtl line 3" in caplog.text
    assert [file.name for file in named_files(path)] == ["a.obj", "a.mtl"]


def test_the_root_of_a_catalog_is_the_border_of_its_pictures(tmp_path: Path) -> None:
    path = write(tmp_path, *textured("map_Kd ../../textures/red.png"), "../../textures/red.png")
    assert visual(path, border=str(tmp_path.parent)).material.image.getpixel((0, 0)) == RED
    beside = write(tmp_path, *textured("map_Kd ../red.png"), "../red.png")
    assert visual(beside, border=str(tmp_path / "asset")).material.image is None
    assert len(named_files(beside, border=str(tmp_path / "asset"))) == 2


def test_looking_for_thousands_of_names_ends_soon(tmp_path: Path) -> None:
    """Each would list its folder for another case, and each library name as many again."""
    for number in range(3_000):
        (tmp_path / f"{number}.png").touch()
    libraries = [Named("library", (" ".join(f"A{row}-{word}.mtl" for word in range(100)),)) for row in range(1_000)]
    (tmp_path / "a.obj").touch()
    started = time.process_time()
    assert find_named(tmp_path / "a.obj", lambda path: libraries) == [tmp_path / "a.obj"]
    assert time.process_time() - started < 5  # 0.5 on an idle machine


def test_one_mesh_has_no_more_files_than_any_mesh_needs(tmp_path: Path) -> None:
    """Libraries that name each other's pictures by the thousand cost a bounded number of looks and readings."""
    read: list[Path] = []

    def names(path: Path) -> list[Named]:
        read.append(path)
        return [Named("library", (f"{number}.mtl",)) for number in range(100)]

    for number in range(100):
        (tmp_path / f"{number}.mtl").touch()
    (tmp_path / "a.obj").touch()
    assert len(find_named(tmp_path / "a.obj", names)) == 101
    assert len(read) <= 65


@pytest.mark.parametrize(
    "line", ["mtllib a.mtl b.mtl", "mtllib b.mtl\nmtllib a.mtl", "mtllib A.MTL", "mtllib .\\a.mtl"]
)
def test_all_libraries_are_read(tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, f"{line}\nusemtl paint\n{TRIANGLE}f 1/1 2/2 3/3\n", "newmtl paint\nKd 1 0 0\n")
    (path.parent / "b.mtl").write_text("newmtl other\nKd 0 1 0\n")
    assert visual(path).material.diffuse.tolist() == [255, 0, 0, 255]
    assert caplog.text == ""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_library_of_any_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, f"mtllib a.mtl\nusemtl Wei\u00df\n{TRIANGLE}f 1/1 2/2 3/3\n")
    (path.parent / "a.mtl").write_bytes("newmtl Wei\u00df\r\nKd 1 0 0\r\n".encode(encoding))
    assert visual(path).material.diffuse.tolist() == [255, 0, 0, 255]


def test_a_material_that_no_library_has_is_said_once_with_its_line_and_drawn_grey(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faces = "usemtl Lost\nf 1/1 2/2 3/3\nusemtl Gone\nf 1/1 3/3 2/2\nusemtl PAINT\nf 1/1 2/2 3/3\n"
    path = write(tmp_path, f"mtllib a.mtl\n{TRIANGLE}{faces}", "newmtl paint\nKd 0 0 1\n")
    kinds = sorted(str(getattr(mesh.visual, "kind", "")) for mesh, _ in scene_parts(load_mesh(path)))
    assert kinds == ["None", "texture"]
    assert len(caplog.records) == 1
    assert "line 8: no library here has the material 'Lost', 'Gone'" in caplog.text


def test_a_library_that_is_not_here_is_said_with_its_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, f"# made by hand\nmtllib lost.mtl\n{TRIANGLE}f 1/1 2/2 3/3\n")
    assert visual(path).kind is None
    assert "line 2: its materials 'lost.mtl' are not here" in caplog.text


@pytest.mark.parametrize(
    ("mtl", "diffuse"),
    [("newmtl paint\nmap_Kd red.png\n", [255, 255, 255, 255]), ("newmtl paint\nKd 0.2\n", [51, 51, 51, 255])],
)
def test_what_a_material_leaves_out_is_no_dark_grey(tmp_path: Path, mtl: str, diffuse: list[int]) -> None:
    path = write(tmp_path, textured("")[0], mtl)
    assert visual(path).material.diffuse.tolist() == diffuse


@pytest.mark.parametrize(
    "obj", [f"{TRIANGLE}f 1/1 2/2 3/3\n", f"mtllib a.mtl\nusemtl paint\n{TRIANGLE}f 1/1 2/2 3/3\n"]
)
def test_texture_coordinates_without_a_material_have_the_neutral_grey(tmp_path: Path, obj: str) -> None:
    path = write(tmp_path, obj, "newmtl paint\nNs 10\n")
    assert visual(path).kind is None


@pytest.mark.parametrize("names", ["red green blue", "diffuse_red diffuse_green diffuse_blue", "r g b"])
@pytest.mark.parametrize("kind", ["uchar", "float"])
def test_colours_of_ply_have_many_names(tmp_path: Path, names: str, kind: str) -> None:
    properties = "".join(f"property {kind} {name}\n" for name in names.split())
    color = "255 0 51" if kind == "uchar" else "1.0 0.0 0.2"
    corners = "".join(f"{place} {color}\n" for place in ("0 0 0", "1 0 0", "0 1 0"))
    (tmp_path / "a.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        f"{properties}element face 1\nproperty list uchar int vertex_indices\nend_header\n{corners}3 0 1 2\n"
    )
    assert visual(tmp_path / "a.ply").vertex_colors[0].tolist() == [255, 0, 51, 255]


def stl(header: bytes, bits: list[int]) -> bytes:
    faces = b"".join(
        struct.pack("<12fH", *np.ravel([[0, 0, 1], [0, 0, i], [1, 0, i], [0, 1, i]]), b) for i, b in enumerate(bits)
    )
    return header.ljust(80, b" ") + struct.pack("<I", len(bits)) + faces


@pytest.mark.parametrize(
    ("header", "bits", "colors"),
    [
        (b"VisCAM", [0x8000 | 31 << 10, 0x8000 | 31], [(255, 0, 0), (0, 0, 255)]),
        (b"VisCAM", [0x8000 | 31 << 10, 0], [(255, 0, 0), (179, 179, 179)]),
        (b"COLOR=\xff\x80\x00\xff", [31, 0x8000], [(255, 0, 0), (255, 128, 0)]),
        (b"COLOR=\xff\x80\x00\xff", [0, 0], [(255, 128, 0), (255, 128, 0)]),
    ],
)
def test_colours_of_stl_are_read_in_both_dialects(tmp_path: Path, header: bytes, bits: list[int], colors: list) -> None:
    (tmp_path / "a.stl").write_bytes(stl(header, bits))
    assert [tuple(color[:3].tolist()) for color in visual(tmp_path / "a.stl").face_colors] == colors


def test_stl_without_colours_has_the_neutral_grey(tmp_path: Path) -> None:
    (tmp_path / "a.stl").write_bytes(stl(b"plain", [0, 0]))
    assert visual(tmp_path / "a.stl").kind is None


@pytest.mark.parametrize("name", ["../pipe.png", "x" * 300, "\ud800.png"])
def test_a_name_that_no_picture_can_have_is_left_out_and_nobody_waits(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "mesh").mkdir()
    folder = Folder(tmp_path / "mesh" / "a.obj", MeshLimits(), tmp_path)
    assert folder.files(Named("picture", (name,))) == []


@pytest.mark.parametrize("suffix", ["obj", "ply", "gltf"])
def test_texture_coordinates_without_a_material_look_like_none(tmp_path: Path, suffix: str):
    path = tmp_path / f"mapped.{suffix}"
    if suffix == "gltf":
        tree = rich_gltf()
        primitive = tree["meshes"][0]["primitives"][0]
        del primitive["material"], primitive["attributes"]["COLOR_0"]
        path.write_text(json.dumps(tree))
    elif suffix == "obj":
        path.write_text(f"{TRIANGLE}f 1/1 2/2 3/3\n")
    else:
        box = trimesh.creation.box()
        box.visual = TextureVisuals(uv=np.random.default_rng(0).random((len(box.vertices), 2)))
        box.export(path)
    assert isinstance(visual(path), ColorVisuals) and not visual(path).defined
