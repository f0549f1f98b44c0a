"""Read a mesh file of any kind into a plain scene in world axes, in this process; `apart` runs it in one of its own.

Refused is whatever would be drawn wrongly or not at all: broken, empty, degenerate, invisible, above the limits. What
is opened and deserves a remark is logged.
"""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from trimesh.visual import ColorVisuals, TextureVisuals

from redream.meshes.reading.folder import Folder, read_whole_file
from redream.meshes.reading.gltf import check_sizes, read_gltf
from redream.meshes.reading.obj_colors import ObjColors, PlyColors, plain_ply, stl_colors
from redream.meshes.reading.refusal import Refused
from redream.meshes.reading.textures import plain_image
from redream.meshes.scenes import Part, scene_of, scene_parts, scene_vertices
from redream.records import MESH_SUFFIXES
from redream.settings import MeshLimits

logger = logging.getLogger(__name__)


# world (x, y, z) = y-up (z, x, y)
WORLD_FROM_Y_UP = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
WORLD_FROM_UP = {"+Y": WORLD_FROM_Y_UP, "+Z": np.eye(4)}
FORMATS = {"gltf": "glTF", "obj": "OBJ", "ply": "PLY", "stl": "STL"}
IMAGE_SLOTS = ("baseColorTexture", "emissiveTexture", "image")
FAR = 1e30  # units
FAR_STEPS = 1000  # a scene of fewer steps of float32 across has lost its shape


def read_mesh(path: Path, limits: MeshLimits, up_axis: str, border: Path | None = None) -> trimesh.Scene:
    """Read a mesh file, or raise `Refused`; `border` is the outermost folder of its pictures."""
    content = read_whole_file(path, limits)
    file_type = _file_type(path, content)
    folder = Folder(path, limits, border)
    try:
        parts = read_gltf(content, folder, limits) if file_type == "gltf" else _read_other(content, file_type, folder)
        return _plain_scene(parts, limits, WORLD_FROM_UP[up_axis])
    except (Refused, MemoryError):
        raise
    except Exception as error:
        # The parsers fail in as many ways as files can be broken (IndexError, KeyError, struct.error, ...).
        raise Refused(f"is not a readable {FORMATS[file_type]} file: it is damaged or cut off") from error


