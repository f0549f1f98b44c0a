"""Which timesteps score distillation looks at, and how much each counts (DreamFusion, Sec. 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from redream.settings import DistillConfig


def sample_timesteps(
    config: DistillConfig, step: int, num_timesteps: int, batch: int, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """Draw t uniformly from [min_t, max_t]; from `anneal_from_step` on the upper end is `annealed_max_t`."""
    max_t = config.max_t if step < config.anneal_from_step else min(config.max_t, config.annealed_max_t)
    low, high = int(config.min_t * num_timesteps), min(int(max_t * num_timesteps), num_timesteps - 1)
    return torch.randint(low, high + 1, (batch,), generator=generator)


def weight(
    t: Int[Tensor, " batch"], alphas_cumprod: Float[Tensor, " timesteps"], weighting: str = "sds"
) -> Float[Tensor, "batch 1 1 1"]:
    """Return w(t) = sigma_t^2 = 1 - alphas_cumprod[t], 1 ("uniform"), or alpha_t sigma_t^2 ("fantasia3d")."""
    sigma_squared = 1.0 - alphas_cumprod[t]
    if weighting == "uniform":
        sigma_squared = torch.ones_like(sigma_squared)
    elif weighting == "fantasia3d":
        sigma_squared = alphas_cumprod[t].sqrt() * sigma_squared
    return sigma_squared[:, None, None, None]
