"""Half precision: the frozen networks compute in it, and everything that is trained stays in float32.

bfloat16 keeps 8 bits of a number and float16 11, so a weight of 0.03 could only move by 1e-4 or 2e-5 at a time, more
than a step of AdamW. float16 also ends at 6e-8 and 65,504: losses are multiplied by a scale before the backward pass,
and gradients divided by it afterwards (Micikevicius et al. 2018, Sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

FIRST_SCALE = 2.0**10  # gradients of a latent are about 10 at first
GOOD_STEPS = 2000  # after so many without an overflow the scale doubles
MOST_SKIPPED = 20  # in a row: a millionth of the first scale would not help either


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of frozen weights: `auto` is bfloat16 on a GPU that has it, float16 on others, else float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    return torch.bfloat16 if has_bfloat16 else torch.float16


def computing_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Let networks compute in half precision, whatever the dtype of their trained parts; float32 needs nothing."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.stack([grad.norm() for grad in grads]).norm()


class LossScale:
    """The scale of one loss in float16: halved where a gradient overflows, whose step is then skipped and counted."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.is_used = dtype == torch.float16
        self.scale = FIRST_SCALE if self.is_used else 1.0
        self.num_skipped = 0
        self._num_good = 0
        self._num_in_a_row = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, times the scale."""
        (loss * self.scale if self.is_used else loss).backward()

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide gradients by the scale, after every `backward` of a step."""
        if self.is_used:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.scale)

    def must_skip(self, is_finite: bool) -> bool:
        """Tell whether a step must not be taken, and adjust the scale.

        Without a scale nothing is skipped: a number that is not finite is then the caller's error to raise.

        Raises:
            FloatingPointError: as many steps in a row overflowed that the scale is not the reason.
        """
        if not self.is_used:
            return False
        if is_finite:
            self._num_in_a_row, self._num_good = 0, self._num_good + 1
            if self._num_good % GOOD_STEPS == 0:
                self.scale *= 2.0
            return False
        self.num_skipped += 1
        self._num_in_a_row, self._num_good = self._num_in_a_row + 1, 0
        self.scale /= 2.0
        if self._num_in_a_row == MOST_SKIPPED:
            raise FloatingPointError(
                f"float16 overflowed in {MOST_SKIPPED} steps in a row; set prior.dtype to bfloat16 or float32"
            )
        return True

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "num_skipped": self.num_skipped, "num_good": self._num_good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a saved scale; a run that continues in another dtype keeps its own."""
        self.num_skipped = int(state["num_skipped"])
        if self.is_used and state["scale"] != 1.0:
            self.scale, self._num_good = state["scale"], int(state["num_good"])
