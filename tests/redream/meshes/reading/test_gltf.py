"""Laws of the glTF reader: every way to store a triangle list gives the same triangles, or a refusal."""

from __future__ import annotations

import base64
import json
import struct
import sys
from pathlib import Path
from typing import Any

import DracoPy
import meshopt
import numpy as np
import pytest
import trimesh
from PIL import Image

from benchmarks import fuzz_gltf_types
from redream.meshes.reading.folder import Folder
from redream.meshes.reading.gltf import read_gltf
from redream.meshes.reading.gltf_fields import check_fields
from redream.meshes.reading.refusal import Refused
from redream.meshes.reading.textures import MAX_SIZE
from redream.settings import MeshLimits

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=np.float32)
TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])
COMPONENTS = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Builder:
    """A glTF file in the making: one buffer, one view per array."""

    def __init__(self) -> None:
        self.payload = b""
        self.tree: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [{"attributes": {}}]}],
            "bufferViews": [],
            "accessors": [],
        }

    @property
    def primitive(self) -> dict[str, Any]:
        return self.tree["meshes"][0]["primitives"][0]

    def view(self, content: bytes, **fields: Any) -> int:
        self.payload += bytes(-len(self.payload) % 4)
        place = {"buffer": 0, "byteOffset": len(self.payload), "byteLength": len(content)}
        self.tree["bufferViews"].append({**place, **fields})
        self.payload += content
        return len(self.tree["bufferViews"]) - 1

    def accessor(self, array: np.ndarray, view: int | None = -1, **fields: Any) -> int:
        array = np.asarray(array)
        rows = array.reshape(len(array), -1)
        if view == -1:
            view = self.view(rows.tobytes())
        place = {} if view is None else {"bufferView": view}
        kind = {"componentType": COMPONENTS[array.dtype.name], "type": TYPES[rows.shape[1]]}
        self.tree["accessors"].append({**place, **kind, "count": len(rows), **fields})
        return len(self.tree["accessors"]) - 1

    def square(self, **attributes: int) -> Builder:
        self.primitive["attributes"] = {"POSITION": self.accessor(SQUARE), **attributes}
        self.primitive["indices"] = self.accessor(TRIANGLES.astype(np.uint16).reshape(-1))
        return self

    def read(self, limits: MeshLimits | None = None) -> list[tuple[trimesh.Trimesh, np.ndarray]]:
        uri = "data:application/octet-stream;base64," + base64.b64encode(self.payload).decode()
        tree = {**self.tree, "buffers": [{"byteLength": len(self.payload), "uri": uri}]}
        limits = limits or MeshLimits()
        return read_gltf(json.dumps(tree).encode(), Folder(Path("model.gltf"), limits), limits)

    def corners(self) -> np.ndarray:
        """Return the corners of all triangles in the scene, [triangles, 3, 3]."""
        parts = self.read()
        return np.concatenate([trimesh.transform_points(m.vertices, x)[m.faces.reshape(-1)] for m, x in parts]).reshape(
            -1, 3, 3
        )

    def refusal(self) -> str:
        with pytest.raises(Refused) as error:
            self.read()
        return str(error.value)


def is_square(builder: Builder, atol: float = 1e-6) -> bool:
    return np.allclose(builder.corners(), SQUARE[TRIANGLES], atol=atol)


# ---- geometry -------------------------------------------------------------------------------------------------------


def test_indices_of_every_width_and_none_give_the_same_triangles() -> None:
    for dtype in (np.uint8, np.uint16, np.uint32):
        builder = Builder().square()
        builder.primitive["indices"] = builder.accessor(TRIANGLES.astype(dtype).reshape(-1))
        assert is_square(builder)
    builder = Builder()
    builder.primitive["attributes"]["POSITION"] = builder.accessor(SQUARE[TRIANGLES.reshape(-1)])
    assert is_square(builder)


