"""Moving tensors to a GPU without waiting for it, and what PyTorch is told once per process that uses one."""

from __future__ import annotations

import os

import torch
from torch import Tensor

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the older name is the one that every version reads


def prepare_cuda() -> None:
    """Set what PyTorch keeps for the whole process, before its first tensor on a GPU; what the user has set stays.

    Products of float32 matrices may use TF32 (10 bits of mantissa, as convolutions do anyway), about seven times as
    fast on an H100. Memory segments may grow, since the number of samples differs from render to render and fixed
    segments would leave gaps.
    """
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
