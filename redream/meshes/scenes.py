"""Plain scenes: parts `part_0, part_1, ...` of a `trimesh.Scene`, each placed by one matrix, triangles only.

Scenes share their parts when they are moved, because trimesh's `copy` loses the vertex colours of a part that also has
a material; so treat parts as read-only.
"""

from __future__ import annotations

import numpy as np
import trimesh
from jaxtyping import Float

Part = tuple[trimesh.Trimesh, Float[np.ndarray, "4 4"]]  # a mesh and the matrix that places it in the scene


def scene_of(parts: list[Part]) -> trimesh.Scene:
    """Make a scene of placed meshes, which are not copied."""
    scene = trimesh.Scene()
    for index, (mesh, matrix) in enumerate(parts):
        scene.add_geometry(mesh, node_name=f"part_{index}", geom_name=f"part_{index}", transform=matrix)
    return scene


def scene_parts(scene: trimesh.Scene) -> list[Part]:
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