@pytest.mark.parametrize(("mode", "order"), [(5, [3, 0, 2, 1]), (6, [0, 1, 2, 3])], ids=["strip", "fan"])
def test_strips_and_fans_become_triangles_wound_alike(mode: int, order: list[int]) -> None:
    builder = Builder().square()
    builder.primitive["mode"] = mode
    builder.primitive["indices"] = builder.accessor(np.array(order, dtype=np.uint16))
    corners = builder.corners()
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(normals, [[0, 0, 1], [0, 0, 1]], atol=1e-6)


def test_interleaved_attributes_are_taken_apart() -> None:
    builder = Builder().square()
    rows = np.concatenate([SQUARE, np.tile([0, 0, 1], (4, 1))], axis=1).astype(np.float32)
    view = builder.view(rows.tobytes(), byteStride=24)
    builder.primitive["attributes"]["POSITION"] = builder.accessor(SQUARE, view)
    builder.primitive["attributes"]["NORMAL"] = builder.accessor(SQUARE, view, byteOffset=12)
    assert is_square(builder)
    np.testing.assert_allclose(builder.read()[0][0].vertex_normals, np.tile([0, 0, 1], (4, 1)))


def test_sparse_accessors_replace_elements_of_their_base_or_of_zeros() -> None:
    for base in (True, False):
        builder = Builder().square()
        values = SQUARE * [2, 2, 2]
        sparse = {
            "count": 4,
            "indices": {"bufferView": builder.view(bytes([0, 1, 2, 3])), "componentType": 5121},
            "values": {"bufferView": builder.view(SQUARE.tobytes())},
        }
        view = builder.view(values.astype(np.float32).tobytes()) if base else None
        builder.primitive["attributes"]["POSITION"] = builder.accessor(SQUARE, view, sparse=sparse)
        assert is_square(builder)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_quantised_positions_come_out_scaled(dtype: str, is_normalized: bool) -> None:
    """KHR_mesh_quantization: normalised integers span [-1, 1], plain ones are scaled by their node."""
    top = np.iinfo(dtype).max
    builder = Builder().square()
    positions = (SQUARE * top).astype(dtype)
    padded = np.zeros((4, 4), dtype)
    padded[:, :3] = positions
    view = builder.view(padded.tobytes(), byteStride=padded.itemsize * 4)
    builder.primitive["attributes"]["POSITION"] = builder.accessor(positions, view, normalized=is_normalized)
    if not is_normalized:
        builder.tree["nodes"][0]["scale"] = [1 / top] * 3
    builder.tree["extensionsRequired"] = ["KHR_mesh_quantization"]
    assert is_square(builder)


def test_meshopt_buffers_are_unpacked() -> None:
    builder = Builder().square()
    indices = TRIANGLES.astype(np.uint32).reshape(-1)
    packed = [(SQUARE, "ATTRIBUTES", 12), (indices, "TRIANGLES", 4)]
    views = []
    for array, mode, stride in packed:
        data = meshopt.encode_gltf_buffer(array, mode)
        place = {"buffer": 0, "byteOffset": len(builder.payload) + -len(builder.payload) % 4, "byteLength": len(data)}
        extension = {**place, "mode": mode, "count": len(array), "byteStride": stride}
        views.append(builder.view(data, extensions={"EXT_meshopt_compression": extension}))
        builder.tree["bufferViews"][-1]["byteLength"] = array.nbytes
    builder.primitive["attributes"]["POSITION"] = builder.accessor(SQUARE, views[0])
    builder.primitive["indices"] = builder.accessor(indices, views[1])
    corners = builder.corners()
    assert np.allclose(np.sort(corners.reshape(-1, 3), axis=0), np.sort(SQUARE[TRIANGLES].reshape(-1, 3), axis=0))
    builder.tree["bufferViews"][views[0]]["extensions"]["EXT_meshopt_compression"]["byteLength"] //= 2
    assert "meshopt data that cannot be decoded" in builder.refusal()


