"""What a glTF primitive looks like: base colour, emission, transparency and vertex colours, as trimesh keeps them.

Vertex colours come out as sRGB bytes (glTF stores them linear), texture coordinates with v upwards (glTF's grows
downwards) and KHR_texture_transform applied, textures as RGB or RGBA images; `baseColorFactor` stays linear.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial

from redream.colors import linear_to_srgb
from redream.meshes.reading.gltf_arrays import GltfArrays, numbers
from redream.meshes.reading.refusal import Refused
from redream.meshes.reading.textures import open_image, plain_image

logger = logging.getLogger(__name__)

TEXTURE_SOURCES = ("EXT_texture_webp",)  # extensions that name an image beside or instead of `source`
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
DARKEST_TINT = 1 / 8  # mean luminance of vertex colours that are believed to tint a texture


@dataclass(frozen=True, eq=False)
class Paint:
    """A material and where its texture takes its coordinates from."""

    material: PBRMaterial
    texcoord: int = 0
    transform: dict[str, Any] | None = None


class GltfMaterials:
    """The materials of a glTF file, each made once, so that parts share them and their images."""

    def __init__(self, arrays: GltfArrays) -> None:
        self._arrays = arrays
        self._paints: dict[int, Paint] = {}
        self._images: dict[int, Image.Image | None] = {}

    def visual(self, index: Any, attributes: dict[str, np.ndarray]) -> ColorVisuals | TextureVisuals | None:
        """Return a primitive's look; `attributes` are its float arrays by glTF's names."""
        colors = srgb_bytes(attributes["COLOR_0"]) if "COLOR_0" in attributes else None
        if index is None:
            return None if colors is None else ColorVisuals(vertex_colors=colors)
        paint = self.paint(index)
        uv = attributes.get(f"TEXCOORD_{paint.texcoord}")
        if uv is not None:
            uv = np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1).astype(np.float64)
            uv = uv if paint.transform is None else transform_uv(uv, paint.transform)
        visual = TextureVisuals(uv=uv, material=paint.material)
        if colors is not None and paint.material.baseColorTexture is not None and _is_mask(attributes["COLOR_0"]):
            logger.warning("vertex colours that would black out the texture are taken for a mask and left out")
        elif colors is not None:
            visual.vertex_attributes["color"] = colors
        return visual

    def paint(self, index: Any) -> Paint:
        material = self._arrays.entry("materials", index)
        if index not in self._paints:
            self._paints[index] = self._make_paint(material)
        return self._paints[index]

    def _make_paint(self, material: dict[str, Any]) -> Paint:
        gloss = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
        names = ("diffuseFactor", "diffuseTexture") if gloss else ("baseColorFactor", "baseColorTexture")
        colors = gloss or material.get("pbrMetallicRoughness", {})
        slot = colors.get(names[1])
        base_texture = None if slot is None else self._texture(slot)
        glow = material.get("emissiveTexture")
        emissive_texture = None if glow is None else self._texture(glow)
        where = (slot if base_texture is not None else glow) or {}
        transform = where.get("extensions", {}).get("KHR_texture_transform")
        factor = colors.get(names[0])
        made = PBRMaterial(
            baseColorFactor=None if factor is None else np.rint(255.0 * numbers(factor, 4, 0.0, 1.0)).astype(np.uint8),
            baseColorTexture=base_texture,
            emissiveFactor=numbers(material.get("emissiveFactor", [0, 0, 0]), 3, 0.0, 1.0),
            emissiveTexture=emissive_texture,
            alphaMode=_alpha_mode(material),
            alphaCutoff=float(numbers([material.get("alphaCutoff", 0.5)], 1)[0]),
            doubleSided=bool(material.get("doubleSided", False)),
        )
        return Paint(made, (transform or {}).get("texCoord", where.get("texCoord", 0)), transform)

    def _texture(self, slot: dict[str, Any]) -> Image.Image | None:
        texture = self._arrays.entry("textures", slot.get("index"))
        extensions = texture.get("extensions", {})
        named = [extensions[name].get("source") for name in TEXTURE_SOURCES if name in extensions]
        source = named[0] if named else texture.get("source")
        if source is None:
            kinds = ", ".join(extensions) or "no image"
            raise Refused(f"has a texture that cannot be read ({kinds}), and none to fall back on")
        image = self._arrays.entry("images", source)
        if source not in self._images:
            self._images[source] = self._image(image)
        return self._images[source]

    def _image(self, image: dict[str, Any]) -> Image.Image | None:
        if "uri" in image:
            content = self._beside(image["uri"])
        else:
            content, _ = self._arrays.view(image.get("bufferView"))
        if content is None:
            return None
        return plain_image(open_image(bytes(content), self._arrays.limits), self._arrays.limits)

    def _beside(self, uri: Any) -> bytes | None:
        if isinstance(uri, str) and uri[:5].lower() != "data:" and not self._arrays.folder.find(uri).exists():
            logger.warning("a texture is missing (%s); drawn without it", uri[:200])
            return None
        return self._arrays.uri_content(uri)


def _alpha_mode(material: dict[str, Any]) -> str:
    mode = material.get("alphaMode", "OPAQUE")
    if mode not in ("OPAQUE", "MASK", "BLEND"):
        raise Refused(f"has a material with the alpha mode {str(mode)[:60]!r}")
    return mode


def srgb_bytes(linear: Float[np.ndarray, "vertices channels"]) -> UInt8[np.ndarray, "vertices 4"]:
    """Turn linear colours, RGB or RGBA in [0, 1], into sRGB bytes RGBA; alpha is linear in both."""
    linear = np.clip(np.nan_to_num(linear.astype(np.float64)), 0.0, 1.0)
    alpha = linear[:, 3:] if linear.shape[1] == 4 else np.ones((len(linear), 1))
    return np.rint(255.0 * np.concatenate([linear_to_srgb(linear[:, :3]), alpha], axis=1)).astype(np.uint8)


def transform_uv(uv: Float[np.ndarray, "vertices 2"], transform: dict[str, Any]) -> Float[np.ndarray, "vertices 2"]:
    """Apply KHR_texture_transform; our v grows upwards, glTF's downwards."""
    scale = numbers(transform.get("scale", [1.0, 1.0]), 2)
    (rotation,) = numbers([transform.get("rotation", 0.0)], 1)
    du, dv = numbers(transform.get("offset", [0.0, 0.0]), 2)
    u, v = np.stack([uv[:, 0], 1.0 - uv[:, 1]]) * scale[:, None]
    cos, sin = math.cos(rotation), math.sin(rotation)
    return np.stack([cos * u + sin * v + du, 1.0 - (-sin * u + cos * v + dv)], axis=1)


def _is_mask(linear: Float[np.ndarray, "vertices channels"]) -> bool:
    """Tell data for a shader (wind, wetness), which exporters put into COLOR_0, from a tint of the texture.

    A mask varies, leaves at least two channels of most vertices at zero, and would black out the texture.
    """
    rgb = linear[:, :3]
    is_single_channel = np.median((rgb > 0).sum(axis=1)) <= 1
    return bool(is_single_channel and np.ptp(rgb, axis=0).any() and (rgb @ LUMINANCE).mean() < DARKEST_TINT)
