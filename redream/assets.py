"""Assets: one 3D object of the database, and the door through which every mesh file enters.

`load_mesh` reads GLB, glTF, OBJ, PLY and STL into a `trimesh.Scene` in world axes (right-handed, +z up, front +x) or
refuses with an `AssetError`: one sentence that names the file and the cause. glTF is y-up with its front along +z, so
world (x, y, z) = glTF (z, x, y); OBJ, PLY and STL name no axes and are read the same way.

The scenes returned here are plain: parts `part_0, part_1, ...`, each placed by one matrix, triangles only. They share
their parts when they are moved (`normalize_mesh`, `turn_mesh`), because trimesh's `copy` loses the vertex colours of a
part that also has a material; so treat parts as read-only. Vertex colours are sRGB bytes whatever the file holds (glTF
stores them linear), `baseColorFactor` stays linear as in glTF.
"""

from __future__ import annotations

import io
import json
import logging
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import trimesh
from jaxtyping import Float
from trimesh.visual import ColorVisuals, TextureVisuals

logger = logging.getLogger(__name__)

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")

# world (x, y, z) = glTF (z, x, y)
WORLD_FROM_GLTF = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)

# trimesh ignores `extensionsRequired`, so what it cannot read would come out as garbage. Materials beyond base colour
# are not drawn anyway, hence any KHR_materials_* may be required.
READABLE_EXTENSIONS = {
    "KHR_draco_mesh_compression",
    "KHR_texture_transform",
    "KHR_lights_punctual",
    "KHR_animation_pointer",
    "KHR_node_visibility",
    "KHR_xmp_json_ld",
    "EXT_texture_webp",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """One 3D object of the database, as a record that crosses task borders."""

    asset_id: str
    mesh_path: str
    caption: str
    source: str
    license: str
    author: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshLimits:
    """Sizes above which a file is refused rather than left to fill the memory."""

    file_bytes: int = 512 * 2**20  # of the file and of each file it names
    triangles: int = 5_000_000  # over all instances
    texture_pixels: int = 8192 * 8192  # per image


class AssetError(ValueError):
    """A mesh file that cannot be used; the message names the file and the cause in one sentence."""


def load_mesh(path: str | Path, limits: MeshLimits = MeshLimits()) -> trimesh.Scene:
    """Read a mesh file into a scene of triangles in world axes, or raise `AssetError`."""
    path = Path(path)
    content = _read_file(path, path, limits)
    file_type = _file_type(path, content)
    try:
        if file_type in ("glb", "gltf"):
            tree, binary = _parse_glb(path, content) if file_type == "glb" else (_parse_json(path, content), None)
            raw = _load_gltf(path, tree, binary, limits)
        else:
            tree = {}
            resolver: Any = _FolderResolver(path, limits)  # trimesh's own class wants it to list and write files
            raw = trimesh.load_scene(io.BytesIO(content), file_type=file_type, resolver=resolver)
        return _plain_scene(path, raw, tree, limits)
    except AssetError:
        raise
    except Exception as error:
        # The parsers below fail in as many ways as files can be broken (IndexError, KeyError, struct.error, ...).
        detail = " ".join(str(error).split())[:200]
        cause = type(error).__name__ + (f": {detail}" if detail else "")
        raise AssetError(f"{path.name}: not a readable {file_type.upper()} file ({cause}).") from error


def normalize_mesh(scene: trimesh.Scene, object_radius: float = 0.5) -> trimesh.Scene:
    """Centre a scene's bounding box on the origin and scale it so that its farthest vertex lies at `object_radius`."""
    vertices = scene_vertices(scene)
    center = 0.5 * (vertices.min(axis=0) + vertices.max(axis=0))
    scale = object_radius / np.linalg.norm(vertices - center, axis=1).max()
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = -scale * center
    return _moved(scene, matrix)


def turn_mesh(scene: trimesh.Scene, azimuth_deg: float) -> trimesh.Scene:
    """Turn a scene about +z, so that what faced +x then faces `azimuth_deg`."""
    turn = trimesh.transformations.rotation_matrix(math.radians(azimuth_deg), [0.0, 0.0, 1.0])
    return _moved(scene, np.asarray(turn, dtype=np.float64))


def scene_parts(scene: trimesh.Scene) -> list[tuple[trimesh.Trimesh, Float[np.ndarray, "4 4"]]]:
    """List the meshes of any scene with the matrix that places each in the scene."""
    placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
    parts = [(scene.geometry[name], np.asarray(matrix, dtype=np.float64)) for matrix, name in placed]
    return [(mesh, matrix) for mesh, matrix in parts if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]


def scene_vertices(scene: trimesh.Scene) -> Float[np.ndarray, "vertices 3"]:
    """Return the vertices that the scene's triangles use, in scene coordinates."""
    used = [
        trimesh.transform_points(np.asarray(mesh.vertices)[np.unique(mesh.faces)], matrix)
        for mesh, matrix in scene_parts(scene)
    ]
    return np.concatenate(used) if used else np.zeros((0, 3))


def linear_to_srgb(linear: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0) ** (1 / 2.4) - 0.055)


