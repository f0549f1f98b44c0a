"""A particle: one of the radiance fields that distillation moves (ProlificDreamer, Sec. 3.2), and how it is read back.

What looks at a result needs this alone, without the prior and the seconds that diffusers and peft take to import.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from redream.cameras import Camera
from redream.field.occupancy import OccupancyGrid
from redream.field.radiance_field import RadianceField
from redream.images import Rendering
from redream.render.volume import render_camera
from redream.settings import FieldConfig

CHECKPOINT = "state.pt"


class Particle(nn.Module):
    """A radiance field, the occupancy that its rays consult, and the asset n(i) that it keeps for ever (-1: none)."""

    asset_index: Tensor

    def __init__(self, config: FieldConfig, asset_index: int, generator: torch.Generator) -> None:
        super().__init__()
        self.field = RadianceField(config, generator)
        self.occupancy = OccupancyGrid(config.radius, config.occupancy_resolution)
        self.register_buffer("asset_index", torch.tensor(asset_index))

    def render(
        self,
        camera: Camera,
        config: FieldConfig,
        generator: torch.Generator | None = None,
        emptiness_scale: float | None = None,
    ) -> Rendering:
        """Render the field; a generator jitters the samples along the rays, as training wants."""
        return render_camera(
            self.field.density_and_color,
            camera,
            config.radius,
            config.num_samples_per_ray,
            self.occupancy.occupied,
            generator,
            config.samples_per_chunk,
            emptiness_scale=emptiness_scale,
        )


def load_particles(folder: Path | str, config: FieldConfig, device: torch.device | str = "cpu") -> list[Particle]:
    """Read only the particles of a saved state, to look at them."""
    saved = torch.load(Path(folder) / CHECKPOINT, map_location="cpu", weights_only=True)["particles"]
    particles = []
    for state in saved:
        particle = Particle(config, -1, torch.Generator())
        particle.load_state_dict(state)
        particles.append(particle.to(device).eval().requires_grad_(False))
    return particles
