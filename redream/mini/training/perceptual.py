"""Train the small convolutional networks: the judge, which knows the truth, and the two backbones of A-LPIPS.

All are classifiers of category, colour and view over renders in which every view is equally likely. Small random shifts
and noise keep them from reading single pixels, so that the judge can be shown images that no renderer made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from redream.metrics.perceptual import PerceptualNet, pool_config, residual_config
from redream.mini.dataset import CATEGORY_NAMES, COLOR_NAMES, Renders, draw_images
from redream.mini.training.loop import Draws, TrainStep, train

BATCH_SIZE = 64
LEARNING_RATE = 1.5e-3
MAX_SHIFT = 3  # pixels
MAX_NOISE = 0.08
CONFIGS = {"judge": residual_config, "perceptual-a": pool_config, "perceptual-b": residual_config}
SEEDS = {"judge": 31, "perceptual-a": 32, "perceptual-b": 33}


def train_perceptual(name: str, renders: Renders, num_steps: int, work: Path, out: Path) -> Iterator[TrainStep]:
    """Train one network and write it to `out`."""
    torch.manual_seed(SEEDS[name])  # torch's layers initialise from the global generator
    model = PerceptualNet(CONFIGS[name](CATEGORY_NAMES, COLOR_NAMES))

    def loss_of_batch(draws: Draws) -> Tensor:
        indices = torch.randint(len(renders), (BATCH_SIZE,), generator=draws.torch)
        logits = model(_augment(draw_images(renders, indices, draws.torch), draws.torch))
        loss = F.cross_entropy(logits.category, renders.category[indices])
        loss = loss + F.cross_entropy(logits.color, renders.color[indices])
        return loss + F.cross_entropy(logits.view, renders.view[indices], ignore_index=-1)

    yield from train(model, loss_of_batch, num_steps, LEARNING_RATE, work / f"{name}.pt", SEEDS[name])
    model.save(out)


def _augment(
    images: Float[Tensor, "batch 3 height width"], generator: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    side = images.shape[-1]
    top, left = torch.randint(2 * MAX_SHIFT + 1, (2,), generator=generator).tolist()
    shifted = F.pad(images, [MAX_SHIFT] * 4, mode="replicate")[..., top : top + side, left : left + side]
    strength = MAX_NOISE * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (shifted + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)