def test_draco_data_are_decoded_or_refused() -> None:
    builder = Builder().square()
    data = DracoPy.encode(SQUARE, TRIANGLES.astype(np.uint32), quantization_bits=14)
    extension = {"bufferView": builder.view(data), "attributes": {"POSITION": 0}}
    builder.primitive["extensions"] = {"KHR_draco_mesh_compression": extension}
    corners = builder.corners()
    assert corners.shape == (2, 3, 3)
    np.testing.assert_allclose(np.sort(np.unique(corners.reshape(-1, 3).round(3), axis=0), axis=0)[[0, -1]],
                               [[0, 0, 0], [1, 1, 0]], atol=1e-3)  # fmt: skip
    extension["bufferView"] = builder.view(data[: len(data) // 2])
    assert "Draco" in builder.refusal()


@pytest.mark.parametrize(("module", "name"), [("DracoPy", "Draco"), ("meshopt", "EXT_meshopt_compression")])
def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what Python puts there for what cannot be imported
    builder = Builder().square()
    if module == "DracoPy":
        builder.primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {}}}
    else:
        packed = {"buffer": 0, "byteLength": 4, "byteStride": 12, "count": 4, "mode": "ATTRIBUTES"}
        builder.tree["bufferViews"][0]["extensions"] = {"EXT_meshopt_compression": packed}
    assert name in builder.refusal()
    assert f"is {module} installed" in builder.refusal()


def test_normals_that_point_nowhere_are_left_to_the_renderer() -> None:
    builder = Builder()
    builder.square(NORMAL=builder.accessor(np.zeros((4, 3), dtype=np.float32)))
    assert "vertex_normals" not in builder.read()[0][0]._cache


# ---- nodes, skins, morphs -------------------------------------------------------------------------------------------


def test_a_skinned_mesh_stands_where_its_joints_do_and_not_where_its_node_does() -> None:
    builder = Builder()
    joints = np.zeros((4, 4), dtype=np.uint8)
    joints[2:, 0] = 1
    weights = np.tile(np.array([1, 0, 0, 0], dtype=np.float32), (4, 1))
    builder.square(JOINTS_0=builder.accessor(joints), WEIGHTS_0=builder.accessor(weights))
    inverse = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    inverse[1, 3, :3] = [0, -1, 0]  # column-major: the second joint was bound at y = 1
    builder.tree["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [100, 100, 100]},
        {"children": [2], "translation": [0, 0, 5]},
        {"translation": [0, 3, 0]},
    ]
    builder.tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": builder.accessor(inverse)}]
    expected = SQUARE + [[0, 0, 5], [0, 0, 5], [0, 2, 5], [0, 2, 5]]
    np.testing.assert_allclose(builder.corners(), expected[TRIANGLES], atol=1e-6)


def test_a_skin_at_its_bind_pose_changes_nothing() -> None:
    builder = Builder()
    weights = np.tile(np.array([0.25, 0.75, 0, 0], dtype=np.float32), (4, 1))
    joints = np.tile(np.array([0, 1, 0, 0], dtype=np.uint8), (4, 1))
    builder.square(JOINTS_0=builder.accessor(joints), WEIGHTS_0=builder.accessor(weights))
    inverse = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    inverse[0, 3, :3], inverse[1, 3, :3] = [-1, -2, -3], [-1, -2, 4]
    builder.tree["nodes"] = [
        {"mesh": 0, "skin": 0},
        {"children": [2], "translation": [1, 2, 3]},
        {"translation": [0, 0, -7]},
    ]
    builder.tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": builder.accessor(inverse)}]
    assert is_square(builder)


