"""Distillation: optimise particles by score distillation, from the warm-up with retrieved assets to the end.

One step, for one particle theta of the set (ReDream, Sec. 4; ProlificDreamer, Alg. 1):

    draw psi, t, eps;  x_0 = E(g(theta, psi)),  x_t = alpha_t x_0 + sigma_t eps
    theta  moves by v_2d (Eq. 2), plus v_ret while step < K (Eq. 3), regularised every third step (App. B)
    the variational LoRA learns to denoise the render (Eq. 2), and the asset's while step < K (Eq. 4)

The warm-up does not need the adapted prior: `distill(..., until_step=K)` runs it with the plain one beside the
adaptation, and a second call continues from its state with the adapted one. Everything that a step depends on is in
`DistillState`, so a resumed run ends with the very weights of an undisturbed one (on a CPU, bit for bit).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from redream.cameras import Camera, camera_rays, sample_cameras
from redream.devices import send
from redream.distill.asset_velocity import asset_energy
from redream.distill.delta import delta_gradient, is_delta_step
from redream.distill.loss import opacity_entropy, sparsity, specify_gradient
from redream.distill.particle import CHECKPOINT, Particle
from redream.distill.schedule import sample_timesteps, weight
from redream.distill.sds import sds_gradient
from redream.distill.vsd import variational_loss, vsd_gradient
from redream.field.occupancy import OccupancyGrid, visual_hull
from redream.field.radiance_field import RadianceField
from redream.images import Rendering, composite, to_images, to_rgb
from redream.prior.prompts import PromptEmbeds, camera_views
from redream.prior.stable_diffusion import VARIATIONAL, StableDiffusionPrior
from redream.render.mesh import AssetViews
from redream.render.volume import step_length
from redream.settings import CameraConfig, DistillConfig, FieldConfig


class NonFiniteLoss(FloatingPointError):
    """A loss became infinite or NaN; the message says at which step and timesteps."""


@dataclass(frozen=True)
class DistillStep:
    """What happened in one step; losses by name, `t` the timesteps that were looked at."""

    step: int
    particle: int
    t: tuple[int, ...]
    losses: dict[str, float]
    grad_norm: float


@dataclass(eq=False)
class DistillState:
    """All that a step reads and writes: particles, the variational LoRA, optimisers, the generator, the step count."""

    particles: list[Particle]
    optimizers: list[torch.optim.Optimizer]
    variational: list[nn.Parameter]
    variational_optimizer: torch.optim.Optimizer | None
    generator: torch.Generator
    step: int = 0

    def save(self, folder: Path | str) -> None:
        """Write the checkpoint; the old one stays until the new one is whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{CHECKPOINT}.part"
        torch.save(
            {
                "step": self.step,
                "particles": [particle.state_dict() for particle in self.particles],
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "variational": [parameter.detach() for parameter in self.variational],
                "variational_optimizer": self.variational_optimizer and self.variational_optimizer.state_dict(),
                "generator": self.generator.get_state(),
            },
            temporary,
        )
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / CHECKPOINT)

    def load(self, folder: Path | str) -> None:
        """Continue from a checkpoint of the same settings."""
        # On the CPU first: the generator's state is refused elsewhere, and the optimisers move theirs themselves.
        saved = torch.load(Path(folder) / CHECKPOINT, map_location="cpu", weights_only=True)
        for particle, state in zip(self.particles, saved["particles"], strict=True):
            particle.load_state_dict(state)
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        with torch.no_grad():
            for parameter, value in zip(self.variational, saved["variational"], strict=True):
                parameter.copy_(value)
        if self.variational_optimizer is not None:
            self.variational_optimizer.load_state_dict(saved["variational_optimizer"])
        self.generator.set_state(saved["generator"])
        self.step = saved["step"]


def create_state(
    prior: StableDiffusionPrior,
    assets: list[AssetViews],
    config: DistillConfig,
    field_config: FieldConfig,
    seed: int,
) -> DistillState:
    """Create the particles, each with an asset drawn for it, and add the variational LoRA to the prior.

    Args:
        assets: views of the retrieved assets, none for plain VSD and SDS.
    """
    generator = torch.Generator().manual_seed(seed)
    # Sampling without replacement while there are assets left, so that few particles differ as much as they can.
    order = [i for _ in range(config.num_particles) for i in torch.randperm(len(assets), generator=generator).tolist()]
    particles = []
    for number in range(config.num_particles):
        asset_index = order[number] if assets else -1
        particle = Particle(field_config, asset_index, generator)
        if assets and config.use_initialisation:
            silhouettes, camera = assets[asset_index].rendering.opacity, assets[asset_index].camera
            hull = visual_hull(silhouettes, camera, field_config.radius, field_config.occupancy_resolution)
            particle.occupancy = OccupancyGrid(field_config.radius, field_config.occupancy_resolution, hull)
        particles.append(particle.to(prior.device))
    optimizers = [_field_optimizer(particle.field, config) for particle in particles]
    variational, variational_optimizer = [], None
    if config.method != "sds":
        seed_of_lora = int(torch.randint(2**31, (), generator=generator))
        variational = prior.add_lora(VARIATIONAL, config.variational_rank, seed_of_lora)
        variational_optimizer = torch.optim.AdamW(variational, lr=config.lr_variational, weight_decay=0.0)
    return DistillState(particles, optimizers, variational, variational_optimizer, generator)


