"""Moving tensors to a GPU without waiting for it, and what PyTorch is told once per process that uses one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

DETERMINISTIC = "REDREAM_DETERMINISTIC"  # environment variable: PyTorch's deterministic algorithms where it has them
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the older name is the one that every version reads

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def prepare_cuda() -> None:
    """Set what PyTorch keeps for the whole process, before its first tensor on a GPU; what the user has set stays.

    Products of float32 matrices may use TF32 (10 bits of mantissa, as convolutions do anyway), about seven times as
    fast on an H100. Memory segments may grow, since the number of samples differs from render to render and fixed
    segments would leave gaps.
    """
    if os.environ.get(DETERMINISTIC):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("high")
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device, such as random numbers of the CPU's generator.

    A plain `to` waits until the GPU has done all its work; from pinned memory the copy joins the queue.
    """
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def in_smaller_chunks(attempt: Callable[[int], Result], chunk: int, least: int) -> tuple[Result, int]:
    """Call `attempt(chunk)`, again with half the chunk each time that the GPU's memory runs out.

    Args:
        attempt: starts from the same state each time, as it may have ended anywhere.
        least: below this chunk the error is raised.

    Returns:
        The result, and the chunk that fitted.
    """
    while True:
        try:
            return attempt(chunk), chunk
        except torch.cuda.OutOfMemoryError:
            if chunk // 2 < least:
                raise
        # Behind the handler, whose error holds the frames, and they the tensors, of what did not fit.
        chunk //= 2
        logger.warning("the GPU's memory ran out: again in chunks of %d", chunk)
        torch.cuda.empty_cache()
