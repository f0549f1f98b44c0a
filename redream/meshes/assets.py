"""Assets: one 3D object of the database, and the door through which every mesh file enters.

`load_mesh` reads GLB, glTF, OBJ, PLY and STL into a `trimesh.Scene` in world axes (right-handed, +z up, front +x) or
refuses with an `AssetError`: one sentence that names the file and the cause. Files come from anyone, so they are read
in a process of their own (`reading`). glTF is y-up with its front along +z, so world (x, y, z) = glTF (z, x, y);
OBJ, PLY and STL name no axes and are read the same way unless the caller knows better.

Scenes are plain (`scenes`): treat their parts as read-only. Vertex colours are sRGB bytes whatever the file holds (glTF
stores them linear), `baseColorFactor` stays linear as in glTF.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Float

from redream.meshes.reading.client import names_apart, read_mesh_apart
from redream.meshes.reading.folder import named_files as find_named
from redream.meshes.reading.refusal import AssetError as AssetError  # what `load_mesh` raises
from redream.meshes.scenes import scene_of, scene_parts, scene_vertices
from redream.records import Asset, UpAxis
from redream.settings import MeshLimits

DEFAULT_LIMITS = MeshLimits()


def load_mesh(
    path: str | Path, limits: MeshLimits = DEFAULT_LIMITS, up_axis: UpAxis = "+Y", border: str = ""
) -> trimesh.Scene:
    """Read a mesh file into a scene of triangles in world axes, or raise `AssetError`.

    `border` is the outermost folder of pictures that an OBJ may name; by default one level above the mesh's own.

    With `up_axis="+Z"`, for files whose author ignored glTF's axes, the file's axes are taken for the world's.
    """
    return read_mesh_apart(Path(path), limits, up_axis, border)


def load_asset(asset: Asset, limits: MeshLimits = DEFAULT_LIMITS) -> trimesh.Scene:
    """Read an asset's mesh into a scene in world axes, or raise `AssetError`."""
    return load_mesh(asset.mesh_path, limits, asset.up_axis, asset.border)


def named_files(path: str | Path, limits: MeshLimits = DEFAULT_LIMITS, border: str = "") -> list[Path]:
    """Return a mesh file and the files that it is drawn from: buffers, material libraries, pictures.

    What is missing, is outside, or cannot be read is left out.
    """
    return find_named(Path(path), partial(names_apart, limits=limits), Path(border) if border else None)


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


def _moved(scene: trimesh.Scene, matrix: Float[np.ndarray, "4 4"]) -> trimesh.Scene:
    return scene_of([(mesh, matrix @ placed) for mesh, placed in scene_parts(scene)])
