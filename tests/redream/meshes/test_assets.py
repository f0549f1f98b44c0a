"""Laws of `redream.meshes.assets`: axes, what survives a load, and what is refused, in one sentence."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from redream.colors import linear_to_srgb, srgb_to_linear
from redream.meshes.assets import (
    AssetError,
    MeshLimits,
    load_mesh,
    normalize_mesh,
    scene_parts,
    scene_vertices,
    turn_mesh,
)

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
DEFAULT_LIMITS = MeshLimits()
TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float32)


def gltf(positions: np.ndarray = TRIANGLE, colors: np.ndarray | None = None, **extra: Any) -> dict[str, Any]:
    """A minimal glTF of one triangle list with its buffer as a data URI."""
    payload = positions.astype("<f4").tobytes()
    views = [{"buffer": 0, "byteOffset": 0, "byteLength": len(payload)}]
    accessors = [{"bufferView": 0, "componentType": 5126, "count": len(positions), "type": "VEC3"}]
    attributes = {"POSITION": 0}
    if colors is not None:
        views.append({"buffer": 0, "byteOffset": len(payload), "byteLength": colors.nbytes})
        kind = {"float32": 5126, "uint8": 5121, "uint16": 5123}[colors.dtype.name]
        accessors.append(
            {"bufferView": 1, "componentType": kind, "count": len(colors), "type": "VEC4", "normalized": kind != 5126}
        )
        attributes["COLOR_0"] = 1
        payload += colors.tobytes()
    tree = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "mode": 4}]}],
        "buffers": [{"byteLength": len(payload), "uri": data_uri(payload)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    return {**tree, **extra}


def data_uri(payload: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{base64.b64encode(payload).decode()}"


def write_gltf(folder: Path, tree: dict[str, Any], name: str = "model.gltf") -> Path:
    path = folder / name
    path.write_text(json.dumps(tree))
    return path


def first_visual(scene: trimesh.Scene) -> Any:
    return scene_parts(scene)[0][0].visual


def refusal(path: Path, limits: MeshLimits = DEFAULT_LIMITS) -> str:
    """Return the sentence with which a file is refused, after checking its form."""
    with pytest.raises(AssetError) as error:
        load_mesh(path, limits)
    message = str(error.value)
    assert path.name in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("gltf_point", "world_point"),
    [((0, 0, 3), (3, 0, 0)), ((3, 0, 0), (0, 3, 0)), ((0, 3, 0), (0, 0, 3))],
    ids=["gltf front +z is world +x", "gltf left +x is world +y", "gltf up +y is world +z"],
)
@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".obj", ".ply", ".stl"])
def test_gltf_axes_become_world_axes(tmp_path: Path, suffix: str, gltf_point: tuple, world_point: tuple) -> None:
    spike = np.array([[-0.1, 0, 0], [0, -0.1, -0.1], gltf_point], dtype=np.float64)
    path = tmp_path / f"spike{suffix}"
    if suffix == ".gltf":
        write_gltf(tmp_path, gltf(spike), path.name)
    else:
        trimesh.Trimesh(spike, [[0, 1, 2]], process=False).export(path)
    vertices = scene_vertices(load_mesh(path))
    farthest = vertices[np.linalg.norm(vertices, axis=1).argmax()]
    np.testing.assert_allclose(farthest, world_point, atol=1e-6)


def test_nested_node_transforms_are_applied(tmp_path: Path) -> None:
    nodes = [{"children": [1], "translation": [0, 0, 5]}, {"mesh": 0, "scale": [2, 2, 2]}]
    vertices = scene_vertices(load_mesh(write_gltf(tmp_path, gltf(nodes=nodes))))
    expected = (TRIANGLE * 2 + [0, 0, 5])[:, [2, 0, 1]]
    np.testing.assert_allclose(np.sort(vertices, axis=0), np.sort(expected, axis=0), atol=1e-6)


def test_every_instance_of_a_mesh_is_kept(tmp_path: Path) -> None:
    nodes = [{"children": [1, 2]}, {"mesh": 0}, {"mesh": 0, "translation": [9, 0, 0]}]
    assert len(scene_parts(load_mesh(write_gltf(tmp_path, gltf(nodes=nodes))))) == 2


def test_loading_twice_gives_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "pair.glb"
    trimesh.Scene([trimesh.creation.box(), trimesh.creation.icosphere(1)]).export(path)
    assert list(load_mesh(path).geometry) == list(load_mesh(path).geometry) == ["part_0", "part_1"]


def test_normalized_mesh_touches_the_bounding_sphere_around_the_origin() -> None:
    box = trimesh.creation.box((1, 2, 3))
    box.apply_translation([100, -50, 7])
    vertices = scene_vertices(normalize_mesh(trimesh.Scene(box), object_radius=0.5))
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1).max(), 0.5, rtol=1e-6)
    np.testing.assert_allclose(vertices.min(axis=0), -vertices.max(axis=0), atol=1e-6)


def test_normalizing_centres_the_bounds_and_not_the_mean_of_the_vertices() -> None:
    cone = trimesh.creation.cone(1.0, 4.0, sections=40)  # most of its vertices are in its base
    vertices = scene_vertices(normalize_mesh(trimesh.Scene(cone), 0.5))
    np.testing.assert_allclose(vertices.min(axis=0), -vertices.max(axis=0), atol=1e-9)


def test_normalizing_ignores_vertices_that_no_triangle_uses() -> None:
    stray = np.concatenate([TRIANGLE, [[1e6, 1e6, 1e6]]])
    scene = trimesh.Scene(trimesh.Trimesh(stray, [[0, 1, 2]], process=False))
    np.testing.assert_allclose(np.linalg.norm(scene_vertices(normalize_mesh(scene)), axis=1).max(), 0.5, rtol=1e-6)


def test_turning_moves_the_front_to_the_given_azimuth() -> None:
    front = trimesh.creation.icosphere(1, radius=0.1)
    front.apply_translation([1, 0, 0.5])
    center = scene_vertices(turn_mesh(trimesh.Scene(front), 90.0)).mean(axis=0)
    np.testing.assert_allclose(center, [0, 1, 0.5], atol=1e-6)


def test_turning_there_and_back_changes_nothing() -> None:
    scene = trimesh.Scene(trimesh.creation.box((1, 2, 3)))
    there_and_back = turn_mesh(turn_mesh(scene, 73.0), -73.0)
    np.testing.assert_allclose(scene_vertices(there_and_back), scene_vertices(scene), atol=1e-9)


def test_srgb_and_linear_are_inverse() -> None:
    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16"])
def test_linear_vertex_colors_of_gltf_become_srgb_bytes(tmp_path: Path, dtype: str) -> None:
    srgb = np.array([220, 30, 30, 255])
    linear = np.append(srgb_to_linear(srgb[:3] / 255.0), 1.0)
    top = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    colors = np.tile((linear * top).astype(dtype), (3, 1))
    visual = first_visual(load_mesh(write_gltf(tmp_path, gltf(colors=colors))))
    tolerance = 10 if dtype == "uint8" else 1  # 8 linear bits are coarse in the dark
    np.testing.assert_allclose(visual.vertex_colors[0].astype(int), srgb, atol=tolerance)


def test_vertex_colors_beside_a_material_survive_normalizing_and_turning(tmp_path: Path) -> None:
    colors = np.tile(np.array([255, 0, 0, 255], dtype=np.uint8), (3, 1))
    tree = gltf(colors=colors, materials=[{"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 1]}}])
    tree["meshes"][0]["primitives"][0]["material"] = 0
    scene = turn_mesh(normalize_mesh(load_mesh(write_gltf(tmp_path, tree))), 30.0)
    assert first_visual(scene).vertex_attributes["color"].tolist() == [[255, 0, 0, 255]] * 3


def test_textures_beside_the_file_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (10, 200, 30)).save(tmp_path / "my colours.png")
    tree = textured(tmp_path, "my%20colours.png")
    assert first_visual(load_mesh(write_gltf(tmp_path, tree))).material.baseColorTexture.getpixel((0, 0)) == (
        10,
        200,
        30,
    )


def textured(folder: Path, uri: str, transform: dict[str, Any] | None = None) -> dict[str, Any]:
    uv = np.array([[0, 0], [1, 0], [0, 1]], dtype="<f4").tobytes()
    tree = gltf()
    tree["buffers"].append({"byteLength": len(uv), "uri": data_uri(uv)})
    tree["bufferViews"].append({"buffer": 1, "byteLength": len(uv)})
    tree["accessors"].append({"bufferView": 1, "componentType": 5126, "count": 3, "type": "VEC2"})
    tree["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = 1
    tree["meshes"][0]["primitives"][0]["material"] = 0
    slot = {"index": 0} if transform is None else {"index": 0, "extensions": {"KHR_texture_transform": transform}}
    tree["materials"] = [{"name": "paint", "pbrMetallicRoughness": {"baseColorTexture": slot}}]
    tree["textures"], tree["images"] = [{"source": 0}], [{"uri": uri}]
    return tree


def test_texture_transforms_scale_and_shift_the_uv(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "t.png")
    tree = textured(tmp_path, "t.png", {"scale": [0.5, 0.25], "offset": [0.1, 0.2]})
    uv = first_visual(load_mesh(write_gltf(tmp_path, tree))).uv
    gltf_uv = np.array([[0, 0], [1, 0], [0, 1]]) * [0.5, 0.25] + [0.1, 0.2]
    np.testing.assert_allclose(uv, np.stack([gltf_uv[:, 0], 1 - gltf_uv[:, 1]], axis=1), atol=1e-6)


def test_texture_rotation_follows_the_example_of_the_extension(tmp_path: Path) -> None:
    """KHR_texture_transform's README: these values show "only the lower left quadrant of the source image"."""
    Image.new("RGB", (2, 2)).save(tmp_path / "t.png")
    transform = {"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5]}
    uv = first_visual(load_mesh(write_gltf(tmp_path, textured(tmp_path, "t.png", transform)))).uv
    # v grows upwards here, so that quadrant is [0, 0.5] in both.
    assert uv.min() >= -1e-6
    assert uv.max() <= 0.5 + 1e-6


def test_a_missing_texture_is_said_and_the_mesh_still_opens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = load_mesh(write_gltf(tmp_path, textured(tmp_path, "not-there.png")))
    assert len(scene_parts(scene)) == 1
    assert "texture is missing" in caplog.text


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere.glb")


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("empty.glb", b"", "empty"),
        ("page.glb", b"<!DOCTYPE html><html></html>", "web page"),
        ("zeros.glb", bytes(4096), "not a GLB"),
        ("text.txt", b"hello", "no mesh that can be read"),
        ("words.obj", b"v a b c\nf 1 2 3\n", "not a readable OBJ"),
        ("nan.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv nan 0 0\nf 1 2 3\nf 1 2 4\n", "not finite"),
        ("points.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "no triangles"),
        ("broken.gltf", b'{"asset": {"version": ', "broken JSON"),
        ("list.gltf", b"[1, 2]", "not glTF"),
        ("short.glb", b"glTF\x02\0\0\0", "cut off"),
        ("old.glb", struct.pack("<4sIIII", b"glTF", 1, 20, 0, 0), "version 1"),
        ("cut.glb", struct.pack("<4sIII4s", b"glTF", 2, 9999, 8, b"JSON"), "cut off"),
        ("chunk.glb", struct.pack("<4sIII4s", b"glTF", 2, 20, 4294967280, b"JSON"), "runs over"),
    ],
)
def test_what_is_no_mesh_is_refused(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert cause in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("positions", "cause"),
    [
        (np.where(TRIANGLE == 1, np.nan, TRIANGLE), "not finite"),
        (np.where(TRIANGLE == 1, np.inf, TRIANGLE), "not finite"),
        (np.zeros((3, 3)), "at the origin"),
        (np.ones((3, 3)), "no extent"),
        (np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2]]), "no surface"),
    ],
    ids=["nan", "infinite", "all zero", "one point", "one line"],
)
def test_degenerate_geometry_is_refused(tmp_path: Path, positions: np.ndarray, cause: str) -> None:
    assert cause in refusal(write_gltf(tmp_path, gltf(positions)))


