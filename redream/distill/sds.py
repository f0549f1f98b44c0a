"""Score distillation sampling (DreamFusion, Poole et al. 2022, Eq. 3; ReDream, Eq. 1).

    grad_{x_0} L = w(t) (eps_prior(x_t; c, t) - eps),    x_t = alpha_t x_0 + sigma_t eps

The Jacobian of the prior is left out, so this is a gradient without a loss; `loss.py` turns it into one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def sds_gradient(
    x_t: Float[Tensor, "batch channels h w"],
    eps: Float[Tensor, "batch channels h w"],
    weight: Float[Tensor, "batch 1 1 1"],
    predict_eps: Callable[[Tensor], Tensor],
) -> Float[Tensor, "batch channels h w"]:
    """Return the gradient with respect to the clean latents `x_0` from which `x_t` was noised with `eps`."""
    return weight * (predict_eps(x_t) - eps)
