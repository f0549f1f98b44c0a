"""Variational score distillation (ProlificDreamer, Wang et al. 2023, Eq. 9 and Alg. 1; ReDream, Eq. 2).

    grad_{x_0} L = w(t) (eps_prior(x_t; c, t) - eps_variational(x_t; c, t, psi))
    v_2d = - grad_theta L, the velocity of a particle theta;  psi is the camera

eps_variational is a second network that learns the noise of the current renders, so the difference is that of the two
distributions' scores. It differs from `sds.py` in one term.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from redream.cameras import Camera
from redream.devices import send
from redream.distill.methods.method import Method, Scored
from redream.distill.schedule import weight
from redream.distill.step import (
    Inputs,
    Turn,
    View,
    draw_noise,
    field_losses,
    guided_prediction,
    is_warm_up,
    look,
    score_loss,
)
from redream.prior.stable_diffusion import VARIATIONAL, StableDiffusionPrior
from redream.settings import DistillConfig


@torch.no_grad()
def vsd_gradient(
    x_t: Float[Tensor, "batch channels h w"],
    weight: Float[Tensor, "batch 1 1 1"],
    predict_eps: Callable[[Tensor], Tensor],
    predict_eps_variational: Callable[[Tensor], Tensor],
) -> Float[Tensor, "batch channels h w"]:
    """Return the gradient with respect to the clean latents `x_0` from which `x_t` was noised."""
    return weight * (predict_eps(x_t) - predict_eps_variational(x_t))


def variational_loss(
    x_t: Float[Tensor, "batch channels h w"],
    eps: Float[Tensor, "batch channels h w"],
    predict_eps_variational: Callable[[Tensor], Tensor],
) -> Float[Tensor, ""]:
    """Return the denoising loss that trains the variational network on (detached) renders; gradients reach it alone."""
    return F.mse_loss(predict_eps_variational(x_t.detach()), eps)


def score(inputs: Inputs, turn: Turn) -> Scored:
    """Look from a random view, noise its latents, and compare the two predictions of the noise."""
    view = look(inputs, turn, has_asset=is_warm_up(inputs, turn))
    x_0 = inputs.prior.encode(view.images())
    t, eps = draw_noise(inputs, turn, x_0)
    gradient = latent_gradient(inputs, view, x_0, t, eps)
    losses = {"score": score_loss(inputs, turn, x_0, gradient), **field_losses(inputs, turn, view)}
    return Scored(losses, t, view.camera, shown=x_0)


def latent_gradient(inputs: Inputs, view: View, x_0: Tensor, t: Int[Tensor, " batch"], eps: Tensor) -> Tensor:
    """Return the gradient of Eq. 2 with respect to latents that are seen from the view's cameras."""
    prior, at = inputs.prior, send(t, inputs.prior.device)
    predict_eps = guided_prediction(inputs, view, at, inputs.config.guidance_scale)
    plain = inputs.embeds.plain.expand(len(x_0), -1, -1)
    predict_eps_variational = partial(prior.predict_eps_variational, t=at, cond=plain, camera=view.camera)
    x_t = prior.add_noise(x_0.detach(), at, eps)
    weight_t = weight(at, prior.alphas_cumprod, inputs.config.weighting)
    return vsd_gradient(x_t, weight_t, predict_eps, predict_eps_variational)


def add_network(prior: StableDiffusionPrior, config: DistillConfig, generator: torch.Generator) -> list[nn.Parameter]:
    """Add the variational LoRA to the prior."""
    seed = int(torch.randint(2**31, (), generator=generator))
    return prior.add_lora(VARIATIONAL, config.variational_rank, seed)


def network_loss(inputs: Inputs, turn: Turn, scored: Scored) -> Float[Tensor, ""]:
    """Denoise the current renders with the variational network, at timesteps and noise drawn again."""
    x_0, camera, prior, generator = scored.shown, scored.camera, inputs.prior, turn.generator
    assert x_0 is not None
    repeats = len(x_0) // len(camera)
    t = send(torch.randint(len(prior.alphas_cumprod), (len(x_0),), generator=generator), prior.device)
    eps = send(torch.randn(x_0.shape, generator=generator), prior.device)
    is_dropped = bool(torch.rand((), generator=generator) < inputs.config.camera_dropout)
    seen = (
        None
        if is_dropped
        else Camera(camera.c2w.repeat(repeats, 1, 1), camera.fovy_deg.repeat(repeats), camera.height, camera.width)
    )
    cond = inputs.embeds.plain.expand(len(x_0), -1, -1)
    x_t = prior.add_noise(x_0.detach(), t, eps)
    return variational_loss(x_t, eps, partial(prior.predict_eps_variational, t=t, cond=cond, camera=seen))


METHOD = Method(score=score, add_network=add_network, network_loss=network_loss)
