"""Perp-Neg guidance (Armandpour et al. 2023, arXiv 2304.04968): a view's own prompt, and the other views' as negatives.

    eps = eps_uncond + s (e_pos + sum_i w_i perp(e_i; e_pos)),    e = eps_cond - eps_uncond,   w_i <= 0
    perp(x; y) = x - y <x, y> / max(|y|^2, 1e-6), per image

Only what a negative does not share with the positive is taken off, so it cannot undo the prompt. The positive prompt is
interpolated between the two nearest views. The default weights are threestudio's, which are continuous in the azimuth;
the authors' own are the setting "paper".
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

FRONT, SIDE, BACK, OVERHEAD = range(4)  # in the order of VIEW_NAMES
Rule = Literal["threestudio", "paper"]


def perp_neg_guidance(
    eps_uncond: Float[Tensor, "batch channels h w"],
    eps_positive: Float[Tensor, "batch channels h w"],
    eps_negatives: list[Float[Tensor, "batch channels h w"]],
    weights: Float[Tensor, "batch negatives"],
    guidance_scale: float,
) -> Float[Tensor, "batch channels h w"]:
    """Return the guided prediction; a weight of 0 leaves its negative out."""
    positive = eps_positive - eps_uncond
    total = positive
    for eps_negative, weight in zip(eps_negatives, weights.unbind(1), strict=True):
        total = total + weight[:, None, None, None] * perpendicular(eps_negative - eps_uncond, positive)
    return eps_uncond + guidance_scale * total


def perpendicular(
    x: Float[Tensor, "batch channels h w"], y: Float[Tensor, "batch channels h w"]
) -> Float[Tensor, "batch channels h w"]:
    """Return the part of `x` that is orthogonal to `y`, image by image."""
    axes = (1, 2, 3)
    share = (x * y).sum(axes, keepdim=True) / y.square().sum(axes, keepdim=True).clamp_min(1e-6)
    return x - share * y


def view_mixture(
    azimuth_deg: Float[Tensor, " batch"], elevation_deg: Float[Tensor, " batch"], overhead_above_deg: float, rule: Rule
) -> tuple[Float[Tensor, "batch 4"], Float[Tensor, "batch 2"]]:
    """Return each view's share of the positive prompt, and the weights (<= 0) of the negatives, front and side."""
    rows = [
        _mixture(abs(azimuth), elevation > overhead_above_deg, rule)
        for azimuth, elevation in zip(azimuth_deg.tolist(), elevation_deg.tolist(), strict=True)
    ]
    shares, weights = zip(*rows, strict=True)
    return torch.tensor(shares), torch.tensor(weights)


def _mixture(off_front_deg: float, is_overhead: bool, rule: Rule) -> tuple[list[float], list[float]]:
    shares = [0.0] * 4
    if is_overhead:
        shares[OVERHEAD] = 1.0
        return shares, [0.0, 0.0]
    if off_front_deg < 90.0:
        front = 1.0 - off_front_deg / 90.0
        shares[FRONT], shares[SIDE] = front, 1.0 - front
        return shares, _front_half(front, rule)
    side = 2.0 - off_front_deg / 90.0
    shares[SIDE], shares[BACK] = side, 1.0 - side
    return shares, _back_half(side, rule)


def _front_half(front: float, rule: Rule) -> list[float]:
    """Return the weights of front and side, where the view is `front` front and the rest side."""
    if rule == "threestudio":
        return [-_decay(4.0, 0.5, -2.426, front), -_decay(4.0, 0.5, -2.426, 1.0 - front)]
    return [
        0.0 if front > 0.8 else -2.0 * math.exp(-2.0 * front),
        0.0 if front < 0.2 else -2.0 * math.exp(-10.0 * (1.0 - front)),
    ]


def _back_half(side: float, rule: Rule) -> list[float]:
    """Return the weights of front and side, where the view is `side` side and the rest back."""
    if rule == "threestudio":
        return [-_decay(1.0, 0.5, 0.967, side), -_decay(1.0, 0.5, -0.606, side)]
    return [-2.0, 0.0 if side > 0.8 else -math.exp(-10.0 * side)]


def _decay(a: float, b: float, c: float, r: float) -> float:
    return a * math.exp(-b * r) + c
