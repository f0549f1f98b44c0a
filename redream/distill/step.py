"""What the steps of several methods share: a view to look from, noise, and the losses besides the prior's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from redream.cameras import Camera, camera_angles, camera_rays, sample_cameras
from redream.devices import send
from redream.distill.asset_velocity import asset_energy
from redream.distill.loss import opacity_entropy, sparsity, specify_gradient
from redream.distill.particle import Particle
from redream.distill.schedule import sample_timesteps
from redream.field.radiance_field import RadianceField
from redream.images import Rendering, composite, to_images, to_rgb
from redream.limits import Linear
from redream.method_settings import MethodSettings
from redream.prior.multi_view import MultiViewPrior
from redream.prior.perp_neg import SIDE, perp_neg_guidance, view_mixture
from redream.prior.prompts import PromptEmbeds, camera_views
from redream.prior.stable_diffusion import StableDiffusionPrior
from redream.render.mesh import AssetViews
from redream.settings import CameraConfig, DistillConfig, FieldConfig

Prior = StableDiffusionPrior | MultiViewPrior


@dataclass(frozen=True, eq=False)
class Inputs:
    """What stays the same over all steps of a run."""

    prior: Any  # a Prior: each method knows which
    embeds: PromptEmbeds
    config: DistillConfig
    field_config: FieldConfig
    camera_config: CameraConfig
    own: MethodSettings


@dataclass(frozen=True, eq=False)
class Turn:
    """The particle that a step moves, with the asset n(i) that it keeps, if it has one."""

    step: int
    particle: Particle
    asset: AssetViews | None
    generator: torch.Generator


@dataclass(frozen=True, eq=False)
class View:
    """What a step looks at: cameras psi, the renders g(theta, psi), and the asset's from the same cameras or None."""

    camera: Camera
    names: list[str]  # front, side, back or overhead, for the prompt's prefix
    rendering: Rendering
    background: Float[Tensor, "batch #height #width #channels"]
    asset: Rendering | None

    def images(self) -> Float[Tensor, "batch 3 height width"]:
        return to_images(composite(self.rendering, self.background))

    def asset_images(self) -> Float[Tensor, "batch 3 height width"]:
        assert self.asset is not None
        return to_images(composite(self.asset, self.background))


def is_warm_up(inputs: Inputs, turn: Turn) -> bool:
    """Tell whether the retrieved asset pulls in this step (Eq. 3): while step < K."""
    return inputs.config.use_initialisation and turn.asset is not None and turn.step < inputs.config.warm_up_steps


def look(inputs: Inputs, turn: Turn, has_asset: bool, emptiness_scale: float | None = None) -> View:
    """Draw cameras and render the particle; with `has_asset`, from cameras that its asset was rendered from."""
    config, generator, size = inputs.config, turn.generator, image_size(inputs, turn)
    asset = None
    if has_asset:
        assert turn.asset is not None
        camera, asset = _draw_asset_view(turn.asset, config.views_per_step, size, generator)
        asset = asset.to(inputs.prior.device)
    else:
        camera = sample_cameras(inputs.camera_config, config.views_per_step, size, generator)
    return render_view(inputs, turn, camera, asset, emptiness_scale)


def render_view(
    inputs: Inputs,
    turn: Turn,
    camera: Camera,
    asset: Rendering | None = None,
    emptiness_scale: float | None = None,
) -> View:
    """Render the particle from cameras, and draw what stands behind it."""
    names = camera_views(camera, inputs.camera_config)
    camera = camera.to(inputs.prior.device)
    rendering = turn.particle.render(camera, inputs.field_config, turn.generator, emptiness_scale)
    background = draw_background(turn.particle.field, camera, inputs.config, turn.generator)
    return View(camera, names, rendering, background, asset)


def image_size(inputs: Inputs, turn: Turn) -> int:
    """Return the side of this step's renders, in pixels."""
    config = inputs.config
    return config.low_resolution if turn.step < config.high_resolution_from_step else config.high_resolution


def draw_noise(inputs: Inputs, turn: Turn, x_0: Tensor) -> tuple[Int[Tensor, " batch"], Tensor]:
    """Draw t and eps for latents; t stays on the CPU, which lists it in the step's record."""
    t = sample_timesteps(inputs.config, turn.step, len(inputs.prior.alphas_cumprod), len(x_0), turn.generator)
    return t, send(torch.randn(x_0.shape, generator=turn.generator), inputs.prior.device)


def guided_prediction(
    inputs: Inputs, view: View, t: Int[Tensor, " batch"], guidance_scale: float
) -> Callable[[Tensor], Tensor]:
    """Return the prior's prediction of a view's noise at t as a function of x_t: guided, by Perp-Neg if that is on."""
    prior, embeds, perp_neg = inputs.prior, inputs.embeds, inputs.own.perp_neg
    if not perp_neg.enabled:
        return partial(
            prior.predict_eps, t=t, cond=embeds.cond(view.names), uncond=embeds.uncond, guidance_scale=guidance_scale
        )
    azimuth, elevation, _ = camera_angles(view.camera.to("cpu"))
    above = inputs.camera_config.overhead_above_deg
    shares, weights = (send(each, prior.device) for each in view_mixture(azimuth, elevation, above, perp_neg.rule))
    positive = torch.einsum("bv,vld->bld", shares.to(embeds.by_view), embeds.by_view)
    uncond, front, side = (row.expand_as(positive) for row in (embeds.uncond, *embeds.by_view[: SIDE + 1, None]))
    cond = torch.cat([uncond, positive, front, side])

    def predict_eps(x_t: Tensor) -> Tensor:
        rows = prior.predict_eps(x_t.repeat(4, 1, 1, 1), t.repeat(4), cond, embeds.uncond, guidance_scale=1.0)
        eps_uncond, eps_positive, *eps_negatives = rows.chunk(4)
        return perp_neg_guidance(eps_uncond, eps_positive, eps_negatives, weights, guidance_scale)

    return predict_eps


def score_loss(inputs: Inputs, turn: Turn, x_0: Tensor, gradient: Tensor) -> Float[Tensor, ""]:
    """Return the loss with a latent gradient, clamped where the score is debiased (Debiased-SDS)."""
    if inputs.own.debias.score:
        bounds, last_step = inputs.own.debias, inputs.config.num_steps - 1
        limits = Linear(start=bounds.first_clamp, end=bounds.last_clamp, begin_step=0, end_step=last_step)
        limit = limits(turn.step)
        gradient = gradient.clamp(-limit, limit)
    return specify_gradient(x_0, gradient)


def field_losses(inputs: Inputs, turn: Turn, view: View) -> dict[str, Tensor]:
    """Return the losses besides the prior's: the field's regularisers, and the asset's pull during the warm-up."""
    config, rendering = inputs.config, view.rendering
    losses = {"sparsity": config.lambda_sparsity * sparsity(rendering.opacity)}
    if (entropy_weight := config.lambda_opacity_entropy(turn.step)) > 0:
        losses["opacity_entropy"] = entropy_weight * opacity_entropy(rendering.opacity)
    if is_warm_up(inputs, turn):
        assert view.asset is not None
        weights = config.lambda_ret_rgb, config.lambda_ret_opacity
        losses["asset"] = asset_energy(rendering, view.asset, view.background, *weights)
    return losses


def draw_background(
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
