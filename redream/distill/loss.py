"""From a gradient to a loss, and the regularisers of the field."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def specify_gradient(x_0: Float[Tensor, "batch *shape"], gradient: Float[Tensor, "batch *shape"]) -> Float[Tensor, ""]:
    """Return a loss whose gradient with respect to `x_0` is `gradient` / batch.

    Its value is half the squared norm of the gradient per image, which is worth logging; the loss itself has none.
    """
    target = (x_0 - gradient).detach()
    return 0.5 * F.mse_loss(x_0, target, reduction="sum") / len(x_0)


def sparsity(opacity: Float[Tensor, "batch height width 1"]) -> Float[Tensor, ""]:
    """Prefer empty pixels: mean of sqrt(opacity^2 + 0.01) (DreamFusion, App. A.2, in threestudio's form)."""
    return (opacity.square() + 0.01).sqrt().mean()


def opacity_entropy(opacity: Float[Tensor, "batch height width 1"]) -> Float[Tensor, ""]:
    """Prefer pixels that are either empty or opaque: mean binary entropy, in nats."""
    p = opacity.clamp(1e-3, 1.0 - 1e-3)
    return -(p * p.log() + (1.0 - p) * torch.log1p(-p)).mean()
