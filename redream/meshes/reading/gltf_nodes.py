"""The node graph of a glTF file: where each mesh stands, and where the joints of its skin do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from trimesh.transformations import quaternion_matrix

from redream.meshes.reading.gltf_arrays import GltfArrays, numbers
from redream.meshes.reading.refusal import Refused


@dataclass(frozen=True, eq=False)
class PlacedMesh:
    """One visible node with a mesh; joint matrices instead of a matrix where the mesh has a skin."""

    mesh: Any
    matrix: Float[np.ndarray, "4 4"]
    morph_weights: list[float] | None
    skin: Any = None


class GltfNodes:
    """The nodes of a file, with the matrix of each in the scene."""

    def __init__(self, arrays: GltfArrays) -> None:
        self._arrays = arrays
        num_nodes = len(arrays.tree.get("nodes", []))
        self._nodes = [arrays.entry("nodes", index) for index in range(num_nodes)]
        self._parents = self._find_parents()
        self._matrices = self._find_matrices()

    def placed_meshes(self) -> list[PlacedMesh]:
        """List the meshes of the file's scene, in the order of the nodes."""
        reached = self._reached()
        placed = []
        for index, node in enumerate(self._nodes):
            if index in reached and "mesh" in node:
                is_skinned = node.get("skin") is not None
                matrix = np.eye(4) if is_skinned else self._matrices[index]  # joints place a skinned mesh, nodes do not
                placed.append(PlacedMesh(node["mesh"], matrix, node.get("weights"), node.get("skin")))
        return placed

    def joint_matrices(self, skin_index: Any) -> Float[np.ndarray, "joints 4 4"]:
        """Return what carries a skin's vertices from the mesh to where its joints stand."""
        skin = self._arrays.entry("skins", skin_index)
        joints = skin.get("joints", [])
        for joint in joints:
            self._arrays.entry("nodes", joint)
        matrices = np.array([self._matrices[joint] for joint in joints]).reshape(-1, 4, 4)
        if not len(matrices):
            raise Refused("has a skin without joints")
        if "inverseBindMatrices" not in skin:
            return matrices
        inverse = self._arrays.values(skin["inverseBindMatrices"], 16).reshape(-1, 4, 4).transpose(0, 2, 1)
        if len(inverse) < len(matrices):
            raise Refused("has a skin with fewer bind matrices than joints")
        return matrices @ inverse[: len(matrices)].astype(np.float64)

    def _find_parents(self) -> list[int | None]:
        parents: list[int | None] = [None] * len(self._nodes)
        for index, node in enumerate(self._nodes):
            for child in node.get("children", []):
                self._arrays.entry("nodes", child)
                if parents[child] is not None:
                    raise Refused("has a node with two parents, which glTF forbids")
                parents[child] = index
        return parents

    def _find_matrices(self) -> list[Float[np.ndarray, "4 4"]]:
        matrices: list[Any] = [None] * len(self._nodes)
        open_nodes = [index for index, parent in enumerate(self._parents) if parent is None]
        while open_nodes:
            index = open_nodes.pop()
            parent = self._parents[index]
            local = _local_matrix(self._nodes[index])
            matrices[index] = local if parent is None else matrices[parent] @ local
            open_nodes.extend(self._nodes[index].get("children", []))
        if any(matrix is None for matrix in matrices):  # what hangs below no root hangs below itself
            raise Refused("has a node that is its own ancestor")
        return matrices

    def _reached(self) -> set[int]:
        """Return the nodes below the roots of the scene, or below all roots where the file names no scene."""
        if self._arrays.tree.get("scenes"):
            scene = self._arrays.entry("scenes", self._arrays.tree.get("scene", 0))
            open_nodes = list(scene.get("nodes", []))
        else:
            open_nodes = [index for index, parent in enumerate(self._parents) if parent is None]
        reached = set()
        while open_nodes:
            index = open_nodes.pop()
            node = self._arrays.entry("nodes", index)
            is_hidden = node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True) is False
            if index not in reached and not is_hidden:
                reached.add(index)
                open_nodes.extend(node.get("children", []))
        return reached


def _local_matrix(node: dict[str, Any]) -> Float[np.ndarray, "4 4"]:
    if "matrix" in node:
        return _affine(numbers(node["matrix"], 16).reshape(4, 4).T)
    x, y, z, w = numbers(node.get("rotation", [0, 0, 0, 1]), 4)
    if not x * x + y * y + z * z + w * w > 0:
        raise Refused("has a node with a rotation of length zero")
    matrix = quaternion_matrix([w, x, y, z])
    matrix[:3, :3] *= numbers(node.get("scale", [1, 1, 1]), 3)
    matrix[:3, 3] = numbers(node.get("translation", [0, 0, 0]), 3)
    return matrix


def _affine(matrix: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Return a matrix whose last row is exactly that of a placement; rounding has spoilt it in some files."""
    if not np.allclose(matrix[3], [0, 0, 0, 1], rtol=0, atol=1e-3):
        raise Refused("has a node with a matrix that is no placement: its last row is not 0 0 0 1")
    return np.vstack([matrix[:3], [0, 0, 0, 1]])
