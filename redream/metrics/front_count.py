"""The share of false fronts: the Janus problem, counted by a classifier.

An object whose back shows a second face gets its views from behind classified as fronts. The judge must have been
trained on the truth and on nothing that the evaluated prior or adapter produced; its own error sets the floor.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from redream.metrics.perceptual import PerceptualNet


@torch.no_grad()
def wrong_front_share(
    images: Float[Tensor, "batch 3 height width"], azimuth_deg: Float[Tensor, " batch"], judge: PerceptualNet
) -> float:
    """Return which share of the views from behind (|azimuth| > 90 degrees) the judge calls `front`, lower is better.

    Args:
        images: views in [0, 1] before the background that the judge was trained on.
    """
    wrapped = (azimuth_deg + 180.0) % 360.0 - 180.0
    is_behind = wrapped.abs() > 90.0
    if not is_behind.any():
        raise ValueError("none of the views is from behind: counting false fronts needs |azimuth| above 90 degrees")
    if "front" not in judge.config.views:
        raise ValueError(f"the judge knows the views {judge.config.views}, not 'front'")
    device = next(judge.parameters()).device
    called = judge(images[is_behind.to(images.device)].to(device)).view.argmax(dim=-1)
    return (called == judge.config.views.index("front")).double().mean().item()
