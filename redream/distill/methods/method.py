"""What a method is to the loop: a record of a few functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from redream.cameras import Camera
from redream.distill.step import Inputs, Turn
from redream.method_settings import MethodSettings
from redream.prior.stable_diffusion import StableDiffusionPrior
from redream.settings import DistillConfig


@dataclass(frozen=True, eq=False)
class Scored:
    """What a method makes of one step: losses by name, whose gradients reach the particle, and what it looked at."""

    losses: dict[str, Tensor]
    t: Int[Tensor, " batch"]  # on the CPU
    camera: Camera
    shown: Tensor | None = None  # latents for the method's own network to learn, a multiple of the cameras


@dataclass(frozen=True, kw_only=True)
class Method:
    """Draw, look and score in `score`, by the 2D prior unless there is another.

    Methods with a network of their own add it, and train it after each step.
    """

    score: Callable[[Inputs, Turn], Scored]
    load_prior: Callable[[MethodSettings, torch.device | str], Any] | None = None  # None: the 2D prior
    add_network: Callable[[StableDiffusionPrior, DistillConfig, torch.Generator], list[nn.Parameter]] | None = None
    network_loss: Callable[[Inputs, Turn, Scored], Tensor] | None = None
