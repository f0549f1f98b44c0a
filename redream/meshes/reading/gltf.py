"""Read glTF 2.0, as a GLB or as JSON with files beside it, into placed meshes, in glTF's own axes.

trimesh has a reader, but it ignores `extensionsRequired`, skins and morph weights, leaves quantised positions unscaled,
drops textures and vertex colours silently and turns Draco data that it cannot decode into zeros. This one builds on
`gltf_arrays` (every offset checked), `gltf_nodes` (skins in their pose at rest) and `gltf_materials`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float

from redream.meshes.reading.folder import Folder
from redream.meshes.reading.gltf_arrays import GltfArrays, numbers
from redream.meshes.reading.gltf_container import parse_json, split_glb
from redream.meshes.reading.gltf_fields import check_fields
from redream.meshes.reading.gltf_materials import GltfMaterials
from redream.meshes.reading.gltf_nodes import GltfNodes, PlacedMesh
from redream.meshes.reading.refusal import Refused
from redream.meshes.scenes import Part
from redream.settings import MeshLimits

# Materials beyond base colour and emission are not drawn, hence any KHR_materials_* may be required as well.
READABLE_EXTENSIONS = {
    "KHR_draco_mesh_compression",
    "EXT_meshopt_compression",
    "KHR_meshopt_compression",
    "KHR_mesh_quantization",
    "KHR_texture_transform",
    "KHR_lights_punctual",
    "KHR_animation_pointer",
    "KHR_node_visibility",
    "KHR_xmp_json_ld",
    "EXT_texture_webp",
}
TRIANGLES, STRIP, FAN = 4, 5, 6


def read_gltf(content: bytes, folder: Folder, limits: MeshLimits) -> list[Part]:
    """Read every visible triangle of the file's scene, or raise `Refused`."""
    tree, binary = split_glb(content) if content[:4] == b"glTF" else (parse_json(content), None)
    check_fields(tree)
    required = tree.get("extensionsRequired", [])
    unreadable = [n for n in required if n not in READABLE_EXTENSIONS and not str(n).startswith("KHR_materials_")]
    if unreadable:
        names = ", ".join(sorted(str(name)[:60] for name in unreadable[:5]))
        raise Refused(f"requires the glTF extension {names}, which cannot be read")
    for entry in [*tree.get("buffers", []), *tree.get("images", [])]:
        if isinstance(uri := entry.get("uri"), str) and uri[:5].lower() != "data:":
            folder.find(uri)  # what names a foreign file is hostile, whether the file is used or not
    arrays = GltfArrays(tree, binary, folder, limits)
    nodes = GltfNodes(arrays)
    materials = GltfMaterials(arrays)
    made: dict[Any, list[trimesh.Trimesh]] = {}
    parts: list[Part] = []
    num_triangles = 0
    for placed in nodes.placed_meshes():
        key = (placed.mesh, placed.skin, str(placed.morph_weights))
        if key not in made:
            made[key] = _read_mesh(placed, arrays, nodes, materials)
        parts += [(mesh, placed.matrix) for mesh in made[key]]
        num_triangles += sum(len(mesh.faces) for mesh in made[key])
        check_sizes(num_triangles, len(parts), limits)
    return parts


def check_sizes(num_triangles: int, num_parts: int, limits: MeshLimits) -> None:
    if num_triangles > limits.triangles:
        raise Refused(f"has {num_triangles:,} triangles or more, more than the allowed {limits.triangles:,}")
    if num_parts > limits.parts:
        raise Refused(f"has {num_parts:,} parts or more, more than the allowed {limits.parts:,}")


def _read_mesh(
    placed: PlacedMesh, arrays: GltfArrays, nodes: GltfNodes, materials: GltfMaterials
) -> list[trimesh.Trimesh]:
    record = arrays.entry("meshes", placed.mesh)
    weights = record.get("weights") if placed.morph_weights is None else placed.morph_weights
    joints = None if placed.skin is None else nodes.joint_matrices(placed.skin)
    read = [_read_primitive(primitive, arrays, materials, weights, joints) for primitive in record["primitives"]]
    return [mesh for mesh in read if mesh is not None]


def _read_primitive(
    primitive: dict[str, Any],
    arrays: GltfArrays,
    materials: GltfMaterials,
    weights: list[float] | None,
    joints: Float[np.ndarray, "joints 4 4"] | None,
) -> trimesh.Trimesh | None:
    mode = primitive.get("mode", TRIANGLES)
    if mode not in (TRIANGLES, STRIP, FAN):
        return None
    attributes, indices = _primitive_arrays(primitive, arrays)
    positions = attributes["POSITION"]
    faces = _triangles(np.arange(len(positions)) if indices is None else indices.astype(np.int64), mode)
    if len(faces) and faces.max() >= len(positions):
        raise Refused("has triangles that use vertices which do not exist")
    if weights is not None and any(weights):
        _morph(attributes, primitive.get("targets", []), weights, arrays)
    if joints is not None and "JOINTS_0" in attributes:
        _pose(attributes, joints)
    if any(len(array) != len(positions) for array in attributes.values()):
        raise Refused("has attributes of different lengths in one part")
    normals = attributes.get("NORMAL")
    return trimesh.Trimesh(
        vertices=attributes["POSITION"].astype(np.float64),
        faces=faces,
        vertex_normals=normals.astype(np.float64) if normals is not None and _are_directions(normals) else None,
        visual=materials.visual(primitive.get("material"), attributes),
        process=False,
        validate=False,
    )


