"""Images of unknown origin, as plain pixels of a bounded size."""

from __future__ import annotations

import io
import math

from PIL import Image

from redream.meshes.reading.refusal import Refused
from redream.settings import MeshLimits

# By content, not by name or declared type. Pillow reads more kinds, and starts Ghostscript for one of them.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TGA", "TIFF")

MAX_SIZE = 2048  # pixels along an axis; larger textures are reduced, because the renderer shows no more


def open_image(content: bytes, limits: MeshLimits) -> Image.Image:
    """Read the head of an image and check its size; its pixels are decoded by `plain_image`."""
    Image.MAX_IMAGE_PIXELS = None  # our limit instead of Pillow's
    try:
        image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins fail in as many ways as images can be broken
        kind = "a KTX2 image, which cannot be read" if content[1:7] == b"KTX 20" else "no image of a known kind"
        raise Refused(f"has a texture that is {kind} (known are {', '.join(IMAGE_FORMATS)})") from error
    check_size(image, limits)
    return image


def plain_image(image: Image.Image, limits: MeshLimits) -> Image.Image:
    """Decode an image to RGB or RGBA, at most `MAX_SIZE` pixels along an axis."""
    check_size(image, limits)
    try:
        has_alpha = "A" in image.getbands() or "transparency" in image.info
        plain = image.convert("RGBA" if has_alpha else "RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise Refused(f"has a {image.format} texture that cannot be decoded: it is damaged or cut off") from error
    return plain.reduce(math.ceil(max(plain.size) / MAX_SIZE))


def check_size(image: Image.Image, limits: MeshLimits) -> None:
    width, height = image.size
    if width * height > limits.texture_pixels:
        raise Refused(f"has a texture of {width} x {height} pixels, more than the allowed {limits.texture_pixels:,}")
