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

import atexit
import functools
import importlib
import logging
import os
import shutil
import subprocess
import tempfile
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from redream.field.grid_levels import HASH_PRIMES, GridGeometry, GridLevel, grid_levels

Implementation = Literal["auto", "torch", "numba", "triton", "tinycudann"]

logger = logging.getLogger(__name__)


class HashGrid(nn.Module):
    """Features of positions in the unit cube, from one table of trainable vectors.

    Gradients flow to the table and, where they are asked for, to the positions.

    Args:
        log2_hashmap_size: binary logarithm of the most vectors that a level may have.
        generator: draws the initial table, uniform within 1e-4 of zero (paper, Sec. 4).
        implementation: how to compute it; `auto` is numba on a CPU, and on a GPU the first of tinycudann, triton and
            plain torch that works there.
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
        if implementation in ("triton", "tinycudann") and (problem := _import_problem(implementation)):
            raise ValueError(f"implementation {implementation!r}: {problem}; 'auto' takes what works")
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
    # Made where they are needed: a list would have to be sent there, and sending waits for a GPU.
    numbers = torch.arange(8, device=positions.device)
    corners = torch.stack([numbers >> 2, numbers >> 1 & 1, numbers & 1], dim=-1)
    features = []
    for level in levels:
        grid = positions * level.scale + 0.5  # the stagger of App. A
        lower = grid.detach().floor()
        fraction = grid - lower
        feature = table.new_zeros(len(positions), table.shape[1])
        for is_upper in corners:
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


def why_not_tinycudann(device_index: int = 0) -> str:
    """Encode one point on a GPU by tiny-cuda-nn; return why that fails in one line, or "" if it works."""
    return _import_problem("tinycudann") or _launch_problem("tinycudann", device_index)


def why_not_triton(device_index: int = 0) -> str:
    """Launch the Triton kernels on a GPU, forward and backward; return why that fails in one line, or "" if it works.

    Triton compiles a small C module before its first launch, so this needs a C compiler, Python's headers and a cache
    folder. If the cache folder cannot be written, a temporary one takes its place for the rest of this process.
    """
    return _import_problem("triton") or _launch_problem("triton", device_index)


@functools.cache
def _fastest_on(device: torch.device) -> Implementation:
    if device.type == "cpu":
        return "numba"
    if device.type != "cuda":
        return "torch"
    problem = why_not_tinycudann(device.index or 0)
    if not problem:
        return "tinycudann"
    if "not installed" not in problem:
        logger.warning("the hash grid cannot use tinycudann (%s); trying triton", problem)
    problem = why_not_triton(device.index or 0)
    if not problem:
        return "triton"
    logger.warning("the hash grid runs in plain PyTorch, several times slower: %s", problem)
    return "torch"


@functools.cache
def _import_problem(module: str) -> str:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return f"{module} is not installed"
        return f"{module} cannot be imported: {_first_line(error)}"
    except Exception as error:  # a module built for another torch, CUDA or GPU raises what it likes
        return f"{module} cannot be imported: {_first_line(error)}"
    return ""


@functools.cache
def _launch_problem(implementation: Literal["triton", "tinycudann"], device_index: int) -> str:
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    try:
        if implementation == "triton":
            _ensure_triton_can_write()
        # Two features per level, as in every preset: these kernels are the ones that a run needs.
        grid = HashGrid(2, 2, 8, 4, 2.0, torch.Generator(), implementation).to(torch.device("cuda", device_index))
        positions = torch.full((1, 3), 0.5).to(grid.table.device).requires_grad_()
        grid(positions).sum().backward()
        torch.cuda.synchronize(device_index)
    except subprocess.CalledProcessError as error:  # Triton's C module
        return f"the C compiler {error.cmd[0]} failed; install Python's headers (python3-dev) and a working compiler"
    except Exception as error:  # compilers, drivers and kernels fail in many ways, and none should end a run
        if "Failed to find C compiler" in str(error):
            return "Triton needs a C compiler; install gcc and Python's headers (python3-dev), or set CC"
        return f"a {implementation} kernel fails: {_first_line(error)}"
    return ""


def _ensure_triton_can_write() -> None:
    from triton import knobs

    try:
        os.makedirs(knobs.cache.dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=knobs.cache.dir):
            pass
    except OSError as error:
        folder = tempfile.mkdtemp(prefix="redream-triton-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        logger.warning("Triton's cache folder cannot be written (%s); kernels go to %s", error, folder)
        knobs.cache.dir = folder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