@pytest.mark.parametrize("weights", [(1, 0, 0, 0), (0.25, 0.25, 0, 0), (3, 0, 0, 0)])
def test_weights_count_by_their_share_of_the_sum(weights: tuple[float, ...]) -> None:
    builder = Builder()
    joints = np.zeros((4, 4), dtype=np.uint8)
    rows = np.tile(np.array(weights, dtype=np.float32), (4, 1))
    builder.square(JOINTS_0=builder.accessor(joints), WEIGHTS_0=builder.accessor(rows))
    builder.tree["nodes"] = [{"mesh": 0, "skin": 0}, {"translation": [0, 0, 5]}]
    builder.tree["skins"] = [{"joints": [1]}]
    np.testing.assert_allclose(builder.corners(), (SQUARE + [0, 0, 5])[TRIANGLES], atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_the_lowest_normalised_number_is_minus_one_like_the_next(dtype: str) -> None:
    """glTF 2.0, section 3.11: max(c / 127, -1)."""
    builder, limits = Builder(), np.iinfo(dtype)
    corners = np.array([[limits.min, 0, 0], [limits.max, 0, 0], [0, limits.min + 1, 0]], dtype=dtype)
    rows = np.concatenate([corners, np.zeros((3, 1), dtype)], axis=1)  # to four-byte alignment
    view = builder.view(rows.tobytes(), byteStride=4 * corners.itemsize)
    builder.primitive["attributes"] = {"POSITION": builder.accessor(corners, view, normalized=True)}
    assert np.array_equal(builder.corners()[0], [[-1, 0, 0], [1, 0, 0], [0, -1, 0]])


def test_joints_that_do_not_exist_are_refused() -> None:
    builder = Builder()
    joints = np.full((4, 4), 9, dtype=np.uint8)
    weights = np.tile(np.array([1, 0, 0, 0], dtype=np.float32), (4, 1))
    builder.square(JOINTS_0=builder.accessor(joints), WEIGHTS_0=builder.accessor(weights))
    builder.tree["nodes"] = [{"mesh": 0, "skin": 0}, {}]
    builder.tree["skins"] = [{"joints": [1]}]
    assert "joints which do not exist" in builder.refusal()


def test_morph_targets_act_with_their_default_weights() -> None:
    builder = Builder().square()
    builder.primitive["targets"] = [{"POSITION": builder.accessor(np.ones_like(SQUARE))}]
    assert is_square(builder)
    builder.tree["meshes"][0]["weights"] = [0.5]
    np.testing.assert_allclose(builder.corners(), SQUARE[TRIANGLES] + 0.5, atol=1e-6)
    builder.tree["nodes"][0]["weights"] = [2.0]
    np.testing.assert_allclose(builder.corners(), SQUARE[TRIANGLES] + 2.0, atol=1e-6)


def test_only_the_scene_of_the_file_is_read() -> None:
    builder = Builder().square()
    builder.tree["nodes"].append({"mesh": 0, "translation": [9, 9, 9]})
    assert len(builder.read()) == 2
    builder.tree["scenes"] = [{"nodes": [0]}, {"nodes": [1]}]
    assert is_square(builder)
    builder.tree["scene"] = 7
    assert "refers to scenes[7]" in builder.refusal()


def test_hidden_nodes_are_left_out_with_what_hangs_below_them() -> None:
    builder = Builder().square()
    hidden = {"extensions": {"KHR_node_visibility": {"visible": False}}, "children": [2]}
    builder.tree["nodes"] += [hidden, {"mesh": 0, "translation": [9, 9, 9]}]
    assert is_square(builder)


def test_instances_share_their_mesh() -> None:
    builder = Builder().square()
    builder.tree["nodes"].append({"mesh": 0, "translation": [9, 9, 9]})
    (first, _), (second, _) = builder.read()
    assert first is second


# ---- materials ------------------------------------------------------------------------------------------------------


def painted(material: dict[str, Any], image: bytes | None = None, **texture: Any) -> Builder:
    builder = Builder()
    builder.square(TEXCOORD_0=builder.accessor(SQUARE[:, :2]))
    builder.primitive["material"] = 0
    builder.tree["materials"] = [material]
    builder.tree["textures"] = [texture or {"source": 0}]
    builder.tree["images"] = [] if image is None else [{"bufferView": builder.view(image), "mimeType": "image/x-any"}]
    return builder


def visual(builder: Builder) -> Any:
    return builder.read()[0][0].visual


def png(size: tuple[int, int] = (2, 2), kind: str = "PNG") -> bytes:
    import io

    file = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(file, kind, lossless=True)
    return file.getvalue()


def test_specular_glossiness_materials_keep_their_diffuse_colour() -> None:
    gloss = {"diffuseFactor": [1, 0, 0, 1], "diffuseTexture": {"index": 0}}
    builder = painted({"extensions": {"KHR_materials_pbrSpecularGlossiness": gloss}}, png())
    material = visual(builder).material
    assert material.baseColorFactor.tolist() == [255, 0, 0, 255]
    assert material.baseColorTexture.getpixel((0, 0)) == (10, 200, 30)


def test_webp_textures_are_read_in_place_of_their_fallback() -> None:
    source = {"extensions": {"EXT_texture_webp": {"source": 0}}}
    builder = painted({"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}, png(kind="WEBP"), **source)
    material = visual(builder).material
    assert material.baseColorTexture.getpixel((0, 0)) == (10, 200, 30)


def test_ktx2_textures_are_refused_unless_there_is_a_fallback() -> None:
    slot = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}
    basis = {"extensions": {"KHR_texture_basisu": {"source": 0}}}
    assert "KHR_texture_basisu" in painted(slot, png(), **basis).refusal()
    assert len(painted(slot, png(), source=0, **basis).read()) == 1
    assert "KTX2" in painted(slot, b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(100)).refusal()


@pytest.mark.parametrize(
    ("image", "cause"),
    [(png()[:50], "cannot be decoded"), (b"<svg/>", "no image of a known kind"), (b"%!PS-Adobe-3.0 EPSF", "no image")],
    ids=["cut off", "svg", "postscript"],
)
def test_broken_images_are_refused(image: bytes, cause: str) -> None:
    builder = painted({"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}, image)
    assert cause in builder.refusal()


@pytest.mark.parametrize(("material", "cutoff"), [({}, 0.5), ({"alphaCutoff": 0.2}, 0.2)])
def test_a_mask_cuts_at_one_half_unless_it_says_where(material: dict[str, Any], cutoff: float) -> None:
    slot = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}, "alphaMode": "MASK"}
    assert visual(painted({**slot, **material}, png())).material.alphaCutoff == cutoff


def test_large_textures_are_reduced() -> None:
    builder = painted({"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}, png((2 * MAX_SIZE, 40)))
    material = visual(builder).material
    assert material.baseColorTexture.size == (MAX_SIZE, 20)


def colored(rgb: np.ndarray, with_texture: bool) -> Any:
    builder = painted({"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}} if with_texture else {}}, png())
    builder.primitive["attributes"]["COLOR_0"] = builder.accessor(rgb.astype(np.float32))
    return visual(builder).vertex_attributes.get("color")


def test_vertex_colors_tint_a_texture_but_masks_do_not_black_it_out() -> None:
    """The mask is the sort that game exporters keep for wind or wetness: one channel, mostly zero."""
    tint = np.tile([0.0, 0.0, 0.2], (4, 1))
    mask = np.array([[0, 0, 0], [0.1, 0, 0], [0.3, 0, 0], [0, 0, 0]])
    assert colored(tint, with_texture=True) is not None
    assert colored(mask, with_texture=True) is None
    assert colored(mask, with_texture=False) is not None


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [-1, 99, 1.0, "0", None, True, [0]])
def test_references_that_lead_nowhere_are_refused(index: Any) -> None:
    builder = Builder().square()
    builder.primitive["attributes"]["POSITION"] = index
    causes = ("refers to accessors", "POSITION, which must be an integer", "without positions")
    assert any(cause in builder.refusal() for cause in causes)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"count": -4}, "-4 for a count"),
        ({"count": 5}, "runs over the end"),
        ({"count": 10**9}, "declares an array"),
        ({"byteOffset": 2**40}, "runs over the end"),
        ({"componentType": 5124}, "component type"),
        ({"type": "VEC9"}, "accessor of the type"),
        ({"type": "VEC2"}, "2 numbers where 3 belong"),
    ],
)
def test_accessors_that_do_not_fit_their_buffer_are_refused(fields: dict[str, Any], cause: str) -> None:
    builder = Builder().square()
    builder.tree["accessors"][0].update(fields)
    assert cause in builder.refusal()


def test_a_view_behind_its_buffer_and_a_short_stride_are_refused() -> None:
    builder = Builder().square()
    builder.tree["bufferViews"][0]["byteLength"] = 10**6
    assert "behind its buffer" in builder.refusal()
    builder = Builder().square()
    builder.tree["bufferViews"][0]["byteStride"] = 3
    assert "stride of 3" in builder.refusal()


def test_a_matrix_that_is_no_placement_is_refused_and_one_that_is_rounded_is_not() -> None:
    builder = Builder().square()
    builder.tree["nodes"][0]["matrix"] = [*np.eye(4).ravel()[:15], 65536.0]
    assert "no placement" in builder.refusal()
    builder.tree["nodes"][0]["matrix"][15] = 1.0001
    ((_, matrix),) = builder.read()
    assert np.array_equal(matrix, np.eye(4))


def test_parts_beyond_the_limit_are_refused() -> None:
    builder = Builder().square()
    builder.tree["nodes"] *= 5
    assert len(builder.read(MeshLimits(parts=5))) == 5
    with pytest.raises(Refused, match="5 parts"):
        builder.read(MeshLimits(parts=4))


def test_a_glb_with_a_chunk_in_excess_opens() -> None:
    builder = Builder().square()
    builder.tree["buffers"] = [{"byteLength": len(builder.payload)}]
    text = json.dumps(builder.tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = [(b"JSON", text), (b"BIN\0", builder.payload), (b"MORE", bytes(8))]
    body = b"".join(struct.pack("<I4s", len(content), kind) + content for kind, content in chunks)
    content = struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body
    assert len(read_gltf(content, Folder(Path("model.glb"), MeshLimits()), MeshLimits())) == 1


def test_a_file_of_gltf_1_says_so() -> None:
    for tree in ({"asset": {"version": "1.0"}, "meshes": {}}, {"meshes": {"a": {}}, "buffers": {"b": {}}}):
        with pytest.raises(Refused, match=r"^is glTF 1\.0; only 2\.0 can be read$"):
            check_fields(tree)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"buffers": "abc"}, "has a string in buffers, which must be an array"),
        (
            {"nodes": [{}, {"children": [0, "1"]}]},
            r"has a string in nodes\[1\]\.children\[1\], which must be an integer",
        ),
        ({"meshes": [{}]}, r"has no meshes\[0\]\.primitives"),
        ({"meshes": [{"primitives": [{"attributes": {"POSITION": True}}]}]}, r"has true or false in .*\.POSITION"),
        ({"asset": 2}, "has a number in asset, which must be an object"),
    ],
)
def test_a_wrong_type_is_refused_by_the_name_of_its_field(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        check_fields(tree)


def test_null_counts_as_absent() -> None:
    tree: dict[str, Any] = {"scene": None, "nodes": [{"mesh": None, "skin": None}]}
    check_fields(tree)
    assert tree == {"nodes": [{}]}


def test_no_mutation_of_the_types_is_answered_with_a_word_of_python(tmp_path: Path) -> None:
    tree = fuzz_gltf_types.rich_gltf()
    path = tmp_path / "mutant.gltf"
    assert fuzz_gltf_types.sentence_of(tree, path) == ""
    for number in range(150):
        mutant = fuzz_gltf_types.mutant(tree, np.random.default_rng([1, number]))
        sentence = fuzz_gltf_types.sentence_of(mutant, path)
        assert not fuzz_gltf_types.PYTHON.search(sentence), sentence