@pytest.mark.parametrize("slot", ["buffers", "images"])
@pytest.mark.parametrize(
    "uri",
    [
        "../secret.bin",
        "%2e%2e/secret.bin",
        "textures/../../secret.bin",
        "..\\secret.bin",
        "/etc/hostname",
        "~/secret.bin",
        "C:/secret.bin",
        "file:///etc/hostname",
        "http://localhost:9/buffer.bin",
        "https://example.invalid/buffer.bin",
        "\\\\localhost\\share\\x.bin",
    ],
)
def test_files_outside_the_folder_are_refused(tmp_path: Path, slot: str, uri: str) -> None:
    (tmp_path / "secret.bin").write_bytes(TRIANGLE.tobytes())
    folder = tmp_path / "asset"
    folder.mkdir()
    tree = gltf(images=[])
    tree[slot] = [{"uri": uri, "byteLength": 36}]
    assert "outside its own folder" in refusal(write_gltf(folder, tree))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(TRIANGLE.tobytes())
    folder = tmp_path / "asset"
    folder.mkdir()
    (folder / "inside.bin").symlink_to(tmp_path / "secret.bin")
    tree = gltf()
    tree["buffers"] = [{"uri": "inside.bin", "byteLength": 36}]
    assert "outside its own folder" in refusal(write_gltf(folder, tree))


