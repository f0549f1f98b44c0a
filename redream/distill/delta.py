"""The delta-denoising regulariser (ReDream, App. B; after Hertz et al. 2023).

    v~_2d(theta) = v_2d(theta) - v_2d(theta_ret),    the same camera, timestep and noise in both

The prior's velocity at the retrieved asset, which needs no improvement, is the prior's bias at that view; taking it
away keeps a particle from drifting off the asset wherever the prior alone pulls it. It acts on latent gradients.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def is_delta_step(step: int, delta_every: int) -> bool:
    """Tell whether this step is regularised: every `delta_every`-th, none for 0."""
    return delta_every > 0 and step % delta_every == 0


def delta_gradient(
    gradient: Float[Tensor, "batch channels h w"],
    gradient_at_asset: Float[Tensor, "batch channels h w"],
    delta_weight: float,
) -> Float[Tensor, "batch channels h w"]:
    """Take the asset's own latent gradient off the particle's."""
    return gradient - delta_weight * gradient_at_asset
