"""MVDream (Shi et al. 2023, arXiv 2308.16512): four orthogonal views, denoised together by the multi-view prior.

    x0(e) = (x_t - sigma_t e) / alpha_t;   eps = eps_uncond + s (eps_cond - eps_uncond)
    f = std(x0(eps_cond)) / std(x0(eps)) per object, over all of its views
    target = r f x0(eps) + (1 - r) x0(eps);   grad_{x_0} L = x_0 - target

One t for the whole step, from a range that falls over the run; no view words. With r = 0 it is SDS with
w(t) = sigma_t / alpha_t.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from redream.cameras import Camera, cameras_at, sample_elevations
from redream.devices import send
from redream.distill.methods.method import Method, Scored
from redream.distill.step import Inputs, Turn, field_losses, image_size, render_view, score_loss
from redream.limits import Linear
from redream.method_settings import MethodSettings, MVDreamConfig
from redream.prior.guidance import classifier_free_guidance
from redream.prior.multi_view import NUM_VIEWS, MultiViewPrior


@torch.no_grad()
def mvdream_gradient(
    x_0: Float[Tensor, "batch channels h w"],
    x_t: Float[Tensor, "batch channels h w"],
    alphas_cumprod_t: Float[Tensor, "batch 1 1 1"],
    eps_uncond: Float[Tensor, "batch channels h w"],
    eps_cond: Float[Tensor, "batch channels h w"],
    guidance_scale: float,
    rescale: float,
    num_views: int = NUM_VIEWS,
) -> Float[Tensor, "batch channels h w"]:
    """Return the gradient with respect to the clean latents; `rescale` is r."""

    def clean(eps: Tensor) -> Tensor:
        return (x_t - (1.0 - alphas_cumprod_t).sqrt() * eps) / alphas_cumprod_t.sqrt()

    def spread(latents: Tensor) -> Tensor:
        return latents.unflatten(0, (-1, num_views)).flatten(1).std(dim=1).repeat_interleave(num_views)

    target, unguided = clean(classifier_free_guidance(eps_uncond, eps_cond, guidance_scale)), clean(eps_cond)
    factor = ((spread(unguided) + 1e-8) / (spread(target) + 1e-8))[:, None, None, None]
    return x_0 - (rescale * factor * target + (1.0 - rescale) * target)


def orthogonal_cameras(config: MVDreamConfig, num_objects: int, size: int, generator: torch.Generator) -> Camera:
    """Draw four cameras around each object, a quarter turn apart, that share elevation, distance and field of view."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num_objects, generator=generator)

    first = torch.rand(num_objects, 1, generator=generator)
    azimuth = ((first + torch.arange(NUM_VIEWS)) / NUM_VIEWS * 360.0 - 180.0).flatten()
    elevation = sample_elevations(config.elevation_deg, num_objects, generator)
    fovy = uniform(*config.fovy_deg)
    distance = uniform(*config.half_height) / torch.tan(0.5 * torch.deg2rad(fovy))
    shared = (each.repeat_interleave(NUM_VIEWS) for each in (elevation, distance, fovy))
    return cameras_at(azimuth, *shared, size)


def draw_timestep(inputs: Inputs, turn: Turn) -> Tensor:
    """Draw the one t of a step, [1], on the CPU."""
    config, num_timesteps = inputs.own.mvdream, len(inputs.prior.alphas_cumprod)
    end = math.ceil(config.anneal_share * inputs.config.num_steps)
    low, high = (
        Linear(start=config.first_t, end=last, begin_step=0, end_step=end)(turn.step)
        for last in (config.last_min_t, config.last_max_t)
    )
    first = int(low * num_timesteps)
    return torch.randint(first, max(first, int(high * num_timesteps)) + 1, (1,), generator=turn.generator)


def score(inputs: Inputs, turn: Turn) -> Scored:
    """Look from four sides, noise all to the same t, and move towards what is denoised together."""
    prior: Any = inputs.prior
    config = inputs.own.mvdream
    num_objects = max(1, inputs.config.views_per_step // NUM_VIEWS)
    camera = orthogonal_cameras(config, num_objects, image_size(inputs, turn), turn.generator)
    view = render_view(inputs, turn, camera)
    x_0 = prior.encode(view.images())
    t = draw_timestep(inputs, turn).expand(len(x_0))
    at, eps = send(t, prior.device), send(torch.randn(x_0.shape, generator=turn.generator), prior.device)
    x_t = prior.add_noise(x_0.detach(), at, eps)
    eps_uncond, eps_cond = prior.predict_eps_pair(x_t, at, inputs.embeds, view.camera)
    a = prior.alphas_cumprod[at][:, None, None, None]
    gradient = mvdream_gradient(x_0.detach(), x_t, a, eps_uncond, eps_cond, config.guidance_scale, config.rescale)
    losses = {"score": score_loss(inputs, turn, x_0, gradient), **field_losses(inputs, turn, view)}
    return Scored(losses, t, view.camera)


def load_prior(own: MethodSettings, device: torch.device | str) -> Any:
    """Load the multi-view prior in place of the 2D one."""
    return MultiViewPrior(own.mvdream.model, own.mvdream.negative_prompt, device)


METHOD = Method(score=score, load_prior=load_prior)
