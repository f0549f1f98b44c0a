"""The hash encoding on a GPU: Triton kernels, which need no CUDA toolkit on the user's machine.

Same mathematics and table as `hash_grid.encode_torch` (Instant-NGP, Eqs. 1-4). One program handles a block of points at
one level. The backward pass adds to the table atomically, so its last bits depend on the order in which programs run;
a run on a GPU is therefore reproducible only up to rounding. Off a GPU the kernels run under TRITON_INTERPRET=1.
"""

# Triton's own annotations know neither constants as arguments nor its unrolled loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from functools import lru_cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from redream.field.grid_levels import HASH_PRIMES, GridLevel

BLOCK = 256  # points per program; their number differs from call to call, and no kernel is compiled again for it
PRIME_Y, PRIME_Z = tl.constexpr(HASH_PRIMES[1]), tl.constexpr(HASH_PRIMES[2])


def encode_triton(
    positions: Float[Tensor, "num 3"], table: Float[Tensor, "entries channels"], levels: tuple[GridLevel, ...]
) -> Float[Tensor, "num features"]:
    """Encode float32 positions on a GPU."""
    if table.dtype != torch.float32 or positions.dtype != torch.float32:
        raise ValueError(
            f"the triton hash grid computes float32, not {positions.dtype} positions and a {table.dtype} table; "
            "set field.implementation to 'torch'"
        )
    return _Encode.apply(positions.contiguous(), table, levels)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, levels: tuple[GridLevel, ...]) -> Tensor:
        num, channels = len(positions), table.shape[1]
        scales, shapes = _level_tensors(levels, table.device)
        features = torch.empty(num, len(levels) * channels, device=table.device)
        if num:
            grid = (triton.cdiv(num, BLOCK), len(levels))
            _encode_kernel[grid](positions, table, scales, shapes, features, num, len(levels), channels, BLOCK)
        ctx.save_for_backward(positions, table, scales, shapes)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore
        positions, table, scales, shapes = ctx.saved_tensors
        num, channels, num_levels = len(positions), table.shape[1], len(scales)
        grad, blocks = grad.contiguous(), triton.cdiv(num, BLOCK)
        grad_positions = torch.zeros_like(positions) if ctx.needs_input_grad[0] else None
        grad_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        if num and grad_table is not None:
            _scatter_kernel[(blocks, num_levels)](
                positions, grad_table, scales, shapes, grad, num, num_levels, channels, BLOCK
            )
        if num and grad_positions is not None:
            _pull_back_kernel[(blocks,)](
                positions, table, scales, shapes, grad, grad_positions, num, num_levels, channels, BLOCK
            )
        return grad_positions, grad_table, None


