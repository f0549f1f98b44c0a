"""Multiresolution hash encoding of positions (Müller et al. 2022, "Instant Neural Graphics Primitives", Eqs. 1-4).

Each of `num_levels` grids, finer by `per_level_scale` from one to the next, interpolates trilinearly between feature
vectors at its vertices; the results are concatenated, coarse to fine. A level whose vertices fit the table is stored
densely, a finer one is hashed (Eq. 4). Grid geometry and table layout are those of tiny-cuda-nn, the paper's code: a
level has `ceil(scale) + 1` vertices per axis, and grids are staggered by half a cell (App. A), so that the outermost
half cell of a dense level wraps around; a table therefore means the same to every implementation here.

`encode_torch` is the reference; the twins in `hash_grid_numba` and `hash_grid_triton`, and tiny-cuda-nn itself where it
is installed, are tested against it. Positions are in the unit cube; those outside are clamped to its surface.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from redream.field.grid_levels import HASH_PRIMES, GridGeometry, GridLevel, grid_levels

Implementation = Literal["auto", "torch", "numba", "triton", "tinycudann"]


class HashGrid(nn.Module):
    """Features of positions in the unit cube, from one table of trainable vectors.

    Gradients flow to the table and, where they are asked for, to the positions.

    Args:
        log2_hashmap_size: binary logarithm of the most vectors that a level may have.
        generator: draws the initial table, uniform within 1e-4 of zero (paper, Sec. 4).
        implementation: how to compute it; `auto` is numba on a CPU, and on a GPU tinycudann where it is installed,
            else triton.
    """

    def __init__(
        self,
        num_levels: int,
        features_per_level: int,
        log2_hashmap_size: int,
        base_resolution: int,
        per_level_scale: float,
        generator: torch.Generator,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        if implementation in ("triton", "tinycudann") and importlib.util.find_spec(implementation) is None:
            raise ValueError(f"implementation {implementation!r} is not installed; 'auto' takes what there is")
        self.implementation: Implementation = implementation
        self.geometry = GridGeometry(
            num_levels, features_per_level, log2_hashmap_size, base_resolution, per_level_scale
        )
        last = grid_levels(self.geometry)[-1]
        initial = torch.rand(last.offset + last.size, features_per_level, generator=generator, device=generator.device)
        self.table = nn.Parameter(2e-4 * initial - 1e-4)

    @property
    def output_dim(self) -> int:
        return self.geometry.num_levels * self.geometry.features_per_level

    def forward(self, positions: Float[Tensor, "num 3"]) -> Float[Tensor, "num features"]:
        positions = positions.clamp(0.0, 1.0)
        implementation = self.implementation
        if implementation == "auto":
            implementation = _fastest_on(self.table.device)
        if implementation == "torch":
            return encode_torch(positions, self.table, grid_levels(self.geometry))
        if implementation == "numba":
            from redream.field.hash_grid_numba import encode_numba

            return encode_numba(positions, self.table, grid_levels(self.geometry))
        if implementation == "triton":
            from redream.field.hash_grid_triton import encode_triton

            return encode_triton(positions, self.table, grid_levels(self.geometry))
        return _encode_tinycudann(positions, self.table, self.geometry)


def encode_torch(
    positions: Float[Tensor, "num 3"], table: Float[Tensor, "entries channels"], levels: tuple[GridLevel, ...]
) -> Float[Tensor, "num features"]:
    """Encode in plain PyTorch: the reference that the other implementations are tested against."""
    features = []
    for level in levels:
        grid = positions * level.scale + 0.5  # the stagger of App. A
        lower = grid.detach().floor()
        fraction = grid - lower
        feature = table.new_zeros(len(positions), table.shape[1])
        for corner in itertools.product((0, 1), repeat=3):
            is_upper = torch.tensor(corner, device=positions.device)
            weight = torch.where(is_upper == 1, fraction, 1.0 - fraction).prod(dim=-1, keepdim=True)
            rows = level.offset + vertex_index(lower.long() + is_upper, level)
            feature = feature + weight * table[rows]
        features.append(feature)
    return torch.cat(features, dim=-1)


def vertex_index(vertices: Int[Tensor, "num 3"], level: GridLevel) -> Int[Tensor, " num"]:
    """Return each vertex's row within its level: dense where the level fits, else the hash of Eq. 4."""
    x, y, z = vertices.unbind(-1)
    if level.is_hashed:
        return (x * HASH_PRIMES[0] ^ y * HASH_PRIMES[1] ^ z * HASH_PRIMES[2]) % level.size
    return (x + y * level.resolution + z * level.resolution**2) % level.size


def _fastest_on(device: torch.device) -> Implementation:
    if device.type == "cpu":
        return "numba"
    if device.type == "cuda" and importlib.util.find_spec("tinycudann") is not None:
        return "tinycudann"
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        return "triton"
    return "torch"


def _encode_tinycudann(
    positions: Float[Tensor, "num 3"], table: Float[Tensor, "entries channels"], geometry: GridGeometry
) -> Float[Tensor, "num features"]:
    encoding = _tinycudann_encoding(geometry)
    assert sum(own.numel() for own in encoding.parameters()) == table.numel(), "tiny-cuda-nn has another layout"
    # The table stays ours, so that checkpoints and optimizers do not depend on what is installed.
    return functional_call(encoding, {"params": table.reshape(-1)}, (positions,))


@functools.cache
def _tinycudann_encoding(geometry: GridGeometry) -> nn.Module:
    import tinycudann  # pyright: ignore[reportMissingImports]  # in no registry; built by those who want it

    config = {
        "otype": "HashGrid",
        "n_levels": geometry.num_levels,
        "n_features_per_level": geometry.features_per_level,
        "log2_hashmap_size": geometry.log2_hashmap_size,
        "base_resolution": geometry.base_resolution,
        "per_level_scale": geometry.per_level_scale,
        "interpolation": "Linear",
    }
    return tinycudann.Encoding(n_input_dims=3, encoding_config=config, dtype=torch.float32)
