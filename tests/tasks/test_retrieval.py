"""Retrieval outputs stand on their own: a mesh takes along the files that it names, and nothing from elsewhere."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from prefect.client.schemas.objects import State

from redream.meshes.assets import load_mesh, named_files
from redream.presets import mini
from redream.records import Asset, Neighbor, Retrieval
from redream.settings import DownloadConfig, MeshLimits
from tasks.machinery.store import Output
from tasks.retrieval import OWN_LICENSE, fetch_meshes, load_retrieval, remarks, take_assets
from tasks.runs.run import Run
from tests.index_build.hostile_server import content as answer_of
from tests.index_build.hostile_server import serving


def taken(run: Run, *paths: Path) -> Output:
    got: Any = take_assets.fn(run, [str(path) for path in paths], MeshLimits())
    return got.result() if isinstance(got, State) else got


@pytest.fixture
def gltf(tmp_path: Path) -> Path:
    """A glTF with its buffer in a file of its own."""
    folder = tmp_path / "my model"
    folder.mkdir()
    files: Any = trimesh.Scene(trimesh.creation.box()).export(file_type="gltf")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / "model.gltf"


@pytest.fixture
def obj(tmp_path: Path) -> Path:
    folder = tmp_path / "textured"
    folder.mkdir()
    (folder / "box.obj").write_text("mtllib a box.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n")
    (folder / "a box.mtl").write_text("newmtl m\nmap_Kd -s 1 1 1 wood.png\n")
    Image.fromarray(np.full((4, 4, 3), 99, dtype=np.uint8)).save(folder / "wood.png")
    return folder / "box.obj"


def neighbor_of(caption: str) -> dict[str, Any]:
    return {"asset": {"asset_id": "a", "caption": caption}}


def found(*neighbors: dict[str, Any], weak: tuple[dict[str, Any], ...] = ()) -> Any:
    return SimpleNamespace(result={"neighbors": list(neighbors), "weak": list(weak)})


def test_a_color_that_differs_from_the_assets_is_said_with_the_setting_that_decides() -> None:
    (line,) = remarks(found(neighbor_of("a red truck")), "a blue truck", mini())
    assert "red" in line and "blue" in line and "distill.delta_weight" in line and "0.3" in line
    for prompt in ("a red truck", "a truck", "a red and blue truck"):
        assert remarks(found(neighbor_of("a red truck")), prompt, mini()) == []


def test_that_nothing_fits_is_said_with_the_nearest_and_how_to_take_it() -> None:
    (line,) = remarks(found(weak=(neighbor_of("a red truck"),)), "a piano", mini())
    assert "a, 'a red truck'" in line and "--use" in line and "vsd" in line
    assert len(remarks(found(), "a piano", mini())) == 1


def test_own_mesh_stands_on_the_axis_that_was_asked_for(run: Run, obj: Path) -> None:
    got: Any = take_assets.fn(run, [str(obj)], MeshLimits(), "+Z")
    assert load_retrieval(got).neighbors[0].asset.up_axis == "+Z"


def test_a_glb_takes_its_textures_along(tmp_path: Path) -> None:
    folder = tmp_path / "glb"
    (folder / "Textures").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(folder / "Textures" / "my paint.png")
    tree = json.dumps({"asset": {"version": "2.0"}, "images": [{"uri": "Textures/my%20paint.png"}, {"uri": "data:,"}]})
    tree += " " * (-len(tree) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(tree), len(tree), b"JSON")
    (folder / "model.glb").write_bytes(head + tree.encode())
    assert [path.name for path in named_files(folder / "model.glb")] == ["model.glb", "my paint.png"]


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'{"images": [1]}', b'{"images": 5}', b"\xff", b"glTF"])
def test_what_a_broken_gltf_names_is_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gltf").write_bytes(content)
    assert named_files(tmp_path / "model.gltf") == [tmp_path / "model.gltf"]


def test_gltf_takes_its_buffers_along(gltf: Path, run: Run) -> None:
    assert {path.name for path in named_files(gltf)} == {path.name for path in gltf.parent.iterdir()}
    (neighbor,) = load_retrieval(taken(run, gltf)).neighbors
    assert Path(neighbor.asset.mesh_path).is_relative_to(run.out)
    assert len(load_mesh(neighbor.asset.mesh_path).geometry) == 1
    assert neighbor.asset.license == OWN_LICENSE
    assert neighbor.asset.caption == run.prompt


def test_obj_takes_its_materials_and_textures_along(obj: Path, run: Run) -> None:
    assert [path.name for path in named_files(obj)] == ["box.obj", "a box.mtl", "wood.png"]
    output = taken(run, obj)
    assert {path.name for path in output.path("0").iterdir()} == {"box.obj", "a box.mtl", "wood.png"}


def test_changed_texture_is_another_input(obj: Path, run: Run) -> None:
    before = taken(run, obj)
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(obj.with_name("wood.png"))
    assert taken(run, obj).key != before.key


def test_moved_mesh_is_the_same_input(obj: Path, run: Run, tmp_path: Path) -> None:
    before = taken(run, obj)
    obj.parent.rename(tmp_path / "moved")
    assert taken(run, tmp_path / "moved" / obj.name).key == before.key


def test_files_outside_the_mesh_s_folder_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_text("secret")
    (tmp_path / "model").mkdir()
    tree = {"asset": {"version": "2.0"}, "buffers": [{"uri": "../secret.bin"}, {"uri": str(tmp_path / "secret.bin")}]}
    (tmp_path / "model" / "a.gltf").write_text(json.dumps(tree))
    assert [path.name for path in named_files(tmp_path / "model" / "a.gltf")] == ["a.gltf"]


def test_file_that_is_no_mesh_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.glb").write_bytes(b"glTF")
    with pytest.raises(ValueError, match=r"broken\.glb"):
        take_assets.fn(run, [str(tmp_path / "broken.glb")], MeshLimits())


def test_only_found_objects_that_are_not_there_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    glb: Any = trimesh.Scene(trimesh.creation.box()).export(file_type="glb")
    paths = [tmp_path / "glbs" / "000-023" / f"{uid}.glb" for uid in ("here", "missing")]
    paths[0].parent.mkdir(parents=True)
    paths[0].write_bytes(glb)
    found = Retrieval(prompt="a box", neighbors=tuple(neighbor_at(path) for path in paths))
    with serving() as server:
        server.answers["/glbs/000-023/missing.glb"] = answer_of(glb)
        fetch_meshes(found, DownloadConfig(base_url=server.url), MeshLimits())
    assert server.asked == ["/glbs/000-023/missing.glb"]
    assert paths[1].read_bytes() == glb


def test_an_asset_whose_mesh_is_gone_is_named(tmp_path: Path) -> None:
    found = Retrieval(prompt="a box", neighbors=(neighbor_at(tmp_path / "gone.glb"),))
    with pytest.raises(ValueError, match=r"gone\.glb does not exist"):
        fetch_meshes(found, DownloadConfig(), MeshLimits())


def neighbor_at(path: Path) -> Neighbor:
    asset = Asset(asset_id=path.stem, mesh_path=str(path), caption="a box", source="objaverse", license="cc0")
    return Neighbor(asset=asset, score=1.0, text_score=1.0)