@lru_cache(maxsize=8)
def _level_tensors(levels: tuple[GridLevel, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the levels as the kernels read them; kept, because sending them waits for the GPU."""
    scales = torch.tensor([level.scale for level in levels], dtype=torch.float32)
    shapes = [[level.offset, level.size, level.resolution, int(level.is_hashed)] for level in levels]
    return scales.to(device), torch.tensor(shapes, dtype=torch.int32).to(device)


@triton.jit
@no_type_check  # checkers that wrap functions would hide the source from triton
def _cell(positions, scales, points, inside, level, axis: tl.constexpr):
    """Return the lower vertex along an axis and the fraction beyond it."""
    grid = tl.load(positions + points * 3 + axis, mask=inside, other=0.0) * tl.load(scales + level) + 0.5
    lower = tl.floor(grid)
    return lower.to(tl.int32).to(tl.uint32), grid - lower


@triton.jit
@no_type_check
def _corner(x, y, z, fx, fy, fz, shapes, level, corner: tl.constexpr):
    """Return the row in the table and the weights along the three axes of one of a cell's eight vertices."""
    size = tl.load(shapes + level * 4 + 1).to(tl.uint32)
    resolution = tl.load(shapes + level * 4 + 2).to(tl.uint32)
    vx, vy, vz = x + (corner & 1), y + ((corner >> 1) & 1), z + ((corner >> 2) & 1)
    hashed = vx ^ (vy * PRIME_Y) ^ (vz * PRIME_Z)
    dense = vx + resolution * (vy + resolution * vz)
    row = tl.where(tl.load(shapes + level * 4 + 3) == 1, hashed, dense) % size
    wx = fx if corner & 1 else 1.0 - fx
    wy = fy if (corner >> 1) & 1 else 1.0 - fy
    wz = fz if (corner >> 2) & 1 else 1.0 - fz
    return tl.load(shapes + level * 4) + row.to(tl.int32), wx, wy, wz


@triton.jit(do_not_specialize=["num"])
@no_type_check
def _encode_kernel(
    positions, table, scales, shapes, features, num, num_levels, channels: tl.constexpr, block: tl.constexpr
):
    points = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    level = tl.program_id(1)
    inside = points < num
    x, fx = _cell(positions, scales, points, inside, level, 0)
    y, fy = _cell(positions, scales, points, inside, level, 1)
    z, fz = _cell(positions, scales, points, inside, level, 2)
    for f in tl.static_range(channels):
        total = tl.zeros([block], dtype=tl.float32)
        for corner in tl.static_range(8):
            row, wx, wy, wz = _corner(x, y, z, fx, fy, fz, shapes, level, corner)
            total += wx * wy * wz * tl.load(table + row * channels + f, mask=inside, other=0.0)
        tl.store(features + (points * num_levels + level) * channels + f, total, mask=inside)


@triton.jit(do_not_specialize=["num"])
@no_type_check
def _scatter_kernel(
    positions, grad_table, scales, shapes, grad, num, num_levels, channels: tl.constexpr, block: tl.constexpr
):
    points = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    level = tl.program_id(1)
    inside = points < num
    x, fx = _cell(positions, scales, points, inside, level, 0)
    y, fy = _cell(positions, scales, points, inside, level, 1)
    z, fz = _cell(positions, scales, points, inside, level, 2)
    for f in tl.static_range(channels):
        g = tl.load(grad + (points * num_levels + level) * channels + f, mask=inside, other=0.0)
        for corner in tl.static_range(8):
            row, wx, wy, wz = _corner(x, y, z, fx, fy, fz, shapes, level, corner)
            tl.atomic_add(grad_table + row * channels + f, wx * wy * wz * g, mask=inside, sem="relaxed")


@triton.jit(do_not_specialize=["num"])
@no_type_check
def _pull_back_kernel(
    positions, table, scales, shapes, grad, grad_positions, num, num_levels,
    channels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    points = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = points < num
    grad_x = tl.zeros([block], dtype=tl.float32)
    grad_y = tl.zeros([block], dtype=tl.float32)
    grad_z = tl.zeros([block], dtype=tl.float32)
    for level in range(num_levels):
        x, fx = _cell(positions, scales, points, inside, level, 0)
        y, fy = _cell(positions, scales, points, inside, level, 1)
        z, fz = _cell(positions, scales, points, inside, level, 2)
        for f in tl.static_range(channels):
            g = tl.load(grad + (points * num_levels + level) * channels + f, mask=inside, other=0.0)
            g *= tl.load(scales + level)
            for corner in tl.static_range(8):
                row, wx, wy, wz = _corner(x, y, z, fx, fy, fz, shapes, level, corner)
                pull = g * tl.load(table + row * channels + f, mask=inside, other=0.0)
                grad_x += pull * wy * wz * (1.0 if corner & 1 else -1.0)
                grad_y += pull * wx * wz * (1.0 if (corner >> 1) & 1 else -1.0)
                grad_z += pull * wx * wy * (1.0 if (corner >> 2) & 1 else -1.0)
    tl.store(grad_positions + points * 3, grad_x, mask=inside)
    tl.store(grad_positions + points * 3 + 1, grad_y, mask=inside)
    tl.store(grad_positions + points * 3 + 2, grad_z, mask=inside)
