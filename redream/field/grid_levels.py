"""The grids of a hash encoding: which rows of its table each has (Instant-NGP, Eqs. 1-4); tiny-cuda-nn's layout."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

HASH_PRIMES = (1, 2_654_435_761, 805_459_861)  # Eq. 4


@dataclass(frozen=True)
class GridGeometry:
    """The five numbers of Instant-NGP's Tab. 1 that fix a hash grid."""

    num_levels: int
    features_per_level: int
    log2_hashmap_size: int
    base_resolution: int
    per_level_scale: float


@dataclass(frozen=True)
class GridLevel:
    """One grid: its rows `offset .. offset + size` of the table, its vertices per axis, and cells per unit length."""

    offset: int
    size: int
    resolution: int
    scale: float
    is_hashed: bool


@functools.cache
def grid_levels(geometry: GridGeometry) -> tuple[GridLevel, ...]:
    """Lay the levels out in the table (Eqs. 2 and 3), in float32 as tiny-cuda-nn does."""
    levels, offset = [], 0
    growth = np.float32(math.log2(geometry.per_level_scale))
    for level in range(geometry.num_levels):
        scale = np.exp2(np.float32(level) * growth) * np.float32(geometry.base_resolution) - np.float32(1)
        resolution = int(np.ceil(scale)) + 1
        num_vertices = resolution**3
        size = min(-(-num_vertices // 8) * 8, 2**geometry.log2_hashmap_size)
        levels.append(GridLevel(offset, size, resolution, float(scale), is_hashed=num_vertices > size))
        offset += size
    return tuple(levels)
