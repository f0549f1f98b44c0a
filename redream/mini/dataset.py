"""Captioned renders of the miniature's world, from which all its models are trained and judged.

Every (category, colour) pair has `NUM_VARIANTS` meshes, also the pairs that the catalog leaves out; each mesh is
rendered from `VIEWS_PER_MESH` cameras of the `mini` preset with its true front at +x. Images are kept as premultiplied
RGBA bytes, so that a background can be drawn anew each time. The variants differ from the catalog's assets (another
seed), and the last ones are held out: the judge's accuracy and every other quality figure are measured on those.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from redream.cameras import camera_angles, sample_cameras, view_name
from redream.meshes.assets import load_mesh, normalize_mesh
from redream.mini.catalog import CATEGORIES, COLORS, glb_bytes, make_mesh
from redream.presets import mini
from redream.render.mesh import render_mesh

NUM_VARIANTS = 16  # meshes of each (category, colour) pair
NUM_HELD_OUT = 2  # of them, never trained on
VIEWS_PER_MESH = 10
DATASET_SEED = 7_001  # the catalog's own seed is 0
VIEWS = ("front", "side", "back")
CATEGORY_NAMES, COLOR_NAMES = tuple(CATEGORIES), tuple(COLORS)


@dataclass(frozen=True, eq=False)
class Renders:
    """Images with their truth; `view` indexes `VIEWS` and is -1 for categories without a front."""

    rgba: UInt8[Tensor, "num height width 4"]  # premultiplied
    category: Int[Tensor, " num"]
    color: Int[Tensor, " num"]
    view: Int[Tensor, " num"]

    def __len__(self) -> int:
        return self.rgba.shape[0]


def render_dataset(folder: Path) -> Iterator[tuple[int, int]]:
    """Render the whole set, one shard per variant, and yield (done, total); finished shards are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for variant in range(NUM_VARIANTS):
        path = folder / f"variant-{variant:02d}.safetensors"
        if not path.exists():
            temporary = path.with_suffix(".part")
            save_file(_render_variant(variant), temporary)
            temporary.rename(path)
        yield variant + 1, NUM_VARIANTS


def load_renders(folder: Path, held_out: bool = False) -> Renders:
    """Load the training variants, or the held-out ones."""
    first_held_out = NUM_VARIANTS - NUM_HELD_OUT
    variants = range(first_held_out, NUM_VARIANTS) if held_out else range(first_held_out)
    shards = [load_file(folder / f"variant-{variant:02d}.safetensors") for variant in variants]
    return Renders(**{name: torch.cat([shard[name] for shard in shards]) for name in shards[0]})


def draw_images(
    renders: Renders, indices: Int[Tensor, " batch"], generator: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Return the renders before greys drawn from the range that distillation draws its backgrounds from."""
    low, high = mini().distill.background_grey
    rgba = renders.rgba[indices].float() / 255.0
    grey = low + (high - low) * torch.rand(len(indices), 1, 1, 1, generator=generator)
    return (rgba[..., :3] + (1.0 - rgba[..., 3:]) * grey).permute(0, 3, 1, 2).contiguous()


def _render_variant(variant: int) -> dict[str, Tensor]:
    config = mini()
    rgba, category_index, color_index, view_index = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "mesh.glb"
        for c, category in enumerate(CATEGORY_NAMES):
            for k, color in enumerate(COLOR_NAMES):
                seed = [DATASET_SEED, variant, c, k]
                # Through a GLB and the loader, as every asset goes: the models must see what the stages see.
                path.write_bytes(glb_bytes(make_mesh(category, color, np.random.default_rng(seed)), 0.0, {}))
                scene = normalize_mesh(load_mesh(path), config.render.object_radius)
                generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
                camera = sample_cameras(config.camera, VIEWS_PER_MESH, config.render.image_size, generator)
                rendering = render_mesh(scene, camera)
                rgba.append((torch.cat([rendering.rgb, rendering.opacity], dim=-1) * 255 + 0.5).to(torch.uint8))
                azimuth, elevation, _ = camera_angles(camera)
                for a, e in zip(azimuth.tolist(), elevation.tolist(), strict=True):
                    name = view_name(a, e, config.camera)
                    view_index.append(VIEWS.index(name) if CATEGORIES[category].has_front else -1)
                category_index += [c] * VIEWS_PER_MESH
                color_index += [k] * VIEWS_PER_MESH
    return {
        "rgba": torch.cat(rgba),
        "category": torch.tensor(category_index),
        "color": torch.tensor(color_index),
        "view": torch.tensor(view_index),
    }
