"""A prior whose best noise prediction is known, and which writes down every call: laws of distillation rest on it.

Latents are the mean colour of the image's middle, x_0 = 2 rgb - 1, [B, 3, 1, 1]. The prior's images are Gaussian, so

    eps(x_t; t) = sigma_t (x_t - alpha_t mean) / (alpha_t^2 std^2 + sigma_t^2)

is its best prediction. The variational network has the same form with a mean and a spread that learn. A prompt's
embedding is a number per view, so a call shows which words it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from redream.cameras import Camera, sample_cameras
from redream.distill.loop import DistillState, DistillStep, create_state, distill
from redream.distill.particle import Particle
from redream.images import Rendering
from redream.method_settings import MethodSettings
from redream.prior.prompts import VIEW_NAMES, PromptEmbeds
from redream.prior.stable_diffusion import StableDiffusionPrior
from redream.render.mesh import AssetViews
from redream.settings import CameraConfig, DistillConfig, FieldConfig

MEAN, STD = (0.5, -0.3, 0.1), 0.3
PLAIN, UNCOND = 10.0, -1.0  # embeddings; those of the views are their numbers
PROMPT = "a red car"

CAMERAS = CameraConfig(camera_distance=(1.2, 1.8), fovy_deg=(35.0, 55.0), elevation_deg=(-10.0, 80.0))
FIELD = FieldConfig(  # opaque from the start, and so simple that a step takes a few milliseconds
    num_levels=1,
    num_hidden_layers=0,
    features_per_level=8,
    log2_hashmap_size=8,
    base_resolution=1,
    radius=0.25,  # the corners of every image show the background
    density_blob_scale=200.0,
    density_blob_radius=2.0,
    num_samples_per_ray=6,
    occupancy_resolution=4,
    implementation="torch",
)
CONFIG = DistillConfig(
    num_steps=40,
    warm_up_steps=0,
    views_per_step=3,
    delta_every=0,
    guidance_scale=3.0,
    sds_guidance_scale=9.0,
    low_resolution=8,
    high_resolution=12,
    high_resolution_from_step=10_000,
    anneal_from_step=10_000,
    lr_encoding=0.02,
    lr_mlp=0.02,
    lr_variational=0.05,
    camera_dropout=0.25,
    lambda_sparsity=0.0,
    background="grey",
    background_grey=(0.2, 0.6),
)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the prior; `scale` is None for the variational network, `learns` tells whether gradients flow."""

    x_t: Tensor
    t: Tensor
    cond: Tensor
    uncond: Tensor | None = None
    scale: float | None = None
    camera: Camera | None = None
    learns: bool = False

    @property
    def words(self) -> list[str]:
        numbers = self.cond[:, 0, 0].tolist()
        return ["plain" if number == PLAIN else VIEW_NAMES[int(number)] for number in numbers]


