"""Volume rendering of any field: sample rays, weigh the samples, composite them.

The quadrature of Max (1995) as in NeRF (Mildenhall et al. 2020, Eq. 3) and nerfacc: over an interval of length `dt`,
`alpha = 1 - exp(-sigma dt)`, `trans = exp(-sum of sigma dt before it)`, `weight = trans * alpha`, and a pixel's rgb is
the weighted sum of colours, premultiplied by its opacity. Samples are packed: only those kept are stored, one after
the other, ray by ray, and summed in that order: a ray does not feel the other rays of its batch, and a repeated call
gives the same bits. The field enters as a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from redream.cameras import Camera, camera_rays
from redream.images import Rendering

DensityAndColor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Occupied = Callable[[Tensor], Tensor]

CANDIDATES_PER_CHUNK = 2**22  # that are tested for occupancy at once; bounds the memory of sampling


def render_camera(
    density_and_color: DensityAndColor,
    camera: Camera,
    radius: float,
    num_samples: int,
    occupied: Occupied | None = None,
    generator: torch.Generator | None = None,
    rays_per_chunk: int = 2**16,
) -> Rendering:
    """Render every pixel of a batch of cameras; arguments are those of `sample_rays` and `render_rays`."""
    rays = camera_rays(camera)
    rays_o, rays_d = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
    parts = []
    for origins, directions in zip(rays_o.split(rays_per_chunk), rays_d.split(rays_per_chunk), strict=True):
        samples = sample_rays(origins, directions, radius, num_samples, occupied, generator)
        parts.append(render_rays(density_and_color, origins, directions, samples))
    shape = (len(camera), camera.height, camera.width)
    return Rendering(
        rgb=torch.cat([part.rgb for part in parts]).reshape(*shape, 3),
        opacity=torch.cat([part.opacity for part in parts]).reshape(*shape, 1),
        depth=torch.cat([part.depth for part in parts]).reshape(*shape, 1),
    )


@dataclass(frozen=True, eq=False)
class RaySamples:
    """Intervals along rays, packed ray by ray, near to far."""

    t_starts: Float[Tensor, " samples"]
    t_ends: Float[Tensor, " samples"]
    ray_indices: Int[Tensor, " samples"]
    num_rays: int

    def __len__(self) -> int:
        return len(self.t_starts)


@dataclass(frozen=True, eq=False)
class RayRendering:
    """What a batch of rays sees, and the weight of every sample in it."""

    rgb: Float[Tensor, "rays 3"]
    opacity: Float[Tensor, "rays 1"]
    depth: Float[Tensor, "rays 1"]
    weights: Float[Tensor, " samples"]


def render_rays(
    density_and_color: DensityAndColor,
    rays_o: Float[Tensor, "rays 3"],
    rays_d: Float[Tensor, "rays 3"],
    samples: RaySamples,
) -> RayRendering:
    """Evaluate a field at the middle of every interval and composite it over black.

    `depth` is the mean distance at which light was absorbed, 0 for a ray that nothing absorbs.
    """
    t_middles = 0.5 * (samples.t_starts + samples.t_ends)
    directions = rays_d.index_select(0, samples.ray_indices)
    positions = rays_o.index_select(0, samples.ray_indices) + t_middles[:, None] * directions
    sigmas, rgb = density_and_color(positions, directions)
    weights = render_weights(sigmas, samples)
    values = torch.cat([rgb, torch.ones_like(t_middles)[:, None], t_middles[:, None]], dim=-1)
    total = sum_along_rays(weights[:, None] * values, samples)
    opacity = total[:, 3:4]
    depth = total[:, 4:5] / opacity.clamp_min(torch.finfo(opacity.dtype).tiny)
    return RayRendering(total[:, :3], opacity, depth, weights)


@torch.no_grad()
def sample_rays(
    rays_o: Float[Tensor, "rays 3"],
    rays_d: Float[Tensor, "rays 3"],
    radius: float,
    num_samples: int,
    occupied: Occupied | None = None,
    generator: torch.Generator | None = None,
) -> RaySamples:
    """Cut rays into equal intervals within the cube [-radius, radius]^3 and keep those whose middle is occupied.

    Args:
        rays_d: unit vectors.
        num_samples: intervals along the cube's diagonal, and so the most that a ray can have.
        occupied: tells which positions may hold matter; None keeps them all.
        generator: shifts each ray's intervals by its own random part of one; None starts them where the ray enters.
    """
    t_near, t_far = intersect_cube(rays_o, rays_d, radius)
    step = step_length(radius, num_samples)
    if generator is None:
        shift = torch.full_like(t_near, 0.0)
    else:
        shift = torch.rand(len(rays_o), generator=generator, device=generator.device).to(t_near) - 0.5
    longest = int(((t_far - t_near).amax() / step).clamp(0, num_samples).ceil()) + 1 if len(rays_o) else 0
    steps = torch.arange(longest, device=rays_o.device)
    starts, indices = [t_near[:0]], [steps[:0]]
    for rays in torch.arange(len(rays_o), device=rays_o.device).split(CANDIDATES_PER_CHUNK // (num_samples + 1) + 1):
        near, far = t_near[rays, None], t_far[rays, None]
        t_starts = near + (steps + shift[rays, None]) * step
        t_middles = t_starts + 0.5 * step
        keep = (t_middles > near) & (t_middles < far)
        if occupied is not None:
            positions = torch.addcmul(rays_o[rays, None], t_middles[..., None], rays_d[rays, None])
            keep &= occupied(positions.reshape(-1, 3)).reshape(keep.shape)
        starts.append(t_starts[keep])
        indices.append(rays.repeat_interleave(keep.sum(dim=1)))
    t_starts = torch.cat(starts)
    return RaySamples(t_starts, t_starts + step, torch.cat(indices), len(rays_o))


def step_length(radius: float, num_samples: int) -> float:
    """Return the length of an interval in world units: `num_samples` of them along the cube's diagonal."""
    return 2.0 * math.sqrt(3.0) * radius / num_samples


