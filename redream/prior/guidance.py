"""Classifier-free guidance (Ho & Salimans 2022): the one formula, so that no two places disagree about its scale."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def classifier_free_guidance(
    eps_uncond: Float[Tensor, "*shape"], eps_cond: Float[Tensor, "*shape"], guidance_scale: float
) -> Float[Tensor, "*shape"]:
    """Extrapolate from the unconditional prediction; scale 1 is the conditional prediction itself, 0 the other."""
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)
