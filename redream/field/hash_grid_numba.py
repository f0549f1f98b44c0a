"""The hash encoding on a CPU: kernels that numba compiles, with no compiler on the user's machine.

Same mathematics and table as `hash_grid.encode_torch` (Instant-NGP, Eqs. 1-4). One kernel call handles two features of
one level, read at once as the parts of a complex number. Its entries of the table are its own, so calls run on
different threads without atomics, and every bit of values and gradients is the same for any number of threads. Threads
are Python's: the kernels release the interpreter lock, while numba's own thread pool must not be entered from two
Python threads at once, as warm-up and adaptation would.

Numba keeps compiled kernels in `__pycache__`, in its user-wide cache where the installation is read-only, or in
NUMBA_CACHE_DIR; where none can be written, each process compiles them anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from redream.field.grid_levels import HASH_PRIMES, GridLevel

MIN_POINTS_PER_THREAD = 4096  # below, starting a thread costs more than it saves
PRIME_Y, PRIME_Z = np.uint64(HASH_PRIMES[1]), np.uint64(HASH_PRIMES[2])

logger = logging.getLogger(__name__)


def encode_numba(
    positions: Float[Tensor, "num 3"], table: Float[Tensor, "entries channels"], levels: tuple[GridLevel, ...]
) -> Float[Tensor, "num features"]:
    """Encode float32 positions on a CPU; on `torch.get_num_threads()` threads where there is enough work."""
    if table.device.type != "cpu" or table.dtype != torch.float32 or positions.dtype != torch.float32:
        raise ValueError(
            f"the numba hash grid computes float32 on a CPU, not {positions.dtype} positions and {table.dtype} on "
            f"{table.device}; set field.implementation to 'auto'"
        )
    if table.shape[1] % 2 == 0:
        return _Encode.apply(positions, table, levels)
    features = _Encode.apply(positions, pad(table, (0, 1)), levels)  # kernels take features in pairs
    return features.unflatten(1, (len(levels), -1))[..., :-1].flatten(1)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, levels: tuple[GridLevel, ...]) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.levels = levels
        # One row per feature: threads write apart from each other, and a matrix product takes the transpose as it is.
        features = torch.empty(len(levels) * table.shape[1], len(positions))
        points, parts = positions.detach().contiguous().numpy(), _parts(table, levels, features)
        _run([partial(_encode_part, points, *part) for part in parts], len(positions))
        return features.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore
        positions, table = ctx.saved_tensors
        points, grad_features = positions.detach().contiguous().numpy(), grad.t().contiguous()
        grad_positions = grad_table = None
        if ctx.needs_input_grad[1]:
            grad_table = torch.zeros_like(table)
            parts = _parts(grad_table, ctx.levels, grad_features)
            _run([partial(_scatter_part, points, *part) for part in parts], len(positions))
        if ctx.needs_input_grad[0]:
            grad_positions = torch.zeros(len(positions), 3)
            out, parts = grad_positions.numpy(), _parts(table, ctx.levels, grad_features)
            for pull_back in [partial(_pull_back_part, points, *part, out) for part in parts]:
                pull_back()  # one after the other, for they all add to the same positions
        return grad_positions, grad_table, None


def _parts(table: Tensor, levels: tuple[GridLevel, ...], features: Tensor) -> list[tuple[Any, ...]]:
    """Cut the work: two features of one level's rows of the table, the level's shape, and their rows of `features`."""
    pairs = table.detach().numpy().view(np.complex64)
    rows = features.numpy().reshape(len(levels), pairs.shape[1], 2, -1)
    return [
        (
            pairs[level.offset : level.offset + level.size, pair],
            np.float32(level.scale),
            np.uint64(level.resolution),
            np.uint64(level.size),
            level.is_hashed,
            rows[index, pair],
        )
        for index, level in enumerate(levels)
        for pair in range(pairs.shape[1])
    ]


def _run(calls: list[Callable[[], None]], num_points: int) -> None:
    threads = min(torch.get_num_threads(), len(calls), num_points // MIN_POINTS_PER_THREAD)
    if threads <= 1:
        for call in calls:
            call()
        return
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


@njit(nogil=True)
@no_type_check  # checkers that wrap functions would hide the source from numba
def _encode_part(positions, rows, scale, resolution, size, is_hashed, out):
    for n in range(positions.shape[0]):
        x, fx = _vertex(positions[n, 0], scale)
        y, fy = _vertex(positions[n, 1], scale)
        z, fz = _vertex(positions[n, 2], scale)
        r0, r1, r2, r3, r4, r5, r6, r7 = _corner_rows(x, y, z, resolution, size, is_hashed)
        w0, w1, w2, w3, w4, w5, w6, w7 = _corner_weights(fx, fy, fz)
        v0, v1, v2, v3, v4, v5, v6, v7 = rows[r0], rows[r1], rows[r2], rows[r3], rows[r4], rows[r5], rows[r6], rows[r7]
        near = (w0 * v0.real + w1 * v1.real) + (w2 * v2.real + w3 * v3.real)
        out[0, n] = near + ((w4 * v4.real + w5 * v5.real) + (w6 * v6.real + w7 * v7.real))
        near = (w0 * v0.imag + w1 * v1.imag) + (w2 * v2.imag + w3 * v3.imag)
        out[1, n] = near + ((w4 * v4.imag + w5 * v5.imag) + (w6 * v6.imag + w7 * v7.imag))


@njit(nogil=True)
@no_type_check
def _scatter_part(positions, grad_rows, scale, resolution, size, is_hashed, grad):
    for n in range(positions.shape[0]):
        x, fx = _vertex(positions[n, 0], scale)
        y, fy = _vertex(positions[n, 1], scale)
        z, fz = _vertex(positions[n, 2], scale)
        r0, r1, r2, r3, r4, r5, r6, r7 = _corner_rows(x, y, z, resolution, size, is_hashed)
        w0, w1, w2, w3, w4, w5, w6, w7 = _corner_weights(fx, fy, fz)
        g0, g1 = grad[0, n], grad[1, n]
        grad_rows[r0] += complex(w0 * g0, w0 * g1)
        grad_rows[r1] += complex(w1 * g0, w1 * g1)
        grad_rows[r2] += complex(w2 * g0, w2 * g1)
        grad_rows[r3] += complex(w3 * g0, w3 * g1)
        grad_rows[r4] += complex(w4 * g0, w4 * g1)
        grad_rows[r5] += complex(w5 * g0, w5 * g1)
        grad_rows[r6] += complex(w6 * g0, w6 * g1)
        grad_rows[r7] += complex(w7 * g0, w7 * g1)


@njit(nogil=True)
@no_type_check
def _pull_back_part(positions, rows, scale, resolution, size, is_hashed, grad, grad_positions):
    for n in range(positions.shape[0]):
        x, fx = _vertex(positions[n, 0], scale)
        y, fy = _vertex(positions[n, 1], scale)
        z, fz = _vertex(positions[n, 2], scale)
        r0, r1, r2, r3, r4, r5, r6, r7 = _corner_rows(x, y, z, resolution, size, is_hashed)
        gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
        g0, g1 = scale * grad[0, n], scale * grad[1, n]
        v0, v1, v2, v3 = _dot(rows[r0], g0, g1), _dot(rows[r1], g0, g1), _dot(rows[r2], g0, g1), _dot(rows[r3], g0, g1)
        v4, v5, v6, v7 = _dot(rows[r4], g0, g1), _dot(rows[r5], g0, g1), _dot(rows[r6], g0, g1), _dot(rows[r7], g0, g1)
        grad_positions[n, 0] += gz * (gy * (v1 - v0) + fy * (v3 - v2)) + fz * (gy * (v5 - v4) + fy * (v7 - v6))
        grad_positions[n, 1] += gz * (gx * (v2 - v0) + fx * (v3 - v1)) + fz * (gx * (v6 - v4) + fx * (v7 - v5))
        grad_positions[n, 2] += gy * (gx * (v4 - v0) + fx * (v5 - v1)) + fy * (gx * (v6 - v2) + fx * (v7 - v3))


@njit(nogil=True)
@no_type_check
def _vertex(x, scale):
    """Return the lower vertex and the fraction beyond it; not a number stays one, but never as an index."""
    grid = x * scale + np.float32(0.5)
    vertex = np.int32(grid) if grid >= np.float32(0) else np.int32(0)
    return np.uint64(np.uint32(vertex)), grid - np.float32(vertex)


@njit(nogil=True)
@no_type_check
def _corner_rows(x, y, z, resolution, size, is_hashed):
    """Return the rows of a cell's eight vertices, x fastest, then y; unsigned, so that numba need not look for -1."""
    one = np.uint64(1)
    if is_hashed:
        mask = size - one  # a hashed level's size is a power of two
        y0, z0 = y * PRIME_Y, z * PRIME_Z
        y1, z1 = y0 + PRIME_Y, z0 + PRIME_Z
        x1 = x + one
        return (
            (x ^ y0 ^ z0) & mask, (x1 ^ y0 ^ z0) & mask, (x ^ y1 ^ z0) & mask, (x1 ^ y1 ^ z0) & mask,
            (x ^ y0 ^ z1) & mask, (x1 ^ y0 ^ z1) & mask, (x ^ y1 ^ z1) & mask, (x1 ^ y1 ^ z1) & mask,
        )  # fmt: skip
    r0 = x + resolution * (y + resolution * z)
    r2 = r0 + resolution
    r4 = r0 + resolution * resolution
    r6 = r4 + resolution
    return (
        _wrap(r0, size), _wrap(r0 + one, size), _wrap(r2, size), _wrap(r2 + one, size),
        _wrap(r4, size), _wrap(r4 + one, size), _wrap(r6, size), _wrap(r6 + one, size),
    )  # fmt: skip


@njit(nogil=True)
@no_type_check
def _wrap(row, size):
    return row if row < size else row % size


@njit(nogil=True)
@no_type_check
def _corner_weights(fx, fy, fz):
    """Return the trilinear weights of a cell's eight vertices, in the order of their rows."""
    gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
    a, b, c, d = gy * gz, fy * gz, gy * fz, fy * fz
    return gx * a, fx * a, gx * b, fx * b, gx * c, fx * c, gx * d, fx * d


@njit(nogil=True)
@no_type_check
def _dot(value, g0, g1):
    return g0 * value.real + g1 * value.imag


def _keep_compiled(*kernels: Any) -> None:
    try:
        for kernel in kernels:
            kernel.enable_caching()
    except RuntimeError:  # of numba, which has no milder way to say so; what is computed stays the same
        logger.info("compiling the hash grid anew: no folder to keep it in; set NUMBA_CACHE_DIR to one")


_keep_compiled(_encode_part, _scatter_part, _pull_back_part)