def distill(
    state: DistillState,
    prior: StableDiffusionPrior,
    prompt: str,
    assets: list[AssetViews],
    config: DistillConfig,
    field_config: FieldConfig,
    camera_config: CameraConfig,
    until_step: int,
) -> Iterator[DistillStep]:
    """Advance `state` to `until_step` and yield a record of every step; save the state whenever you like.

    Raises:
        NonFiniteLoss: with the step and the timesteps.
    """
    embeds = prior.prompt_embeds(prompt)
    prior.rest()
    asset_indices = [int(particle.asset_index) for particle in state.particles]
    while state.step < until_step:
        yield _step(state, prior, embeds, assets, asset_indices, config, field_config, camera_config)


def _step(
    state: DistillState,
    prior: StableDiffusionPrior,
    embeds: PromptEmbeds,
    assets: list[AssetViews],
    asset_indices: list[int],
    config: DistillConfig,
    field_config: FieldConfig,
    camera_config: CameraConfig,
) -> DistillStep:
    step, generator = state.step, state.generator
    index = int(torch.randint(len(state.particles), (), generator=generator))
    particle, optimizer = state.particles[index], state.optimizers[index]
    asset_index = asset_indices[index]
    is_warm_up = config.use_initialisation and asset_index >= 0 and step < config.warm_up_steps
    is_delta = config.method == "redream" and asset_index >= 0 and is_delta_step(step, config.delta_every)

    # The camera psi: one of the asset's where its render is needed, else a new one.
    size = config.low_resolution if step < config.high_resolution_from_step else config.high_resolution
    asset: Rendering | None = None
    if is_warm_up or is_delta:
        camera, asset = _draw_asset_view(assets[asset_index], config.views_per_step, size, generator)
        asset = asset.to(prior.device)
    else:
        camera = sample_cameras(camera_config, config.views_per_step, size, generator)
    views = camera_views(camera, camera_config)
    camera = camera.to(prior.device)

    rendering = particle.render(camera, field_config, generator)
    background = _draw_background(particle.field, camera, config, generator)
    x_0 = prior.encode(to_images(composite(rendering, background)))
    t = sample_timesteps(config, step, len(prior.alphas_cumprod), len(x_0), generator)
    eps = send(torch.randn(x_0.shape, generator=generator), prior.device)
    gradient_of = partial(
        _latent_gradient,
        prior=prior,
        embeds=embeds,
        camera=camera,
        t=send(t, prior.device),
        eps=eps,
        config=config,
        views=views,
    )
    gradient = gradient_of(x_0)
    asset_x_0 = None
    if asset is not None:
        with torch.no_grad():
            asset_x_0 = prior.encode(to_images(composite(asset, background)))
    if is_delta:
        assert asset_x_0 is not None
        gradient = delta_gradient(gradient, gradient_of(asset_x_0), config.delta_weight)

    losses = {
        "score": specify_gradient(x_0, gradient),
        "sparsity": config.lambda_sparsity * sparsity(rendering.opacity),
    }
    if (entropy_weight := config.lambda_opacity_entropy(step)) > 0:
        losses["opacity_entropy"] = entropy_weight * opacity_entropy(rendering.opacity)
    if is_warm_up:
        assert asset is not None
        losses["asset"] = asset_energy(rendering, asset, background, config.lambda_ret_rgb, config.lambda_ret_opacity)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    values = _read_finite({**losses, "gradient's norm": _grad_norm(particle.field)}, step, t)
    grad_norm = values.pop("gradient's norm")
    optimizer.step()

    if config.method != "sds":
        shown = x_0
        if is_warm_up and config.variational_sees_assets and asset_x_0 is not None:
            shown = torch.cat([x_0, asset_x_0])
        loss = _train_variational(state, prior, embeds, shown, camera, config)
        values |= _read_finite({"variational": loss}, step, t)
    if (step + 1) % config.occupancy_every == 0:
        interval = step_length(field_config.radius, field_config.num_samples_per_ray)
        particle.occupancy.update(particle.field.density, interval, generator)
    state.step += 1
    return DistillStep(state.step, index, tuple(t.tolist()), values, grad_norm)


