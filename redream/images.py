"""Image conventions in one place: ranges, layouts, compositing, files.

`rgb` is [..., H, W, 3] in [0, 1]; `images` is [B, 3, H, W] in [0, 1], as networks want. A `Rendering`'s rgb is
premultiplied by its opacity, that is, composited over black: adding `(1 - opacity) * background` completes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from redream.devices import send


@dataclass(frozen=True, eq=False)
class Rendering:
    """What a renderer returns. `depth` is the distance from the camera in world units, 0 where nothing was hit."""

    rgb: Float[Tensor, "batch height width 3"]
    opacity: Float[Tensor, "batch height width 1"]
    depth: Float[Tensor, "batch height width 1"]
    emptiness: Float[Tensor, "batch height width 1"] | None = None  # of a volume, where it is asked for

    def __getitem__(self, index: slice | Tensor) -> Rendering:
        return Rendering(self.rgb[index], self.opacity[index], self.depth[index])

    def to(self, device: torch.device) -> Rendering:
        return Rendering(send(self.rgb, device), send(self.opacity, device), send(self.depth, device))


def composite(rendering: Rendering, background: float | Tensor) -> Float[Tensor, "batch height width 3"]:
    """Put a rendering before a background colour: a grey value, [3], [B, 1, 1, 3] or one colour per pixel."""
    return rendering.rgb + (1.0 - rendering.opacity) * background


def to_images(rgb: Float[Tensor, "batch height width channels"]) -> Float[Tensor, "batch channels height width"]:
    return rgb.permute(0, 3, 1, 2)


def to_rgb(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch height width channels"]:
    return images.permute(0, 2, 3, 1)


def to_uint8(rgb: Float[Tensor, "*batch height width channels"]) -> np.ndarray:
    """Round to bytes; values outside [0, 1] are clipped."""
    return (rgb.detach().cpu().clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()


def image_grid(rgb: Float[Tensor, "batch height width channels"], columns: int) -> Float[Tensor, "H W channels"]:
    """Tile images row by row; missing ones at the end stay white."""
    batch, height, width, channels = rgb.shape
    rows = -(-batch // columns)
    grid = torch.ones(rows * columns, height, width, channels, dtype=rgb.dtype)
    grid[:batch] = rgb.detach().cpu()
    grid = grid.reshape(rows, columns, height, width, channels).permute(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)


def save_png(path: Path | str, rgb: Float[Tensor, "height width channels"]) -> None:
    Image.fromarray(to_uint8(rgb)).save(path)
