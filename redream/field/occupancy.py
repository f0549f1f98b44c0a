"""Which cells of the cube hold matter, so that rays skip the rest (Instant-NGP, App. C; nerfacc's occupancy grid).

The first occupancy is the visual hull of the retrieved asset: every cell that no silhouette rules out. Later updates
keep a decaying maximum of the field's densities. Cells are indexed [x, y, z] over [-radius, radius]^3, world axes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import max_pool3d, pad

from redream.cameras import Camera
from redream.devices import send


class OccupancyGrid(nn.Module):
    """Occupied cells of the cube [-radius, radius]^3, kept in buffers and so in checkpoints; all occupied at first.

    Args:
        occupied: the first occupancy, such as a `visual_hull`.
    """

    is_occupied: Tensor
    opacities: Tensor

    def __init__(self, radius: float, resolution: int, occupied: Bool[Tensor, "size size size"] | None = None) -> None:
        super().__init__()
        shape = (resolution, resolution, resolution)
        if occupied is None:
            occupied = torch.ones(shape, dtype=torch.bool)
        if occupied.shape != shape:
            raise ValueError(f"the first occupancy is {tuple(occupied.shape)}; with this resolution it must be {shape}")
        self.radius = radius
        self.register_buffer("is_occupied", occupied.clone())
        self.register_buffer("opacities", occupied.float())

    @property
    def resolution(self) -> int:
        return self.is_occupied.shape[0]

    def occupied(self, positions: Float[Tensor, "num 3"]) -> Bool[Tensor, " num"]:
        """Tell which positions lie in an occupied cell; outside the cube none does."""
        # A border of empty cells stands for everything outside, so that no position needs a test of its own.
        size = self.resolution + 2
        cells = positions.mul((size - 2) / (2.0 * self.radius)).add_(0.5 * size).clamp_(0, size - 1).int()
        rows = (cells[:, 0] * size + cells[:, 1]) * size + cells[:, 2]
        return pad(self.is_occupied, (1,) * 6).flatten().index_select(0, rows)

    @torch.no_grad()
    def update(
        self,
        density: Callable[[Float[Tensor, "num 3"]], Float[Tensor, " num"]],
        step_length: float,
        generator: torch.Generator,
        min_opacity: float = 0.01,
        decay: float = 0.95,
        growth_cells: int | None = 1,
    ) -> None:
        """Look at the density at one random point of every cell, and keep the cells that a ray would notice.

        Args:
            step_length: world units; a cell is kept while `sigma * step_length` stays above `min_opacity`, or above
                the mean of all cells where that is lower.
            decay: of what was seen earlier, so that a single unlucky point does not empty a cell.
            growth_cells: how far beyond the occupied cells new ones may appear. A field is never trained outside
                them, so farther away its density still means nothing; None trusts it everywhere.
        """
        size, device = self.resolution, self.opacities.device
        axis = torch.arange(size, device=device)
        corners = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
        jitter = send(torch.rand(corners.shape, generator=generator, device=generator.device), device)
        positions = (corners + jitter) * (2.0 * self.radius / size) - self.radius
        seen = (density(positions) * step_length).reshape(self.opacities.shape)
        if growth_cells is not None:
            seen = seen * dilate(self.is_occupied, growth_cells)
        self.opacities.copy_(torch.maximum(self.opacities * decay, seen))
        self.is_occupied.copy_(self.opacities > self.opacities.mean().clamp(max=min_opacity))


def visual_hull(
    opacity: Float[Tensor, "batch height width 1"],
    camera: Camera,
    radius: float,
    resolution: int,
    dilation_cells: int = 1,
    min_opacity: float = 0.5,
) -> Bool[Tensor, "size size size"]:
    """Keep the cells that no view rules out, grown by `dilation_cells` for the object to move in (Laurentini 1994).

    A view rules a cell out when the box around the cell's image lies within the frame and holds no pixel of the
    silhouette. The test looks at all of the cell, so a part thinner than a cell is kept.
    """
    if len(camera) != len(opacity):
        raise ValueError(f"{len(opacity)} silhouettes need as many cameras, not {len(camera)}")
    hull = torch.ones(resolution, resolution, resolution, dtype=torch.bool, device=opacity.device)
    axis = torch.linspace(-radius, radius, resolution + 1, device=opacity.device)
    corners = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    for view in range(len(camera)):
        hull &= ~_ruled_out(opacity[view, ..., 0] >= min_opacity, camera[view], corners)
    return dilate(hull, dilation_cells)


def dilate(cells: Bool[Tensor, "x y z"], num_cells: int) -> Bool[Tensor, "x y z"]:
    """Grow a set of cells by `num_cells` along every axis and diagonal."""
    if num_cells == 0:
        return cells
    size = 2 * num_cells + 1
    return max_pool3d(cells.float()[None, None], size, stride=1, padding=num_cells)[0, 0] > 0


def _ruled_out(
    silhouette: Bool[Tensor, "height width"], camera: Camera, corners: Float[Tensor, "x1 y1 z1 3"]
) -> Bool[Tensor, "x y z"]:
    height, width = silhouette.shape
    w2c = torch.linalg.inv(camera.c2w[0])
    local = corners @ w2c[:3, :3].T + w2c[:3, 3]
    depth = -local[..., 2]
    focal = camera.intrinsics[0, 0, 0]
    column = 0.5 * width + focal * local[..., 0] / depth
    row = 0.5 * height - focal * local[..., 1] / depth
    left, right = -_largest_corner(-column), _largest_corner(column)
    top, bottom = -_largest_corner(-row), _largest_corner(row)
    is_framed = (-_largest_corner(-depth) > 0) & (left >= 0) & (right <= width) & (top >= 0) & (bottom <= height)
    # Pixels of the silhouette in a box are four look-ups in its summed-area table.
    total = pad(silhouette.int().cumsum(0).cumsum(1), (1, 0, 1, 0))
    x0, x1 = left.floor().clamp(0, width).long(), right.ceil().clamp(0, width).long()
    y0, y1 = top.floor().clamp(0, height).long(), bottom.ceil().clamp(0, height).long()
    num_pixels = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
    return is_framed & (num_pixels == 0)


def _largest_corner(values: Float[Tensor, "x1 y1 z1"]) -> Float[Tensor, "x y z"]:
    return max_pool3d(values[None, None], 2, stride=1)[0, 0]