def test_a_texture_that_an_obj_lacks_is_said_and_the_mesh_still_opens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "paint.mtl").write_text("newmtl paint\nKd 1 0 0\nmap_Kd absent.png\n")
    obj = tmp_path / "model.obj"
    obj.write_text("mtllib paint.mtl\nusemtl paint\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n")
    assert len(scene_parts(load_mesh(obj))) == 1
    assert "absent.png" in caplog.text


def test_a_material_library_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "evil.mtl").write_text("newmtl paint\nKd 1 0 0\n")
    folder = tmp_path / "asset"
    folder.mkdir()
    obj = folder / "model.obj"
    obj.write_text("mtllib ../evil.mtl\nusemtl paint\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    try:
        visual = first_visual(load_mesh(obj))
    except AssetError as error:
        assert "outside its own folder" in str(error)
    else:
        assert visual.kind != "texture" or visual.material.diffuse[:3].tolist() != [255, 0, 0]


@pytest.mark.parametrize("extension", ["VENDOR_unknown_thing", "KHR_texture_basisu"])
def test_required_extensions_that_cannot_be_read_are_named(tmp_path: Path, extension: str) -> None:
    assert extension in refusal(write_gltf(tmp_path, gltf(extensionsRequired=[extension])))


def test_required_extensions_that_can_be_read_are_accepted(tmp_path: Path) -> None:
    required = ["KHR_texture_transform", "KHR_materials_unlit"]
    assert scene_parts(load_mesh(write_gltf(tmp_path, gltf(extensionsRequired=required))))


@pytest.mark.parametrize(
    ("nodes", "cause"),
    [
        ([{"children": [1]}, {"children": [0], "mesh": 0}], "own ancestor"),
        ([{"children": [0], "mesh": 0}], "own ancestor"),
        ([{"children": [1, 1]}, {"mesh": 0}], "two parents"),
    ],
    ids=["cycle", "self", "shared child"],
)
def test_node_graphs_that_are_no_forest_are_refused(tmp_path: Path, nodes: list[dict], cause: str) -> None:
    assert cause in refusal(write_gltf(tmp_path, gltf(nodes=nodes)))


def test_a_mesh_beyond_what_can_be_computed_with_is_refused(tmp_path: Path) -> None:
    nodes = [{"mesh": 0, "translation": [0, 1e308, 0]}]
    assert "from the origin" in refusal(write_gltf(tmp_path, gltf(nodes=nodes)))


def test_triangles_of_vertices_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    tree = gltf()
    indices = np.array([0, 1, 7], dtype="<u4").tobytes()
    tree["buffers"].append({"byteLength": len(indices), "uri": data_uri(indices)})
    tree["bufferViews"].append({"buffer": 1, "byteLength": len(indices)})
    tree["accessors"].append({"bufferView": 1, "componentType": 5125, "count": 3, "type": "SCALAR"})
    tree["meshes"][0]["primitives"][0]["indices"] = 1
    refusal(write_gltf(tmp_path, tree))


def test_sizes_above_the_limits_are_refused(tmp_path: Path) -> None:
    ball = tmp_path / "ball.glb"
    trimesh.creation.icosphere(2).export(ball)
    assert "bytes" in refusal(ball, MeshLimits(file_bytes=100))
    assert "triangles" in refusal(ball, MeshLimits(triangles=319))
    assert scene_parts(load_mesh(ball, MeshLimits(triangles=320)))
    Image.new("RGB", (64, 64)).save(tmp_path / "t.png")
    painted = write_gltf(tmp_path, textured(tmp_path, "t.png"))
    assert "pixels" in refusal(painted, MeshLimits(texture_pixels=64 * 64 - 1))


def test_instances_count_towards_the_limit(tmp_path: Path) -> None:
    nodes = [{"children": list(range(1, 11))}] + [{"mesh": 0}] * 10
    assert "10 triangles" in refusal(write_gltf(tmp_path, gltf(nodes=nodes)), MeshLimits(triangles=9))


def test_files_with_z_up_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "box.obj"
    trimesh.creation.box((1, 2, 3)).export(path)
    np.testing.assert_allclose(np.ptp(scene_vertices(load_mesh(path, up_axis="+Z")), axis=0), [1, 2, 3])
    np.testing.assert_allclose(np.ptp(scene_vertices(load_mesh(path)), axis=0), [3, 1, 2])


@pytest.mark.parametrize("size", [1e-12, 1e-5, 1.0, 1e5, 1e12])
def test_tiny_and_huge_units_give_the_same_surface(tmp_path: Path, size: float) -> None:
    path = tmp_path / "box.obj"
    trimesh.creation.box((size, 2 * size, 3 * size)).export(path, digits=20)
    ((mesh, matrix),) = scene_parts(normalize_mesh(load_mesh(path)))
    assert (np.linalg.norm(mesh.face_normals, axis=1) > 0.99).all()
    extents = np.ptp(trimesh.transform_points(mesh.vertices, matrix), axis=0)
    np.testing.assert_allclose(extents, np.array([3, 1, 2]) / np.sqrt(14), rtol=1e-4)


def test_five_million_triangles_open_within_the_limits_and_one_more_is_refused_in_minutes(tmp_path: Path):
    width, height = 2500, 1000
    x, y = np.meshgrid(np.arange(width + 1), np.arange(height + 1), indexing="xy")
    vertices = np.stack([x.ravel(), y.ravel(), np.sin(0.1 * x.ravel())], axis=1).astype(np.float32)
    corner = (np.arange(height)[:, None] * (width + 1) + np.arange(width)).ravel()
    right, below = corner + 1, corner + width + 1
    faces = np.concatenate([np.stack([corner, right, below], 1), np.stack([right, below + 1, below], 1)])
    trimesh.Trimesh(vertices, faces, process=False).export(tmp_path / "many.glb")
    scene = load_mesh(tmp_path / "many.glb")
    assert sum(len(mesh.faces) for mesh in scene.geometry.values()) == 5_000_000
    trimesh.Trimesh(vertices, np.concatenate([faces, faces[:1]]), process=False).export(tmp_path / "more.glb")
    with pytest.raises(AssetError, match=r"more\.glb .* up to 5,000,000 triangles are allowed"):
        load_mesh(tmp_path / "more.glb")
