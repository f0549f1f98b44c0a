"""Score distillation sampling (DreamFusion, Poole et al. 2022, Eq. 3; ReDream, Eq. 1).

    grad_{x_0} L = w(t) (eps_prior(x_t; c, t) - eps),    x_t = alpha_t x_0 + sigma_t eps

The Jacobian of the prior is left out, so this is a gradient without a loss; `loss.py` above turns it into one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from redream.devices import send
from redream.distill.methods.method import Method, Scored
from redream.distill.schedule import weight
from redream.distill.step import Inputs, Turn, draw_noise, field_losses, guided_prediction, is_warm_up, look, score_loss


@torch.no_grad()
def sds_gradient(
    x_t: Float[Tensor, "batch channels h w"],
    eps: Float[Tensor, "batch channels h w"],
    weight: Float[Tensor, "batch 1 1 1"],
    predict_eps: Callable[[Tensor], Tensor],
) -> Float[Tensor, "batch channels h w"]:
    """Return the gradient with respect to the clean latents `x_0` from which `x_t` was noised with `eps`."""
    return weight * (predict_eps(x_t) - eps)


def score(inputs: Inputs, turn: Turn) -> Scored:
    """Look from a random view, noise its latents, and compare the prior's prediction with the noise."""
    prior = inputs.prior
    view = look(inputs, turn, has_asset=is_warm_up(inputs, turn))
    x_0 = prior.encode(view.images())
    t, eps = draw_noise(inputs, turn, x_0)
    at = send(t, prior.device)
    predict_eps = guided_prediction(inputs, view, at, inputs.config.sds_guidance_scale)
    weight_t = weight(at, prior.alphas_cumprod, inputs.config.weighting)
    gradient = sds_gradient(prior.add_noise(x_0.detach(), at, eps), eps, weight_t, predict_eps)
    losses = {"score": score_loss(inputs, turn, x_0, gradient), **field_losses(inputs, turn, view)}
    return Scored(losses, t, view.camera)


METHOD = Method(score=score)