def _primitive_arrays(primitive: dict[str, Any], arrays: GltfArrays) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return the attributes of a primitive as floats, joints as stored, and its indices where it has any."""
    named = primitive["attributes"]
    if "POSITION" not in named:
        raise Refused("has a part without positions")
    draco = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
    attributes, indices = ({}, None) if draco is None else arrays.draco(draco, named)
    if draco is None and "indices" in primitive:
        indices = arrays.raw(primitive["indices"]).reshape(-1)
    if indices is not None and not np.issubdtype(indices.dtype, np.integer):
        raise Refused("has indices that are no integers")
    widths = {"POSITION": (3,), "NORMAL": (3,), "COLOR_0": (3, 4), "JOINTS": (4,), "WEIGHTS": (4,), "TEXCOORD": (2,)}
    for name, index in named.items():
        kind = name if name in widths else name.rpartition("_")[0]
        if name in attributes or kind not in widths:
            continue
        attributes[name] = arrays.values(index, *widths[kind])
    return attributes, indices


def _triangles(indices: np.ndarray, mode: int) -> np.ndarray:
    """Return vertex indices in threes, wound alike (glTF 2.0, section 3.7.2.1)."""
    if mode == TRIANGLES:
        if len(indices) % 3:
            raise Refused(f"has a list of {len(indices):,} indices, which are no triangles")
        return indices.reshape(-1, 3)
    if len(indices) < 3:
        return np.zeros((0, 3), dtype=np.int64)
    if mode == FAN:
        return np.stack([indices[1:-1], indices[2:], np.full(len(indices) - 2, indices[0])], axis=1)
    strip = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
    strip[1::2] = strip[1::2, [0, 2, 1]]
    return strip


def _morph(attributes: dict[str, np.ndarray], targets: list[Any], weights: list[float], arrays: GltfArrays) -> None:
    for target, weight in zip(targets, numbers(weights, len(targets)), strict=True):
        for name in ("POSITION", "NORMAL"):
            if weight and name in target and name in attributes:
                attributes[name] = attributes[name] + np.float32(weight) * arrays.values(target[name], 3)


def _pose(attributes: dict[str, np.ndarray], joints: Float[np.ndarray, "joints 4 4"]) -> None:
    """Move vertices and normals with their joints (glTF 2.0, section 3.7.3)."""
    sets = [name.removeprefix("JOINTS_") for name in attributes if name.startswith("JOINTS_")]
    if any(f"WEIGHTS_{number}" not in attributes for number in sets):
        raise Refused("has vertices that follow joints without weights")
    indices = np.concatenate([attributes[f"JOINTS_{number}"] for number in sets], axis=1).astype(np.int64)
    weights = np.concatenate([attributes[f"WEIGHTS_{number}"] for number in sets], axis=1).astype(np.float64)
    if len(indices) != len(attributes["POSITION"]) or len(weights) != len(indices):
        raise Refused("has attributes of different lengths in one part")
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(joints):
        raise Refused("has vertices that follow joints which do not exist")
    totals = weights.sum(axis=1, keepdims=True)
    if not np.isfinite(weights).all() or not (totals > 0).all():
        raise Refused("has vertices that follow no joint of their skin")
    positions, normals = attributes["POSITION"].astype(np.float64), attributes.get("NORMAL")
    moved, turned = np.zeros_like(positions), np.zeros_like(positions)
    for joint, weight in zip(indices.T, (weights / totals).T, strict=True):
        matrices = joints[joint]
        moved += weight[:, None] * (np.einsum("vij,vj->vi", matrices[:, :3, :3], positions) + matrices[:, :3, 3])
        if normals is not None:
            turned += weight[:, None] * np.einsum("vij,vj->vi", matrices[:, :3, :3], normals)
    attributes["POSITION"] = moved
    if normals is not None:
        attributes["NORMAL"] = turned


def _are_directions(normals: Float[np.ndarray, "vertices 3"]) -> bool:
    """Tell normals from the zeros and NaN of a careless exporter, in whose place the renderer makes its own."""
    lengths = np.linalg.norm(normals, axis=1)
    return bool(np.isfinite(lengths).all() and (lengths > 0).all())
