"""Moving tensors to a GPU without waiting for it, and what PyTorch is told once per process that uses one."""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device, such as random numbers of the CPU's generator.

    A plain `to` waits until the GPU has done all its work; from pinned memory the copy joins the queue.
    """
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