def _latent_gradient(
    x_0: Tensor,
    *,
    prior: StableDiffusionPrior,
    embeds: PromptEmbeds,
    camera: Camera,
    t: Tensor,
    eps: Tensor,
    config: DistillConfig,
    views: list[str],
) -> Float[Tensor, "batch channels h w"]:
    """Return the gradient of Eq. 1 (SDS) or Eq. 2 (VSD) with respect to the latents."""
    x_t = prior.add_noise(x_0.detach(), t, eps)
    weight_t = weight(t, prior.alphas_cumprod)
    scale = config.sds_guidance_scale if config.method == "sds" else config.guidance_scale
    predict_eps = partial(prior.predict_eps, t=t, cond=embeds.cond(views), uncond=embeds.uncond, guidance_scale=scale)
    if config.method == "sds":
        return sds_gradient(x_t, eps, weight_t, predict_eps)
    plain = embeds.plain.expand(len(x_t), -1, -1)
    return vsd_gradient(
        x_t, weight_t, predict_eps, partial(prior.predict_eps_variational, t=t, cond=plain, camera=camera)
    )


def _train_variational(
    state: DistillState,
    prior: StableDiffusionPrior,
    embeds: PromptEmbeds,
    x_0: Tensor,
    camera: Camera,
    config: DistillConfig,
) -> Tensor:
    """Take one denoising step of the variational network on the current renders, with timesteps and noise anew."""
    generator, repeats = state.generator, len(x_0) // len(camera)
    t = send(torch.randint(len(prior.alphas_cumprod), (len(x_0),), generator=generator), prior.device)
    eps = send(torch.randn(x_0.shape, generator=generator), prior.device)
    is_dropped = bool(torch.rand((), generator=generator) < config.camera_dropout)
    seen = (
        None
        if is_dropped
        else Camera(camera.c2w.repeat(repeats, 1, 1), camera.fovy_deg.repeat(repeats), camera.height, camera.width)
    )
    cond = embeds.plain.expand(len(x_0), -1, -1)
    x_t = prior.add_noise(x_0.detach(), t, eps)
    loss = variational_loss(x_t, eps, partial(prior.predict_eps_variational, t=t, cond=cond, camera=seen))
    assert state.variational_optimizer is not None
    state.variational_optimizer.zero_grad()
    loss.backward()
    state.variational_optimizer.step()
    return loss


def _draw_asset_view(
    views: AssetViews, num_views: int, size: int, generator: torch.Generator
) -> tuple[Camera, Rendering]:
    """Draw some of an asset's rendered cameras, with the renders at `size` pixels."""
    chosen = torch.randint(len(views.camera), (num_views,), generator=generator)
    camera, rendering = views.camera[chosen], views.rendering[chosen]
    resized = Rendering(*(_resize(value, size) for value in (rendering.rgb, rendering.opacity, rendering.depth)))
    return Camera(camera.c2w, camera.fovy_deg, size, size), resized


def _resize(values: Float[Tensor, "batch h w channels"], size: int) -> Float[Tensor, "batch size size channels"]:
    if values.shape[1] == size:
        return values
    return to_rgb(F.interpolate(to_images(values), (size, size), mode="bilinear", antialias=True))


def _draw_background(
    field: RadianceField, camera: Camera, config: DistillConfig, generator: torch.Generator
) -> Float[Tensor, "batch #h #w #channels"]:
    """Draw a grey per view, or the learned environment map, in whose place a random colour stands now and then."""
    if config.background == "grey":
        low, high = config.background_grey
        grey = low + (high - low) * torch.rand(len(camera), 1, 1, 1, generator=generator)
        return send(grey, camera.c2w.device)
    is_random = bool(torch.rand((), generator=generator) < config.random_background_probability)
    color = torch.rand(len(camera), 1, 1, 3, generator=generator)
    return send(color, camera.c2w.device) if is_random else field.background(camera_rays(camera).directions)


def _field_optimizer(field: RadianceField, config: DistillConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": field.encoding.parameters(), "lr": config.lr_encoding},
        {"params": field.network.parameters(), "lr": config.lr_mlp},
        {"params": field.background_network.parameters(), "lr": config.lr_background},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def _read_finite(losses: dict[str, Tensor], step: int, t: Tensor) -> dict[str, float]:
    """Read all losses at once, which waits for a GPU once."""
    values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
    for name, value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the {name} loss is {value} at step {step}, t = {t.tolist()}")
    return dict(zip(losses, values, strict=True))


def _grad_norm(field: RadianceField) -> Float[Tensor, ""]:
    grads = [parameter.grad for parameter in field.parameters() if parameter.grad is not None]
    return torch.stack([grad.norm() for grad in grads]).norm()
