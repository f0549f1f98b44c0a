"""Seconds per million points of the hash encoding, forward and backward: `python -m benchmarks.hash_grid`.

Points lie along rays, as in rendering; the best of several repetitions counts. On a CPU these are core-seconds, which
other work on the machine disturbs less than wall time; where it is idle, two threads take about half of them. On a CUDA
device they are wall time, and the GPU's implementations are measured instead.
"""

from __future__ import annotations

import importlib.util
import time

import torch
from rich.console import Console
from rich.table import Table

from redream.field.hash_grid import HashGrid, Implementation
from redream.presets import mini, sd21

NUM_RAYS, POINTS_PER_RAY = 2048, 64


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unit = "seconds" if device == "cuda" else "core-seconds"
    table = Table(title=f"hash grid on {device}: {unit} per million points")
    for column in ("grid", "implementation", "forward", "backward", "both"):
        table.add_column(column, justify="left" if column in ("grid", "implementation") else "right")
    implementations: tuple[Implementation, ...] = ("torch", "numba")
    if device == "cuda":
        gpu: tuple[Implementation, ...] = ("triton", "tinycudann")
        implementations = ("torch", *(name for name in gpu if importlib.util.find_spec(name)))
    for name, config in (("mini", mini().field), ("sd21", sd21().field)):
        size = f"{name}: {config.num_levels} levels, 2^{config.log2_hashmap_size}"
        for implementation in implementations:
            grid = HashGrid(
                config.num_levels,
                config.features_per_level,
                config.log2_hashmap_size,
                config.base_resolution,
                config.per_level_scale,
                torch.Generator().manual_seed(0),
                implementation,
            ).to(device)
            forward, backward = measure(grid, ray_points().to(device), repeats=2 if implementation == "torch" else 8)
            figures = [f"{seconds:.3f}" for seconds in (forward, backward, forward + backward)]
            table.add_row(size, implementation, *figures)
    Console().print(table)


def ray_points() -> torch.Tensor:
    """Points within the unit cube in the order in which a renderer asks for them."""
    generator = torch.Generator().manual_seed(0)
    middles = 0.25 + 0.5 * torch.rand(NUM_RAYS, 1, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(NUM_RAYS, 1, 3, generator=generator), dim=-1)
    return (middles + directions * torch.linspace(-0.25, 0.25, POINTS_PER_RAY)[:, None]).reshape(-1, 3)


def measure(grid: HashGrid, positions: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Return the best seconds per million points of forward and backward, after one run that compiles."""
    grad = torch.ones(len(positions), grid.output_dim, device=positions.device)
    best = [float("inf"), float("inf")]
    for repeat in range(repeats + 1):
        grid.zero_grad()
        started = now(positions.device)
        features = grid(positions)
        between = now(positions.device)
        features.backward(grad)
        ended = now(positions.device)
        if repeat > 0:
            best = [min(best[0], between - started), min(best[1], ended - between)]
    return best[0] / len(positions) * 1e6, best[1] / len(positions) * 1e6


def now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