def intersect_cube(
    rays_o: Float[Tensor, "rays 3"], rays_d: Float[Tensor, "rays 3"], radius: float
) -> tuple[Float[Tensor, " rays"], Float[Tensor, " rays"]]:
    """Return where rays enter and leave [-radius, radius]^3, not behind the origin; leaving first means a miss."""
    # A component of zero gives infinities of the right sign, or 0/0 on the very face, which counts as no bound.
    first, second = (-radius - rays_o) / rays_d, (radius - rays_o) / rays_d
    t_near = torch.minimum(first, second).nan_to_num(nan=-math.inf).amax(dim=-1).clamp_min(0.0)
    t_far = torch.maximum(first, second).nan_to_num(nan=math.inf).amin(dim=-1)
    return t_near, t_far


def render_weights(sigmas: Float[Tensor, " samples"], samples: RaySamples) -> Float[Tensor, " samples"]:
    """Return each interval's share in its ray: `trans * alpha` (NeRF, Eq. 3)."""
    depths = sigmas * (samples.t_ends - samples.t_starts)
    return torch.exp(-_sum_before(depths, samples)) * -torch.expm1(-depths)


def sum_along_rays(values: Float[Tensor, "samples channels"], samples: RaySamples) -> Float[Tensor, "rays channels"]:
    """Add up each ray's values; a ray without samples gets zero."""
    # Unlike index_add, which is atomic on a GPU and slow on a CPU, this adds in the order of the samples.
    return torch.segment_reduce(values, "sum", lengths=_num_samples(samples), axis=0, unsafe=True, initial=0)


def _num_samples(samples: RaySamples) -> Int[Tensor, " rays"]:
    return torch.bincount(samples.ray_indices, minlength=samples.num_rays)


def _sum_before(values: Float[Tensor, " samples"], samples: RaySamples) -> Float[Tensor, " samples"]:
    """Return the sum of the ray's values before each sample."""
    # One row per ray, since a cumulative sum over all samples would lose a ray's digits to the rays before it; and each
    # row starts with a zero, since taking a sample's own value off again would lose those before an opaque one.
    if len(samples) == 0:
        return values
    counts = _num_samples(samples)
    firsts = counts.cumsum(0) - counts
    width = int(counts.max()) + 1
    ranks = torch.arange(len(samples), device=values.device) - firsts[samples.ray_indices]
    slots = samples.ray_indices * width + ranks
    rows = values.new_zeros(samples.num_rays * width).index_copy(0, slots + 1, values)
    return rows.reshape(samples.num_rays, width).cumsum(dim=1).reshape(-1).index_select(0, slots)
