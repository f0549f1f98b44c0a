"""Four views of each object from a quarter turn apart, for training `mini:multi-view`.

The meshes are those of `dataset.py`, and so are the held-out ones. Cameras are those that the method draws with the
`mini` preset, in groups of four that share elevation, distance and field of view.
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

from redream.cameras import Camera
from redream.distill.methods.mvdream import orthogonal_cameras
from redream.meshes.assets import load_mesh, normalize_mesh
from redream.mini.catalog import glb_bytes, make_mesh
from redream.mini.dataset import CATEGORY_NAMES, COLOR_NAMES, DATASET_SEED, NUM_HELD_OUT, NUM_VARIANTS
from redream.presets import mini
from redream.prior.multi_view import NUM_VIEWS
from redream.render.mesh import render_mesh

GROUPS_PER_MESH = 3


@dataclass(frozen=True, eq=False)
class ViewSets:
    """Groups of four views with their truth."""

    rgba: UInt8[Tensor, "num 4 height width 4"]  # premultiplied
    c2w: Float[Tensor, "num 4 4 4"]
    category: Int[Tensor, " num"]
    color: Int[Tensor, " num"]

    def __len__(self) -> int:
        return self.rgba.shape[0]


def render_view_sets(folder: Path) -> Iterator[tuple[int, int]]:
    """Render all groups, one shard per variant, and yield (done, total); finished shards are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for variant in range(NUM_VARIANTS):
        path = folder / f"views-{variant:02d}.safetensors"
        if not path.exists():
            temporary = path.with_suffix(".part")
            save_file(_render_variant(variant), temporary)
            temporary.rename(path)
        yield variant + 1, NUM_VARIANTS


def load_view_sets(folder: Path, held_out: bool = False) -> ViewSets:
    """Load the training variants, or the held-out ones."""
    first_held_out = NUM_VARIANTS - NUM_HELD_OUT
    variants = range(first_held_out, NUM_VARIANTS) if held_out else range(first_held_out)
    shards = [load_file(folder / f"views-{variant:02d}.safetensors") for variant in variants]
    return ViewSets(**{name: torch.cat([shard[name] for shard in shards]) for name in shards[0]})


def draw_views(
    sets: ViewSets, indices: Int[Tensor, " batch"], generator: torch.Generator
) -> tuple[Float[Tensor, "views 3 height width"], Camera]:
    """Return the views of some groups, four after four, each before a grey of its own, and their cameras."""
    low, high = mini().distill.background_grey
    rgba = sets.rgba[indices].flatten(0, 1).float() / 255.0
    grey = low + (high - low) * torch.rand(len(rgba), 1, 1, 1, generator=generator)
    images = (rgba[..., :3] + (1.0 - rgba[..., 3:]) * grey).permute(0, 3, 1, 2).contiguous()
    size = images.shape[-1]
    return images, Camera(sets.c2w[indices].flatten(0, 1), torch.full((len(images),), 45.0), size, size)


def _render_variant(variant: int) -> dict[str, Tensor]:
    config = mini()
    rgba, c2w, categories, colors = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "mesh.glb"
        for c, category in enumerate(CATEGORY_NAMES):
            for k, color in enumerate(COLOR_NAMES):
                seed = [DATASET_SEED, variant, c, k]
                path.write_bytes(glb_bytes(make_mesh(category, color, np.random.default_rng(seed)), 0.0, {}))
                scene = normalize_mesh(load_mesh(path), config.render.object_radius)
                generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
                camera = orthogonal_cameras(config.mvdream, GROUPS_PER_MESH, config.render.image_size, generator)
                rendering = render_mesh(scene, camera)
                pixels = torch.cat([rendering.rgb, rendering.opacity], dim=-1) * 255 + 0.5
                rgba.append(pixels.to(torch.uint8).unflatten(0, (-1, NUM_VIEWS)))
                c2w.append(camera.c2w.unflatten(0, (-1, NUM_VIEWS)))
                categories += [c] * GROUPS_PER_MESH
                colors += [k] * GROUPS_PER_MESH
    return {
        "rgba": torch.cat(rgba),
        "c2w": torch.cat(c2w),
        "category": torch.tensor(categories),
        "color": torch.tensor(colors),
    }
