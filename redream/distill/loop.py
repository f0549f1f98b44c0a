"""Distillation: optimise particles by score distillation, with any method of `methods/table.py`.

One step: a particle theta of the set is drawn, the method looks at it and gives losses, the particle moves, and the
method's own network, if it has one, learns from what was seen. What a method does is in its file.

The warm-up does not need the adapted prior: `distill(..., until_step=K)` runs it with the plain one beside the
adaptation, and a second call continues from its state with the adapted one. Everything that a step depends on is in
`DistillState`, so a resumed run ends with the very weights of an undisturbed one (on a CPU, bit for bit).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from redream.devices import in_smaller_chunks
from redream.distill.methods.method import Method, Scored
from redream.distill.methods.table import METHODS
from redream.distill.particle import Particle
from redream.distill.state import DistillState
from redream.distill.step import Inputs, Prior, Turn
from redream.field.occupancy import OccupancyGrid, visual_hull
from redream.field.radiance_field import RadianceField
from redream.method_settings import MethodSettings
from redream.prior.precision import LossScale, gradient_norm
from redream.render.mesh import AssetViews
from redream.render.volume import step_length
from redream.settings import CameraConfig, DistillConfig, FieldConfig

LEAST_SAMPLES = 2**12  # at once: where fewer do not fit either, something else holds the memory
ALL_ACTIVATIONS = 2  # kept for the backward pass; 1 is a part of them, and the others are computed again
NORM = "gradient's norm"


class NonFiniteLoss(FloatingPointError):
    """A loss became infinite or NaN; the message says at which step and timesteps."""


@dataclass(frozen=True)
class DistillStep:
    """What happened in one step; losses by name, `t` the timesteps that were looked at.

    `num_skipped` counts the updates so far that overflowed in float16 and were left out.
    """

    step: int
    particle: int
    t: tuple[int, ...]
    losses: dict[str, float]
    grad_norm: float
    num_skipped: int = 0


def create_state(
    prior: Prior,
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
    scales = LossScale(prior.dtype), LossScale(prior.dtype)
    return DistillState(particles, optimizers, variational, variational_optimizer, generator, *scales)


def distill(
    state: DistillState,
    prior: Prior,
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

    scored = _move_particle(state, inputs, method, turn, optimizer)
    values = _read_losses(scored.losses, list(particle.field.parameters()), step, scored.t, state.field_scale)
    grad_norm = values.pop(NORM)
    if not state.field_scale.must_skip(_all_finite(*values.values(), grad_norm)):
        optimizer.step()

    if method.network_loss is not None:
        values |= _train_network(state, inputs, method.network_loss, turn, scored)
    if (step + 1) % inputs.config.occupancy_every == 0:
        interval = step_length(inputs.field_config.radius, inputs.field_config.num_samples_per_ray)
        particle.occupancy.update(particle.field.density, interval, generator)
    state.step += 1
    num_skipped = state.field_scale.num_skipped + state.variational_scale.num_skipped
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    return DistillStep(state.step, index, tuple(scored.t.tolist()), finite, grad_norm, num_skipped)


def _move_particle(
    state: DistillState, inputs: Inputs, method: Method, turn: Turn, optimizer: torch.optim.Optimizer
) -> Scored:
    """Compute the gradients of a particle's field, in smaller chunks where the GPU's memory runs out."""
    drawn, given = state.generator.get_state(), inputs.field_config.samples_per_chunk
    field = list(turn.particle.field.parameters())

    def attempt(samples_per_chunk: int) -> Scored:
        if samples_per_chunk < given:
            inputs.prior.save_memory()
        state.generator.set_state(drawn)
        chunked = replace(inputs.field_config, samples_per_chunk=samples_per_chunk)
        scored = method.score(replace(inputs, field_config=chunked), turn)
        optimizer.zero_grad(set_to_none=True)
        state.field_scale.backward(torch.stack(list(scored.losses.values())).sum())
        state.field_scale.unscale(field)
        return scored

    scored, state.samples_per_chunk = in_smaller_chunks(attempt, state.samples_per_chunk or given, LEAST_SAMPLES)
    return scored


def _train_network(
    state: DistillState,
    inputs: Inputs,
    network_loss: Callable[[Inputs, Turn, Scored], Tensor],
    turn: Turn,
    scored: Scored,
) -> dict[str, float]:
    """Move the method's own network by one step; where the GPU's memory runs out, with fewer activations."""
    optimizer, scale, drawn = state.variational_optimizer, state.variational_scale, state.generator.get_state()
    assert optimizer is not None

    def attempt(activations: int) -> Tensor:
        if activations < ALL_ACTIVATIONS:
            inputs.prior.save_memory()
        state.generator.set_state(drawn)
        loss = network_loss(inputs, turn, scored)
        optimizer.zero_grad()
        scale.backward(loss)
        scale.unscale(state.variational)
        return loss.detach()

    loss, _ = in_smaller_chunks(attempt, ALL_ACTIVATIONS, least=1)
    of_gradient = state.variational if scale.is_used else ()
    values = _read_losses({"variational": loss}, of_gradient, state.step, scored.t, scale)
    if not scale.must_skip(_all_finite(*values.values())):
        optimizer.step()
    return {"variational": values["variational"]}


def _field_optimizer(field: RadianceField, config: DistillConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": field.encoding.parameters(), "lr": config.lr_encoding},
        {"params": field.network.parameters(), "lr": config.lr_mlp},
        {"params": field.background_network.parameters(), "lr": config.lr_background},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def _read_losses(
    losses: dict[str, Tensor], trained: Sequence[nn.Parameter], step: int, t: Tensor, scale: LossScale
) -> dict[str, float]:
    """Read losses and the norm of the gradient at once, which waits for a GPU once.

    Raises:
        NonFiniteLoss: one is not finite, and no loss scale is there that could be the reason.
    """
    norm = {NORM: gradient_norm(trained)} if trained else {}
    found = {**losses, **norm}
    values = torch.stack([loss.detach().float() for loss in found.values()]).tolist()
    for name, value in zip(found, values, strict=True):
        if not math.isfinite(value) and not scale.is_used:
            raise NonFiniteLoss(f"the {name} loss is {value} at step {step}, t = {t.tolist()}")
    return dict(zip(found, values, strict=True))


def _all_finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)
