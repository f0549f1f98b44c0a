"""Variational score distillation (ProlificDreamer, Wang et al. 2023, Eq. 9 and Alg. 1; ReDream, Eq. 2).

    grad_{x_0} L = w(t) (eps_prior(x_t; c, t) - eps_variational(x_t; c, t, psi))
    v_2d = - grad_theta L, the velocity of a particle theta;  psi is the camera

eps_variational is a second network that learns the noise of the current renders, so the difference is that of the two
distributions' scores. It differs from `sds.py` in one term.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


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