def srgb_to_linear(srgb: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0.0) + 0.055) / 1.055) ** 2.4)


def _moved(scene: trimesh.Scene, matrix: Float[np.ndarray, "4 4"]) -> trimesh.Scene:
    return _scene_of([(mesh, matrix @ placed) for mesh, placed in scene_parts(scene)])


def _scene_of(parts: list[tuple[trimesh.Trimesh, Float[np.ndarray, "4 4"]]]) -> trimesh.Scene:
    scene = trimesh.Scene()
    for index, (mesh, matrix) in enumerate(parts):
        scene.add_geometry(mesh, node_name=f"part_{index}", geom_name=f"part_{index}", transform=matrix)
    return scene


def _read_file(path: Path, owner: Path, limits: MeshLimits) -> bytes:
    what = owner.name if path == owner else f"{owner.name}: its file {path.name}"
    if not path.exists():
        raise AssetError(f"{what} does not exist (looked for {path}).")
    if not path.is_file():
        raise AssetError(f"{what} is not a regular file.")
    size = path.stat().st_size
    if size == 0:
        raise AssetError(f"{what} is empty (0 bytes).")
    if size > limits.file_bytes:
        raise AssetError(f"{what} has {size:,} bytes, more than the allowed {limits.file_bytes:,}.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise AssetError(f"{what} cannot be read ({error.strerror}).") from error


def _file_type(path: Path, content: bytes) -> str:
    """Tell the format: a GLB by its magic whatever its name, the others by suffix."""
    if content[:4] == b"glTF":
        return "glb"
    start = content[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise AssetError(f"{path.name} is a web page, not a mesh; the download probably failed.")
    suffix = path.suffix.lower()
    if suffix == ".glb":
        raise AssetError(f"{path.name} is not a GLB file: it does not begin with the bytes 'glTF'.")
    if suffix not in SUFFIXES:
        raise AssetError(f"{path.name} is no mesh that can be read; use one of {', '.join(SUFFIXES)}.")
    return suffix[1:]


# ---- glTF ----------------------------------------------------------------------------------------------------------


def _parse_glb(path: Path, content: bytes) -> tuple[dict[str, Any], bytes | None]:
    """Split a GLB container into its JSON and its binary chunk (glTF 2.0, section 4.4)."""
    if len(content) < 20:
        raise AssetError(f"{path.name} is cut off inside its GLB header.")
    version, length = struct.unpack_from("<II", content, 4)
    if version != 2:
        raise AssetError(f"{path.name} is a GLB of version {version}; only version 2 can be read.")
    if length > len(content):
        raise AssetError(f"{path.name} is cut off: it says {length:,} bytes and has {len(content):,}.")
    chunks: dict[bytes, bytes] = {}
    offset = 12
    while offset + 8 <= length:
        size, kind = struct.unpack_from("<I4s", content, offset)
        if offset + 8 + size > length:
            raise AssetError(f"{path.name} has a GLB chunk of {size:,} bytes that runs over the file's end.")
        chunks.setdefault(kind, content[offset + 8 : offset + 8 + size])
        offset += 8 + size
    if b"JSON" not in chunks:
        raise AssetError(f"{path.name} has no JSON chunk.")
    return _parse_json(path, chunks[b"JSON"]), chunks.get(b"BIN\0")


def _parse_json(path: Path, content: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AssetError(f"{path.name} holds broken JSON ({error}).") from error
    if not isinstance(tree, dict):
        raise AssetError(f"{path.name} is JSON, but not glTF: its top level is no object.")
    return tree


def _load_gltf(path: Path, tree: dict[str, Any], binary: bytes | None, limits: MeshLimits) -> trimesh.Scene:
    """Check the glTF JSON, amend it for trimesh, and load it through a resolver that serves only the file's folder."""
    unreadable = sorted(
        name
        for name in tree.get("extensionsRequired", [])
        if name not in READABLE_EXTENSIONS and not str(name).startswith("KHR_materials_")
    )
    if unreadable:
        raise AssetError(f"{path.name} requires the glTF extension {', '.join(unreadable)}, which cannot be read.")
    _check_nodes(path, tree)
    resolver: Any = _FolderResolver(path, limits)
    for entry in [*tree.get("buffers", []), *tree.get("images", [])]:
        if (uri := entry.get("uri")) is not None and not uri.startswith("data:"):
            resolver.check(uri)
    for accessor in tree.get("accessors", []):
        if not 0 < accessor["count"] <= 3 * limits.triangles:
            raise AssetError(
                f"{path.name} declares an array of {accessor['count']:,} elements; "
                f"up to {limits.triangles:,} triangles are allowed."
            )

    # trimesh gets the container as separate files, so that a GLB and a glTF take the same, checked path.
    if tree.get("buffers") and "uri" not in tree["buffers"][0]:
        if binary is None:
            raise AssetError(f"{path.name} names a binary chunk and has none.")
        resolver.binary = binary
        tree["buffers"][0]["uri"] = resolver.BINARY_NAME
    # Materials are named by their index, so that `_settle_colors` finds what trimesh drops about them. Vertex colours
    # get one where they have none: without it trimesh rounds them to linear bytes, which are coarse in the dark.
    materials = tree.setdefault("materials", [])
    for mesh in tree.get("meshes", []):
        for primitive in mesh["primitives"]:
            if "COLOR_0" in primitive["attributes"]:
                primitive.setdefault("material", len(materials))
    materials.append({"extras": {"is_plain": True}})
    for index, material in enumerate(materials):
        material["name"] = str(index)
    return trimesh.load_scene(io.BytesIO(json.dumps(tree).encode()), file_type="gltf", resolver=resolver)


def _check_nodes(path: Path, tree: dict[str, Any]) -> None:
    """Refuse node graphs that are no forest: shared children multiply without bound, cycles never end."""
    nodes = tree.get("nodes", [])
    children = [child for node in nodes for child in node.get("children", [])]
    if len(children) != len(set(children)):
        raise AssetError(f"{path.name} has a node with two parents, which glTF forbids.")
    parents = {child: index for index, node in enumerate(nodes) for child in node.get("children", [])}
    is_rooted = [False] * len(nodes)
    for start in range(len(nodes)):
        chain = []
        node: int | None = start
        while node is not None and not is_rooted[node]:
            chain.append(node)
            if len(chain) > len(nodes):
                raise AssetError(f"{path.name} has a node that is its own ancestor.")
            node = parents.get(node)
        for link in chain:
            is_rooted[link] = True


class _FolderResolver:
    """Serves the files beside a mesh file to trimesh, and nothing outside their folder."""

    BINARY_NAME = "\0binary-chunk"  # no file can have this name

    def __init__(self, path: Path, limits: MeshLimits) -> None:
        self.path = path
        self.limits = limits
        self.binary: bytes | None = None

    def check(self, uri: str) -> Path:
        """Return the file that `uri` names, or raise `AssetError` where it leaves the folder."""
        name = unquote(uri).strip()
        folder = self.path.parent.resolve()
        is_foreign = "://" in name or name.startswith(("/", "\\", "~")) or ":" in name.split("/")[0] or "\0" in name
        if is_foreign or ".." in name.replace("\\", "/").split("/"):
            raise AssetError(f"{self.path.name} refers to {uri[:200]!r}, which is outside its own folder.")
        target = (folder / name).resolve()
        if not target.is_relative_to(folder):
            raise AssetError(f"{self.path.name} refers to {uri[:200]!r}, which leads outside its own folder.")
        return target

    def get(self, name: str) -> bytes:
        if name == self.BINARY_NAME and self.binary is not None:
            return self.binary
        return _read_file(self.check(name), self.path, self.limits)

    def __getitem__(self, name: str) -> bytes:
        return self.get(name)


# ---- from what trimesh read to a plain scene ------------------------------------------------------------------------


def _plain_scene(path: Path, raw: trimesh.Scene, tree: dict[str, Any], limits: MeshLimits) -> trimesh.Scene:
    parts = scene_parts(raw)
    if not parts:
        raise AssetError(f"{path.name} holds no triangles.")
    num_triangles = sum(len(mesh.faces) for mesh, _ in parts)
    if num_triangles > limits.triangles:
        raise AssetError(f"{path.name} has {num_triangles:,} triangles, more than the allowed {limits.triangles:,}.")
    for mesh in {id(mesh): mesh for mesh, _ in parts}.values():
        _check_geometry(path, mesh, tree)
        _check_textures(path, mesh, tree, limits)
        _settle_colors(mesh, tree)
    scene = _scene_of([(mesh, WORLD_FROM_GLTF @ matrix) for mesh, matrix in parts])
    vertices = scene_vertices(scene)
    if not np.isfinite(vertices).all():
        raise AssetError(f"{path.name} places a part with a matrix that is not finite.")
    if not np.ptp(vertices, axis=0).max() > 0:
        raise AssetError(f"{path.name} has no extent: all its vertices lie in one point.")
    if not any(mesh.area > 0 for mesh, _ in parts):
        raise AssetError(f"{path.name} has no surface: all its triangles have zero area.")
    return scene


def _check_geometry(path: Path, mesh: trimesh.Trimesh, tree: dict[str, Any]) -> None:
    vertices = np.asarray(mesh.vertices)
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(vertices):
        raise AssetError(f"{path.name} has triangles that use vertices which do not exist.")
    if not np.isfinite(vertices).all():
        raise AssetError(f"{path.name} has vertices that are not finite (NaN or infinite).")
    if not vertices.any():
        is_draco = "KHR_draco_mesh_compression" in tree.get("extensionsUsed", [])
        hint = "; its Draco compression could not be decoded (is DracoPy installed?)" if is_draco else ""
        raise AssetError(f"{path.name} has a part with every vertex at the origin{hint}.")


def _check_textures(path: Path, mesh: trimesh.Trimesh, tree: dict[str, Any], limits: MeshLimits) -> None:
    material = getattr(mesh.visual, "material", None)
    for slot in ("baseColorTexture", "emissiveTexture", "image"):
        image = getattr(material, slot, None)
        if image is None:
            continue
        width, height = image.size
        if width * height > limits.texture_pixels:
            raise AssetError(
                f"{path.name} has a texture of {width} x {height} pixels, more than the allowed "
                f"{limits.texture_pixels:,}."
            )
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise AssetError(f"{path.name} has a texture that cannot be decoded ({error}).") from error
    wanted = _material_record(mesh, tree).get("pbrMetallicRoughness", {}).get("baseColorTexture")
    if wanted is not None and getattr(material, "baseColorTexture", None) is None:
        logger.warning("%s: a texture is missing or in a format that cannot be read; drawn without it.", path.name)


def _settle_colors(mesh: trimesh.Trimesh, tree: dict[str, Any]) -> None:
    """Bring what trimesh leaves as the file has it to our conventions: sRGB vertex colours, transformed uv."""
    visual = mesh.visual
    if not tree or not isinstance(visual, TextureVisuals):
        return
    record = _material_record(mesh, tree)
    if (colors := visual.vertex_attributes.get("color")) is not None:
        visual.vertex_attributes["color"] = colors = _srgb_bytes(np.asarray(colors))
        if record.get("extras") == {"is_plain": True}:
            mesh.visual = ColorVisuals(mesh, vertex_colors=colors)
            return
    texture = record.get("pbrMetallicRoughness", {}).get("baseColorTexture", {})
    transform = texture.get("extensions", {}).get("KHR_texture_transform")
    if transform is not None and visual.uv is not None:
        visual.uv = _transform_uv(np.asarray(visual.uv, dtype=np.float64), transform)


def _material_record(mesh: trimesh.Trimesh, tree: dict[str, Any]) -> dict[str, Any]:
    material = getattr(mesh.visual, "material", None)
    return tree["materials"][int(material.name)] if tree and material is not None else {}


def _srgb_bytes(colors: np.ndarray) -> np.ndarray:
    """Turn linear colours (bytes, 16-bit or floats, RGB or RGBA) into sRGB bytes RGBA; alpha is linear in both."""
    scale = np.iinfo(colors.dtype).max if np.issubdtype(colors.dtype, np.integer) else 1.0
    linear = np.clip(colors.astype(np.float64) / scale, 0.0, 1.0)
    alpha = linear[:, 3:] if linear.shape[1] == 4 else np.ones((len(linear), 1))
    return np.rint(255.0 * np.concatenate([linear_to_srgb(linear[:, :3]), alpha], axis=1)).astype(np.uint8)


def _transform_uv(uv: Float[np.ndarray, "vertices 2"], transform: dict[str, Any]) -> Float[np.ndarray, "vertices 2"]:
    """Apply KHR_texture_transform; trimesh's v grows upwards, glTF's downwards."""
    u, v = np.stack([uv[:, 0], 1.0 - uv[:, 1]]) * np.reshape(transform.get("scale", [1.0, 1.0]), (2, 1))
    cos, sin = math.cos(transform.get("rotation", 0.0)), math.sin(transform.get("rotation", 0.0))
    du, dv = transform.get("offset", [0.0, 0.0])
    return np.stack([cos * u + sin * v + du, 1.0 - (-sin * u + cos * v + dv)], axis=1)
