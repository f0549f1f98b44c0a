"""Distillation: optimise particles by score distillation, with any method of `methods/table.py`.

One step: a particle theta of the set is drawn, the method looks at it and gives losses, the particle moves, and the
method's own network, if it has one, learns from what was seen. What a method does is in its file.

The warm-up does not need the adapted prior: `distill(..., until_step=K)` runs it with the plain one beside the
adaptation, and a second call continues from its state with the adapted one. Everything that a step depends on is in
`DistillState`, so a resumed run ends with the very weights of an undisturbed one (on a CPU, bit for bit).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from redream.distill.methods.method import Method
from redream.distill.methods.table import METHODS
from redream.distill.particle import Particle
from redream.distill.state import DistillState
from redream.distill.step import Inputs, Turn
from redream.field.occupancy import OccupancyGrid, visual_hull
from redream.field.radiance_field import RadianceField
from redream.method_settings import MethodSettings
from redream.prior.stable_diffusion import StableDiffusionPrior
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


def create_state(
    prior: StableDiffusionPrior,
    assets: list[AssetViews],
    config: DistillConfig,
    field_config: FieldConfig,
    seed: int,
) -> DistillState:
    """Create the particles, each with an asset drawn for it, and add the variational LoRA to the prior.

    Args:
        assets: views of the retrieved assets; none without retrieval.
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
    if (add_network := METHODS[config.method].add_network) is not None:
        variational = add_network(prior, config, generator)
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
    own: MethodSettings | None = None,
) -> Iterator[DistillStep]:
    """Advance `state` to `until_step` and yield a record of every step; save the state whenever you like.

    Args:
        own: the sections that only some methods read; None for their defaults.

    Raises:
        NonFiniteLoss: with the step and the timesteps.
    """
    embeds = prior.prompt_embeds(prompt, config.negative_prompt)
    prior.rest()
    inputs = Inputs(prior, embeds, config, field_config, camera_config, own or MethodSettings())
    indices = [int(particle.asset_index) for particle in state.particles]
    kept = [assets[index] if index >= 0 else None for index in indices]
    while state.step < until_step:
        yield _step(state, inputs, METHODS[config.method], kept)


def _step(state: DistillState, inputs: Inputs, method: Method, assets: list[AssetViews | None]) -> DistillStep:
    step, generator = state.step, state.generator
    index = int(torch.randint(len(state.particles), (), generator=generator))
    particle, optimizer = state.particles[index], state.optimizers[index]
    turn = Turn(step, particle, assets[index], generator)

    scored = method.score(inputs, turn)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(scored.losses.values())).sum().backward()
    values = _read_finite({**scored.losses, "gradient's norm": _grad_norm(particle.field)}, step, scored.t)
    grad_norm = values.pop("gradient's norm")
    optimizer.step()

    if method.network_loss is not None:
        assert state.variational_optimizer is not None
        loss = method.network_loss(inputs, turn, scored)
        state.variational_optimizer.zero_grad()
        loss.backward()
        state.variational_optimizer.step()
        values |= _read_finite({"variational": loss}, step, scored.t)
    if (step + 1) % inputs.config.occupancy_every == 0:
        interval = step_length(inputs.field_config.radius, inputs.field_config.num_samples_per_ray)
        particle.occupancy.update(particle.field.density, interval, generator)
    state.step += 1
    return DistillStep(state.step, index, tuple(scored.t.tolist()), values, grad_norm)


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
