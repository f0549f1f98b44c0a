"""Score Jacobian Chaining (Wang et al. 2022, arXiv 2212.00774), on our field and through the prior's encoder.

    sigma = sigma_t / alpha_t;   z = y + sigma eps, with y the clean latents x_0
    D(z, sigma) = z - sigma eps_prior(z / sqrt(1 + sigma^2); c, t)
    grad_y L = -(D - y) / sigma  ("reduced": SDS with w = 1)  or  -(D - z) / sigma  ("plain": eps_prior itself)

The emptiness loss, the mean of log(1 + scale w) over the rays' weights, clears fog: weights that are spread over many
samples cost more than the same weight in one. The authors render latents; we render images, as every method here does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from redream.devices import send
from redream.distill.methods.method import Method, Scored
from redream.distill.step import Inputs, Turn, draw_noise, field_losses, guided_prediction, is_warm_up, look, score_loss


@torch.no_grad()
def sjc_gradient(
    y: Float[Tensor, "batch channels h w"],
    eps: Float[Tensor, "batch channels h w"],
    alphas_cumprod_t: Float[Tensor, "batch 1 1 1"],
    predict_eps: Callable[[Tensor], Tensor],
    is_reduced: bool,
) -> Float[Tensor, "batch channels h w"]:
    """Return the gradient with respect to the clean latents `y`."""
    sigma = ((1.0 - alphas_cumprod_t) / alphas_cumprod_t).sqrt()
    z = y + sigma * eps  # in float32, as latents are here: sigma reaches 14
    denoised = z - sigma * predict_eps(z / (1.0 + sigma.square()).sqrt())
    return -(denoised - (y if is_reduced else z)) / sigma


def emptiness_weight(inputs: Inputs, step: int) -> float:
    """Return the weight of the emptiness loss, which grows once."""
    config = inputs.own.sjc
    is_late = step >= config.emptiness_grows_from * inputs.config.num_steps
    return config.lambda_emptiness * (config.emptiness_growth if is_late else 1.0)


def score(inputs: Inputs, turn: Turn) -> Scored:
    """Look from a random view, denoise its noised latents, and move towards what was denoised."""
    prior, config = inputs.prior, inputs.own.sjc
    view = look(inputs, turn, has_asset=is_warm_up(inputs, turn), emptiness_scale=config.emptiness_scale)
    y = prior.encode(view.images())
    t, eps = draw_noise(inputs, turn, y)
    at = send(t, prior.device)
    predict_eps = guided_prediction(inputs, view, at, config.guidance_scale)
    alphas_cumprod_t = prior.alphas_cumprod[at][:, None, None, None]
    gradient = sjc_gradient(y.detach(), eps, alphas_cumprod_t, predict_eps, config.form == "reduced")
    losses = {"score": score_loss(inputs, turn, y, gradient), **field_losses(inputs, turn, view)}
    if (weight := emptiness_weight(inputs, turn.step)) > 0:
        assert view.rendering.emptiness is not None
        losses["emptiness"] = weight * view.rendering.emptiness.mean()
    return Scored(losses, t, view.camera)


METHOD = Method(score=score)
