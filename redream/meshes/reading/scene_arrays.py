"""A plain scene as bytes and back: safetensors, that is numbers and a table of contents, nothing that can run.

The bytes come from a process that read a hostile file, so what they say is checked again where it could do harm.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from safetensors.numpy import load, save
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from redream.meshes.scenes import scene_of, scene_parts

CONTENTS = "contents"
PBR_FIELDS = ("baseColorFactor", "emissiveFactor", "alphaMode", "alphaCutoff", "doubleSided")


def encode_scene(scene: trimesh.Scene) -> bytes:
    """Write geometry, vertex colours, texture coordinates, and of materials what is drawn of them."""
    arrays: dict[str, np.ndarray] = {}
    parts = scene_parts(scene)
    meshes = {id(mesh): mesh for mesh, _ in parts}
    materials = {id(m): m for mesh in meshes.values() if (m := getattr(mesh.visual, "material", None)) is not None}
    images = {id(image): image for m in materials.values() for image in _images(m).values()}
    mesh_numbers = {key: number for number, key in enumerate(meshes)}
    material_numbers = {key: number for number, key in enumerate(materials)}
    image_numbers = {key: number for number, key in enumerate(images)}
    for number, image in enumerate(images.values()):
        arrays[f"image_{number}"] = np.asarray(image)
    contents = {
        "meshes": [
            _put_mesh(mesh, f"mesh_{number}", arrays, material_numbers) for number, mesh in enumerate(meshes.values())
        ],
        "materials": [_put_material(material, image_numbers) for material in materials.values()],
        "parts": [mesh_numbers[id(mesh)] for mesh, _ in parts],
    }
    arrays["matrices"] = np.array([matrix for _, matrix in parts])
    arrays[CONTENTS] = np.frombuffer(json.dumps(contents).encode(), dtype=np.uint8)
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def decode_scene(content: bytes) -> trimesh.Scene:
    """Read what `encode_scene` wrote, or raise any exception."""
    arrays = load(content)
    contents = json.loads(arrays[CONTENTS].tobytes())
    materials = [_get_material(record, arrays) for record in contents["materials"]]
    meshes = [_get_mesh(f"mesh_{n}", record, arrays, materials) for n, record in enumerate(contents["meshes"])]
    matrices = arrays["matrices"].reshape(-1, 4, 4)
    return scene_of([(meshes[number], matrix) for number, matrix in zip(contents["parts"], matrices, strict=True)])


def _put_mesh(
    mesh: trimesh.Trimesh, name: str, arrays: dict[str, np.ndarray], material_numbers: dict[int, int]
) -> dict[str, Any]:
    visual: Any = mesh.visual  # colours or a texture, told apart by `kind`
    arrays[f"{name}.vertices"] = np.asarray(mesh.vertices, dtype=np.float64)
    arrays[f"{name}.faces"] = np.asarray(mesh.faces, dtype=np.int32)
    if "vertex_normals" in mesh._cache:  # trimesh keeps those of the file there
        arrays[f"{name}.normals"] = np.asarray(mesh.vertex_normals, dtype=np.float64)
    if visual.kind in ("vertex", "face"):
        colors = visual.vertex_colors if visual.kind == "vertex" else visual.face_colors
        arrays[f"{name}.{visual.kind}_colors"] = np.asarray(colors, dtype=np.uint8)
    if not isinstance(visual, TextureVisuals):
        return {"material": None}
    if visual.uv is not None:
        arrays[f"{name}.uv"] = np.asarray(visual.uv, dtype=np.float64)
    if (colors := visual.vertex_attributes.get("color")) is not None:
        arrays[f"{name}.color"] = np.asarray(colors, dtype=np.uint8)
    return {"material": None if visual.material is None else material_numbers[id(visual.material)]}


def _get_mesh(
    name: str, record: dict[str, Any], arrays: dict[str, np.ndarray], materials: list[Any]
) -> trimesh.Trimesh:
    vertices, faces = arrays[f"{name}.vertices"], arrays[f"{name}.faces"].astype(np.int64)
    # What is drawn goes to OpenGL, which trusts its indices.
    if not (faces.min() >= 0 and faces.max() < len(vertices) and np.isfinite(vertices).all()):
        raise ValueError("the reader returned geometry that is none")
    visual = None
    if record["material"] is not None:
        visual = TextureVisuals(uv=arrays.get(f"{name}.uv"), material=materials[record["material"]])
        if (colors := arrays.get(f"{name}.color")) is not None:
            visual.vertex_attributes["color"] = colors
    elif f"{name}.vertex_colors" in arrays:
        visual = ColorVisuals(vertex_colors=arrays[f"{name}.vertex_colors"])
    elif f"{name}.face_colors" in arrays:
        visual = ColorVisuals(face_colors=arrays[f"{name}.face_colors"])
    normals = arrays.get(f"{name}.normals")
    return trimesh.Trimesh(vertices, faces, vertex_normals=normals, visual=visual, process=False, validate=False)


def _images(material: Any) -> dict[str, Image.Image]:
    slots = ("baseColorTexture", "emissiveTexture") if isinstance(material, PBRMaterial) else ("image",)
    return {slot: image for slot in slots if (image := getattr(material, slot)) is not None}


def _put_material(material: Any, image_numbers: dict[int, int]) -> dict[str, Any]:
    if isinstance(material, PBRMaterial):
        fields = {name: _plain(getattr(material, name)) for name in PBR_FIELDS}
    else:
        fields = {"diffuse": _plain(material.diffuse)}
    return {"fields": fields, "images": {slot: image_numbers[id(i)] for slot, i in _images(material).items()}}


def _get_material(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    images: dict[str, Any] = {
        slot: Image.fromarray(arrays[f"image_{number}"]) for slot, number in record["images"].items()
    }
    fields = record["fields"]
    if "diffuse" in fields:
        return SimpleMaterial(diffuse=np.array(fields["diffuse"], dtype=np.uint8), **images)
    if fields["baseColorFactor"] is not None:
        fields["baseColorFactor"] = np.array(fields["baseColorFactor"], dtype=np.uint8)
    return PBRMaterial(**fields, **images)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