def _file_type(path: Path, content: bytes) -> str:
    """Tell the format: a GLB by its magic whatever its name, the others by suffix."""
    if content[:4] == b"glTF":
        return "gltf"
    start = content[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise Refused("is a web page, not a mesh; the download probably failed")
    suffix = path.suffix.lower()
    if suffix == ".glb":
        raise Refused("is not a GLB file: it does not begin with the bytes 'glTF'")
    if suffix not in MESH_SUFFIXES:
        raise Refused(f"is no mesh that can be read; use one of {', '.join(MESH_SUFFIXES)}")
    return suffix[1:]


def _read_other(content: bytes, file_type: str, folder: Folder) -> list[Part]:
    resolver: Any = None  # trimesh's own class wants it to list and write files
    if file_type == "ply":
        _check_ply(content)
        content, resolver = plain_ply(content), PlyColors(folder)
    elif file_type == "obj":
        resolver = ObjColors(content, folder)
        content = resolver.plain(content)
    scene = trimesh.load_scene(io.BytesIO(content), file_type=file_type, resolver=resolver, process=False)
    for mesh in _meshes(scene_parts(scene)):
        _check_geometry(mesh)  # before `process` drops what is not finite
        _leave_out_defaults(mesh, file_type)
        if file_type == "stl" and (colors := stl_colors(content)) is not None and len(colors) == len(mesh.faces):
            mesh.visual = ColorVisuals(face_colors=colors)
    parts = _near_unit_size(scene_parts(scene))
    for mesh in _meshes(parts):
        mesh.process(validate=False)  # joins vertices within 1e-8, hence after the change of size
    for material in {id(m): m for mesh in _meshes(parts) if (m := getattr(mesh.visual, "material", None))}.values():
        for slot in IMAGE_SLOTS:
            if (image := getattr(material, slot, None)) is not None:  # opened, but not decoded yet
                setattr(material, slot, plain_image(image, folder.limits))
    return parts


def _leave_out_defaults(mesh: trimesh.Trimesh, file_type: str) -> None:
    """Take off the dark greys that trimesh puts in the place of a material or a colour that a file does not have."""
    visual: Any = mesh.visual
    if not isinstance(visual, TextureVisuals):
        return
    image = visual.material.image
    if image is not None and image.format is None:  # from no file
        mesh.visual = ColorVisuals()
    elif file_type == "ply":
        visual.material.diffuse = np.array([255, 255, 255, 255], dtype=np.uint8)


def _check_ply(content: bytes) -> None:
    """Refuse a text PLY with fewer lines than it declares elements, which trimesh reads as far as it goes."""
    head, _, body = content.partition(b"end_header")
    if b"format ascii" in head:
        declared = sum(int(line.split()[2]) for line in head.splitlines() if line.startswith(b"element "))
        found = sum(1 for line in body.splitlines() if line.strip())
        if found < declared:
            raise Refused(f"is cut off: it declares {declared:,} elements and has {found:,}")


def _plain_scene(parts: list[Part], limits: MeshLimits, world_from_file: np.ndarray) -> trimesh.Scene:
    parts = [(mesh, matrix) for mesh, matrix in parts if len(mesh.faces)]
    if not parts:
        raise Refused("holds no triangles")
    check_sizes(sum(len(mesh.faces) for mesh, _ in parts), len(parts), limits)
    for mesh in _meshes(parts):
        _check_geometry(mesh)
    vertices = scene_vertices(scene_of(parts))
    if not np.isfinite(vertices).all():
        raise Refused("places a part with a matrix that is not finite")
    _check_extent(vertices)
    parts = _near_unit_size(parts)
    if not any(mesh.area > 0 for mesh in _meshes(parts)):
        raise Refused("has no surface: all its triangles have zero area")
    if not any(_is_visible(mesh) for mesh in _meshes(parts)):
        raise Refused("is invisible: all its materials are fully transparent")
    return scene_of([(mesh, world_from_file @ matrix) for mesh, matrix in parts])


def _check_geometry(mesh: trimesh.Trimesh) -> None:
    vertices = np.asarray(mesh.vertices)
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(vertices):
        raise Refused("has triangles that use vertices which do not exist")
    if not np.isfinite(vertices).all():
        raise Refused("has vertices that are not finite (NaN or infinite)")
    if not vertices.any():
        raise Refused("has a part with every vertex at the origin")


def _check_extent(vertices: np.ndarray) -> None:
    extents = np.ptp(vertices, axis=0)
    if not extents.max() > 0:
        raise Refused("has no extent: all its vertices lie in one point")
    if not extents.max() < FAR:
        raise Refused(f"is {extents.max():.0e} units large, more than can be computed with")
    if not (distance := np.abs(vertices).max()) < FAR:
        raise Refused(f"lies {distance:.0e} units from the origin, more than can be computed with")
    if extents.min() == 0:
        logger.warning("is flat: views along its plane show nothing")
    steps = extents.max() / np.spacing(np.abs(vertices).max().astype(np.float32))
    if steps < FAR_STEPS:
        logger.warning("lies so far from the origin that its coordinates are rounded to %.0f steps", steps)


def _near_unit_size(parts: list[Part]) -> list[Part]:
    """Move a power of two, which is exact, from the vertices to the matrices; trimesh's tolerances are absolute."""
    extent = max((float(np.ptp(mesh.vertices, axis=0).max()) for mesh in _meshes(parts)), default=0.0)
    if not 0 < extent < FAR or 2**-4 <= extent <= 2**16:
        return parts
    factor = 2.0 ** -round(math.log2(extent))
    for mesh in _meshes(parts):
        normals = mesh.vertex_normals if "vertex_normals" in mesh._cache else None
        mesh.vertices = np.asarray(mesh.vertices) * factor
        if normals is not None:
            mesh.vertex_normals = normals  # of the file; trimesh forgets them with the old vertices
    back = np.diag([1 / factor] * 3 + [1.0])
    return [(mesh, matrix @ back) for mesh, matrix in parts]


def _meshes(parts: list[Part]) -> list[trimesh.Trimesh]:
    return list({id(mesh): mesh for mesh, _ in parts}.values())


def _is_visible(mesh: trimesh.Trimesh) -> bool:
    """Tell a part that is drawn from one whose colours are transparent everywhere."""
    visual: Any = mesh.visual
    material: Any = getattr(visual, "material", None)
    if not isinstance(visual, TextureVisuals) or getattr(material, "alphaMode", None) not in ("BLEND", "MASK"):
        return True
    factor = material.baseColorFactor
    alpha = 1.0 if factor is None else factor[3] / 255.0
    if material.baseColorTexture is not None and "A" in material.baseColorTexture.getbands():
        alpha *= material.baseColorTexture.getextrema()[-1][1] / 255.0
    if (colors := visual.vertex_attributes.get("color")) is not None:
        alpha *= colors[:, 3].max() / 255.0
    return bool(alpha > 0 and (material.alphaMode == "BLEND" or alpha >= material.alphaCutoff))