def latents(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 1 1"]:
    middle = images.shape[-1] // 2
    return 2.0 * images[..., middle - 1 : middle + 1, middle - 1 : middle + 1].mean(dim=(2, 3), keepdim=True) - 1.0


class GaussianPrior(StableDiffusionPrior):
    def __init__(self, mean: tuple[float, float, float] = MEAN, std: float = STD) -> None:
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 100)
        self.mean, self.std = torch.tensor(mean)[None, :, None, None], std
        self.variational_mean = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.variational_log_std = nn.Parameter(torch.full((1, 3, 1, 1), -1.0))
        self.images: list[Tensor] = []  # every call of `encode`
        self.calls: list[Call] = []
        self.loras: list[tuple[str, int, int]] = []

    def rest(self) -> None:
        """Leave everything where it is: there are no networks to move."""

    def prompt_embeds(self, prompt: str, negative_prompt: str = "") -> PromptEmbeds:
        assert prompt == PROMPT and not negative_prompt
        numbers = torch.arange(len(VIEW_NAMES), dtype=torch.float32)
        return PromptEmbeds(
            by_view=numbers[:, None, None], plain=torch.full((1, 1, 1), PLAIN), uncond=torch.full((1, 1, 1), UNCOND)
        )

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 1 1"]:
        self.images.append(images.detach())
        return latents(images)

    def eps(self, x_t: Tensor, t: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
        a = self.alphas_cumprod[t][:, None, None, None]
        return (1 - a).sqrt() * (x_t - a.sqrt() * mean) / (a * std**2 + 1 - a)

    @torch.no_grad()
    def predict_eps(self, x_t: Tensor, t: Tensor, cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
        self.calls.append(Call(x_t, t, cond, uncond, guidance_scale))
        return self.eps(x_t, t, self.mean, self.std)

    def predict_eps_variational(self, x_t: Tensor, t: Tensor, cond: Tensor, camera: Camera | None) -> Tensor:
        self.calls.append(Call(x_t.detach(), t, cond, camera=camera, learns=torch.is_grad_enabled()))
        return self.eps(x_t, t, self.variational_mean, self.variational_log_std.exp())

    def add_lora(self, name: str, rank: int, seed: int) -> list[nn.Parameter]:
        self.loras.append((name, rank, seed))
        return [self.variational_mean, self.variational_log_std]

    def asked(self) -> list[Call]:
        """Return the calls of the prior itself."""
        return [call for call in self.calls if call.scale is not None]

    def compared(self) -> list[Call]:
        """Return the calls of the variational network for the gradient of the particle."""
        return [call for call in self.calls if call.scale is None and not call.learns]

    def taught(self) -> list[Call]:
        """Return the calls by which the variational network learns."""
        return [call for call in self.calls if call.learns]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run left, and all that happened in it; `renders` are the cameras and renders of the steps, in order."""

    state: DistillState
    prior: GaussianPrior
    steps: list[DistillStep]
    renders: list[tuple[Camera, Rendering]]


def train(
    config: DistillConfig,
    num_steps: int,
    assets: list[AssetViews] | None = None,
    prior: GaussianPrior | None = None,
    field: FieldConfig = FIELD,
    seed: int = 0,
    contrast: float = 1.0,
    own: MethodSettings | None = None,
    watch: Callable[[DistillState], None] = lambda state: None,
) -> Trained:
    """Run the real loop for some steps with the closed-form prior.

    Args:
        contrast: of the colours of each particle, which differ from those of the others; 0 leaves them grey all over.
        watch: is called with the state before the first step and after every step.
    """
    prior, assets = prior or GaussianPrior(), assets or []
    state = create_state(prior, assets, config, field, seed)
    for number, particle in enumerate(state.particles):
        paint(particle, seed + number, contrast)
    renders = []
    with pytest.MonkeyPatch.context() as patch:
        render = Particle.render

        def recording(particle: Particle, camera: Camera, *args: Any) -> Rendering:
            rendering = render(particle, camera, *args)
            seen = Rendering(rendering.rgb.detach(), rendering.opacity.detach(), rendering.depth.detach())
            renders.append((camera, seen))
            return rendering

        patch.setattr(Particle, "render", recording)
        watch(state)
        steps = []
        for step in distill(state, prior, PROMPT, assets, config, field, CAMERAS, num_steps, own):
            steps.append(step)
            watch(state)
    return Trained(state, prior, steps, renders)


def paint(particle: Particle, seed: int, contrast: float) -> None:
    table = particle.field.encoding.table
    with torch.no_grad():
        table.copy_(contrast * torch.randn(table.shape, generator=torch.Generator().manual_seed(seed)))


def asset(seed: int, contrast: float = 2.0, num_views: int = 12, size: int = 8) -> AssetViews:
    """Return views of an opaque cube whose colours vary over its surface."""
    generator = torch.Generator().manual_seed(seed)
    particle = Particle(FIELD, -1, generator)
    paint(particle, seed, contrast)
    camera = sample_cameras(CAMERAS, num_views, size, generator)
    with torch.no_grad():
        return AssetViews(particle.render(camera, FIELD), camera)
