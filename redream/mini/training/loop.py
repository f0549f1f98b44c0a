"""One resumable training loop for all of the miniature's models.

Everything random in a step derives from (seed, step), so a checkpoint is weights, optimiser and step count; a killed
training continues as if nothing had happened. The learning rate warms up, rests, and falls to zero over the last fifth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

CHECKPOINT_EVERY_S = 60.0
WARM_UP_STEPS = 100
DECAY_SHARE = 0.2


@dataclass(frozen=True)
class Draws:
    """The two sources of randomness of one step."""

    torch: torch.Generator
    numpy: np.random.Generator


@dataclass(frozen=True)
class TrainStep:
    step: int
    num_steps: int
    loss: float
    seconds_left: float


def train(
    model: nn.Module,
    loss_of_batch: Callable[[Draws], Tensor],
    num_steps: int,
    learning_rate: float,
    checkpoint: Path,
    seed: int,
    ema: nn.Module | None = None,
    ema_decay: float = 0.999,
) -> Iterator[TrainStep]:
    """Minimise `loss_of_batch` and yield every step; continues from `checkpoint` where there is one.

    Args:
        ema: a copy of `model` that is kept as the moving average of its weights.
    """
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    first = _resume(checkpoint, model, optimizer, ema)
    started = saved = time.monotonic()
    for step in range(first, num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, num_steps)
        draws = Draws(torch.Generator().manual_seed(seed * 10_000_019 + step), np.random.default_rng([seed, step]))
        loss = loss_of_batch(draws)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step} of {checkpoint.stem}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if ema is not None:
            _average(ema, model, min(ema_decay, (step + 1) / (step + 10)))
        now = time.monotonic()
        if now - saved > CHECKPOINT_EVERY_S or step == num_steps - 1:
            _save(checkpoint, step + 1, model, optimizer, ema)
            saved = now
        seconds_left = (now - started) / (step + 1 - first) * (num_steps - step - 1)
        yield TrainStep(step + 1, num_steps, loss.item(), seconds_left)


def _schedule(step: int, num_steps: int) -> float:
    left = (num_steps - step) / (DECAY_SHARE * num_steps)
    return min(1.0, (step + 1) / WARM_UP_STEPS, left)


@torch.no_grad()
def _average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1.0 - decay)


def _save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state if ema is None else {**state, "ema": ema.state_dict()}, temporary)
    temporary.replace(path)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if ema is not None:
        ema.load_state_dict(state["ema"])
    return state["step"]
