import importlib.util
import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from redream.field.grid_levels import HASH_PRIMES, GridGeometry, grid_levels
from redream.field.hash_grid import HashGrid, Implementation, vertex_index

SMALL = {
    "num_levels": 5,
    "features_per_level": 2,
    "log2_hashmap_size": 10,
    "base_resolution": 4,
    "per_level_scale": 1.6,
}


def make_grid(generator: torch.Generator, implementation: Implementation = "torch", **changes: int) -> HashGrid:
    """A small grid with features of order one, dense and hashed levels."""
    grid = HashGrid(**(SMALL | changes), generator=generator, implementation=implementation)
    with torch.no_grad():
        grid.table.copy_(torch.randn(grid.table.shape, generator=generator))
    return grid


def positions_in_and_around_the_cube(generator: torch.Generator, num: int = 500) -> Tensor:
    scattered = torch.rand(num, 3, generator=generator) * 1.4 - 0.2
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3)))
    return torch.cat([scattered, corners])


def values_and_gradients(grid: HashGrid, positions: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grid.zero_grad()
    positions = positions.clone().requires_grad_()
    features = grid(positions)
    features.backward(grad)
    assert grid.table.grad is not None and positions.grad is not None
    return features.detach(), grid.table.grad, positions.grad


def test_hash_grid_equals_a_slow_loop(generator):
    grid = make_grid(generator)
    positions = torch.rand(20, 3, generator=generator, dtype=torch.float64)
    table = grid.table.detach().double()
    expected = torch.zeros(20, grid.output_dim, dtype=torch.float64)
    for n, level_index in itertools.product(range(20), range(5)):
        level = grid_levels(grid.geometry)[level_index]
        scaled = [float(coordinate) * level.scale + 0.5 for coordinate in positions[n]]
        for corner in itertools.product((0, 1), repeat=3):
            weight, vertex = 1.0, []
            for coordinate, upper in zip(scaled, corner, strict=True):
                fraction = coordinate - int(coordinate)
                weight *= fraction if upper else 1.0 - fraction
                vertex.append(int(coordinate) + upper)
            if level.is_hashed:
                row = 0
                for coordinate, prime in zip(vertex, HASH_PRIMES, strict=True):
                    row ^= (coordinate * prime) % 2**32
                row %= 2 ** SMALL["log2_hashmap_size"]
            else:
                row = vertex[0] + level.resolution * vertex[1] + level.resolution**2 * vertex[2]
                row %= level.size
            expected[n, 2 * level_index : 2 * level_index + 2] += weight * table[level.offset + row]
    torch.testing.assert_close(grid(positions.float()).double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("features_per_level", [1, 2, 4])
def test_numba_equals_torch_in_values_and_gradients(generator, features_per_level):
    reference = make_grid(generator, features_per_level=features_per_level)
    positions = positions_in_and_around_the_cube(generator)
    grad = torch.randn(len(positions), reference.output_dim, generator=generator)
    expected = values_and_gradients(reference, positions, grad)
    reference.implementation = "numba"
    for value, reference_value in zip(values_and_gradients(reference, positions, grad), expected, strict=True):
        torch.testing.assert_close(value, reference_value, atol=1e-4, rtol=1e-4)


def test_numba_gradient_of_positions_equals_finite_differences(generator):
    grid = make_grid(generator, "numba", num_levels=2)
    positions = (torch.rand(200, 3, generator=generator) * 0.8 + 0.1).requires_grad_()
    grad = torch.randn(200, grid.output_dim, generator=generator)
    grid(positions).backward(grad)
    step = 1e-3
    assert positions.grad is not None
    for axis in range(3):
        offset = torch.zeros(3)
        offset[axis] = step
        ahead, behind = (positions + offset).detach(), (positions - offset).detach()
        slope = ((grid(ahead) - grid(behind)) * grad).sum(-1) / (2 * step)
        # Where no level's cell changes in between, the encoding is linear along an axis.
        same_cell = torch.ones(200, dtype=torch.bool)
        for level in grid_levels(grid.geometry):
            same_cell &= ((ahead * level.scale + 0.5).floor() == (behind * level.scale + 0.5).floor()).all(-1)
        assert same_cell.sum() > 100
        torch.testing.assert_close(slope[same_cell], positions.grad[same_cell, axis], atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_a_constant_table_gives_constant_features(generator, implementation):
    grid = make_grid(generator, implementation)
    torch.nn.init.constant_(grid.table, 0.7)
    features = grid(positions_in_and_around_the_cube(generator))
    torch.testing.assert_close(features, torch.full_like(features, 0.7))


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_positions_outside_the_cube_get_the_features_of_its_surface(generator, implementation):
    grid = make_grid(generator, implementation)
    positions = torch.randn(100, 3, generator=generator) * 3
    torch.testing.assert_close(grid(positions), grid(positions.clamp(0, 1)), atol=0, rtol=0)


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_not_a_number_stays_not_a_number(generator, implementation):
    positions = torch.tensor([[0.5, float("nan"), 0.5], [0.5, 0.5, 0.5]])
    features = make_grid(generator, implementation)(positions)
    assert features[0].isnan().all() and features[1].isfinite().all()


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_no_positions_give_no_features_and_a_zero_gradient(generator, implementation):
    grid = make_grid(generator, implementation)
    features = grid(torch.zeros(0, 3))
    features.sum().backward()
    assert features.shape == (0, grid.output_dim)
    assert grid.table.grad is not None and not grid.table.grad.any()


def test_dense_levels_are_free_of_collisions_within_the_outermost_half_cell():
    levels = grid_levels(GridGeometry(**SMALL))
    dense = [level for level in levels if not level.is_hashed]
    assert 0 < len(dense) < len(levels)
    for level in dense:
        axis = torch.arange(level.resolution)
        rows = vertex_index(torch.cartesian_prod(axis, axis, axis), level)
        assert len(rows.unique()) == level.resolution**3 <= level.size


def test_levels_tile_the_table_and_never_exceed_the_hashmap():
    for geometry in (GridGeometry(16, 2, 19, 16, 1.4473), GridGeometry(8, 2, 16, 16, 1.38), GridGeometry(**SMALL)):
        end = 0
        for level in grid_levels(geometry):
            assert level.offset == end and level.size <= 2**geometry.log2_hashmap_size and level.size % 8 == 0
            end += level.size
        resolutions = [level.resolution for level in grid_levels(geometry)]
        assert resolutions[0] == geometry.base_resolution and resolutions == sorted(resolutions)


def test_resolutions_grow_to_the_papers_finest():
    # Instant-NGP's Tab. 1: 16 levels from 16 to 4096 vertices; 1.4473 is the growth rounded to five digits.
    finest = grid_levels(GridGeometry(16, 2, 19, 16, 1.4473))[-1]
    assert finest.resolution == pytest.approx(4096, rel=1e-3)


def test_the_first_table_is_the_generators_and_within_1e_4():
    tables = [HashGrid(**SMALL, generator=torch.Generator().manual_seed(seed)).table for seed in (1, 1, 2)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert tables[0].abs().max() <= 1e-4 and tables[0].std() > 5e-5


def test_numba_is_bit_identical_for_any_number_of_threads(generator):
    grid = make_grid(generator, "numba")
    positions = torch.rand(20_000, 3, generator=generator)
    grad = torch.randn(20_000, grid.output_dim, generator=generator)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            runs.append([value.clone() for value in values_and_gradients(grid, positions, grad)])
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(value, first) for value, first in zip(run, runs[0], strict=True))


def test_numba_may_be_entered_by_two_python_threads_at_once(generator):
    grids = [make_grid(generator, "numba") for _ in range(2)]
    positions = torch.rand(20_000, 3, generator=generator)
    grad = torch.randn(20_000, grids[0].output_dim, generator=generator)
    alone = [[value.clone() for value in values_and_gradients(grid, positions, grad)] for grid in grids]
    together: list[list[Tensor]] = [[], []]

    def work(index: int) -> None:
        for _ in range(5):
            together[index] = [value.clone() for value in values_and_gradients(grids[index], positions, grad)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for expected, found in zip(alone, together, strict=True):
        assert len(found) == 3 and all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_numba_refuses_what_it_does_not_compute(generator):
    with pytest.raises(ValueError, match=r"float64.*implementation"):
        make_grid(generator, "numba").double()(torch.zeros(1, 3, dtype=torch.float64))


@pytest.mark.skipif(importlib.util.find_spec("tinycudann") is not None, reason="tinycudann is installed")
def test_an_implementation_that_is_not_installed_is_refused_by_name(generator):
    with pytest.raises(ValueError, match="tinycudann"):
        HashGrid(**SMALL, generator=generator, implementation="tinycudann")


INTERPRETED = """
import torch
from redream.field.hash_grid import HashGrid

generator = torch.Generator().manual_seed(0)
grid = HashGrid(2, 2, 8, 4, 2.5, generator, "torch")  # a dense level and a hashed one
with torch.no_grad():
    grid.table.copy_(torch.randn(grid.table.shape, generator=generator))
positions = torch.rand(300, 3, generator=generator) * 1.2 - 0.1
grad = torch.randn(300, grid.output_dim, generator=generator)
results = []
for implementation in ("torch", "triton"):
    grid.implementation = implementation
    grid.zero_grad()
    points = positions.clone().requires_grad_()
    features = grid(points)
    features.backward(grad)
    results.append((features.detach(), grid.table.grad, points.grad))
for value, expected in zip(*results):
    torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="this build of torch comes without triton")
def test_triton_equals_torch_under_its_interpreter():
    # In a process of its own: triton reads the variable once, when the kernels are defined.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("implementation", ["triton", "tinycudann"])
def test_gpu_implementations_equal_torch_on_a_gpu(generator, implementation):
    pytest.importorskip(implementation)
    grid = make_grid(generator).cuda()
    positions = positions_in_and_around_the_cube(generator).cuda()
    grad = torch.randn(len(positions), grid.output_dim, generator=generator).cuda()
    expected = values_and_gradients(grid, positions, grad)
    grid.implementation = implementation
    # On the very border between two cells either slope is right, so corners of the cube are left to the values.
    inside = slice(0, 500)
    features, grad_table, grad_positions = values_and_gradients(grid, positions, grad)
    torch.testing.assert_close(features, expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grad_table, expected[1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(grad_positions[inside], expected[2][inside], atol=1e-3, rtol=1e-3)
