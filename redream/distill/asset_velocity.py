"""The retrieval velocity of the warm-up (ReDream, Eq. 3).

    v_ret = - lambda grad_theta E_psi || g(theta, psi) - g(theta_ret, psi) ||^2

The retrieved asset pulls a particle through the renderer. The loss below is that energy, with a weight of its own for
opacity; its negative gradient is `v_ret`, which is added to `v_2d` for the first K steps.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from redream.images import Rendering


def asset_energy(
    rendering: Rendering, asset: Rendering, background: float | Tensor, lambda_rgb: float, lambda_opacity: float
) -> Float[Tensor, ""]:
    """Return the weighted mean squared differences of rgb, both before the same background, and of opacity."""
    # Before a common background the difference of the composites is this one, whatever renders it.
    rgb = rendering.rgb - asset.rgb - (rendering.opacity - asset.opacity) * background
    return lambda_rgb * rgb.square().mean() + lambda_opacity * F.mse_loss(rendering.opacity, asset.opacity)
