"""Volume rendering of any field: sample rays, weigh the samples, composite them.

The quadrature of Max (1995) as in NeRF (Mildenhall et al. 2020, Eq. 3) and nerfacc: over an interval of length `dt`,
`alpha = 1 - exp(-sigma dt)`, `trans = exp(-sum of sigma dt before it)`, `weight = trans * alpha`, and a pixel's rgb is
the weighted sum of colours, premultiplied by its opacity. Samples are packed: only those kept are stored, one after
the other, ray by ray, and summed in that order: a ray does not feel the other rays of its batch, and a repeated call
gives the same bits. The field enters as a callable.

A field's activations take a kilobyte per sample, so a view with more than `samples_per_chunk` samples is rendered
in chunks of rays. Where gradients are wanted, each chunk keeps only its rays and is computed again in the backward pass
(Chen et al. 2016): memory then depends on the chunk and hardly on the view. Sampling waits for a GPU twice per call,
however many rays there are, and splitting once more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from redream.cameras import Camera, camera_rays
from redream.devices import send
from redream.images import Rendering

DensityAndColor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Occupied = Callable[[Tensor], Tensor]

CANDIDATES_PER_CHUNK = 2**22  # that are tested for occupancy at once; bounds the memory of sampling
MASK_BYTES = 2**28  # of which candidates are kept, a byte each
GROUPS_PER_CHUNK = 8  # bounds the rays of a chunk, for rays without samples take memory as well


def render_camera(
    density_and_color: DensityAndColor,
    camera: Camera,
    radius: float,
    num_samples: int,
    occupied: Occupied | None = None,
    generator: torch.Generator | None = None,
    samples_per_chunk: int = 2**20,
    rays_per_chunk: int = 2**18,
    emptiness_scale: float | None = None,
) -> Rendering:
    """Render every pixel of a batch of cameras; other arguments are those of `sample_rays` and `render_rays`.

    Args:
        samples_per_chunk: the most samples at which the field is evaluated at once.
        rays_per_chunk: the most rays that are sampled at once.
        emptiness_scale: also return each ray's mean of log(1 + scale weight) over `num_samples` samples (SJC).
    """
    rays_per_chunk = max(1, min(rays_per_chunk, MASK_BYTES // num_samples))
    rays = camera_rays(camera)
    rays_o, rays_d = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
    parts: list[tuple[Tensor, ...]] = []
    for origins, directions in zip(rays_o.split(rays_per_chunk), rays_d.split(rays_per_chunk), strict=True):
        samples = sample_rays(origins, directions, radius, num_samples, occupied, generator)
        chunks = samples.split(samples_per_chunk)
        render = partial(_render_pixels, density_and_color, emptiness_scale)
        if len(chunks) > 1:
            # Nothing is drawn while a field is evaluated, so no generator's state needs to be kept.
            render = partial(checkpoint, render, use_reentrant=False, preserve_rng_state=False)
        parts += [render(origins[rays], directions[rays], chunk) for rays, chunk in chunks]
    shape = (len(camera), camera.height, camera.width, -1)
    rgb, opacity, depth, *emptiness = (torch.cat(values).reshape(shape) for values in zip(*parts, strict=True))
    return Rendering(rgb, opacity, depth, emptiness[0] / num_samples if emptiness else None)


def _render_pixels(
    density_and_color: DensityAndColor,
    emptiness_scale: float | None,
    rays_o: Tensor,
    rays_d: Tensor,
    samples: RaySamples,
) -> tuple[Tensor, ...]:
    """Render rays and let go of what is as long as the samples."""
    rendering = render_rays(density_and_color, rays_o, rays_d, samples)
    if emptiness_scale is None:
        return rendering.rgb, rendering.opacity, rendering.depth
    spread = sum_along_rays(torch.log1p(emptiness_scale * rendering.weights)[:, None], samples)
    return rendering.rgb, rendering.opacity, rendering.depth, spread


@dataclass(frozen=True, eq=False)
class RaySamples:
    """Intervals along rays, packed ray by ray, near to far."""

    t_starts: Float[Tensor, " samples"]
    t_ends: Float[Tensor, " samples"]
    ray_indices: Int[Tensor, " samples"]
    num_per_ray: Int[Tensor, " rays"]
    most_per_ray: int  # of `num_per_ray`; known to the CPU, which need not ask the GPU

    def __len__(self) -> int:
        return len(self.t_starts)

    def split(self, max_samples: int) -> list[tuple[slice, RaySamples]]:
        """Cut into runs of whole rays with at most `max_samples` samples, or one ray; return each with its rays."""
        num_rays, group = len(self.num_per_ray), max(1, max_samples // max(1, self.most_per_ray))
        if len(self) <= max_samples and num_rays <= GROUPS_PER_CHUNK * group:
            return [(slice(0, num_rays), self)]
        # A group of rays fits whatever it holds; a chunk is as many groups as fit.
        ends = [0, *self.num_per_ray.cumsum(0)[group - 1 :: group].tolist()]
        if num_rays % group:
            ends.append(len(self))
        bounds = [0]  # in groups
        for i in range(1, len(ends)):
            if ends[i] - ends[bounds[-1]] > max_samples or i - bounds[-1] > GROUPS_PER_CHUNK:
                bounds.append(i - 1)
        bounds.append(len(ends) - 1)
        return [
            self._part(slice(first * group, min(last * group, num_rays)), slice(ends[first], ends[last]))
            for first, last in itertools.pairwise(bounds)
        ]

    def _part(self, rays: slice, samples: slice) -> tuple[slice, RaySamples]:
        indices = self.ray_indices[samples] - rays.start
        starts, ends = self.t_starts[samples], self.t_ends[samples]
        return rays, RaySamples(starts, ends, indices, self.num_per_ray[rays], self.most_per_ray)


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
        jitter = torch.rand(len(rays_o), generator=generator, device=generator.device)
        shift = send(jitter.to(t_near.dtype), t_near.device) - 0.5
    longest = int(((t_far - t_near).amax() / step).clamp(0, num_samples).ceil()) + 1 if len(rays_o) else 1
    steps = torch.arange(longest, device=rays_o.device)
    kept = []
    for rays in torch.arange(len(rays_o), device=rays_o.device).split(CANDIDATES_PER_CHUNK // (num_samples + 1) + 1):
        near, far = t_near[rays, None], t_far[rays, None]
        t_middles = near + (steps + shift[rays, None]) * step + 0.5 * step
        keep = (t_middles > near) & (t_middles < far)
        if occupied is not None:
            positions = torch.addcmul(rays_o[rays, None], t_middles[..., None], rays_d[rays, None])
            keep &= occupied(positions.reshape(-1, 3)).reshape(keep.shape)
        kept.append((rays, keep, keep.sum(dim=1)))
    num_per_ray = torch.cat([counts for *_, counts in kept])
    # Every size in one question, since a question waits for the GPU.
    most = num_per_ray.amax() if len(rays_o) else num_per_ray.sum()
    *sizes, most_per_ray = torch.stack([*(counts.sum() for *_, counts in kept), most]).tolist()
    starts, indices = [], []
    for (rays, keep, _), size in zip(kept, sizes, strict=True):
        places = _true_places(keep, size)
        indices.append(rays[places // longest])
        near, moved = t_near[indices[-1]], shift[indices[-1]]
        starts.append(near + (places % longest + moved) * step)
    t_starts = torch.cat(starts)
    return RaySamples(t_starts, t_starts + step, torch.cat(indices), num_per_ray, most_per_ray)


def _true_places(mask: Bool[Tensor, "rays steps"], size: int) -> Int[Tensor, " samples"]:
    """Return where a flattened mask is true, in order; `size` is how often it is."""
    if size == 0:  # which torch before 2.10 does not survive on a GPU
        return torch.zeros(0, dtype=torch.long, device=mask.device)
    return torch.nonzero_static(mask.flatten(), size=size)[:, 0]


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
    return torch.segment_reduce(values, "sum", lengths=samples.num_per_ray, axis=0, unsafe=True, initial=0)


def _sum_before(values: Float[Tensor, " samples"], samples: RaySamples) -> Float[Tensor, " samples"]:
    """Return the sum of the ray's values before each sample."""
    # One row per ray, since a cumulative sum over all samples would lose a ray's digits to the rays before it; and each
    # row starts with a zero, since taking a sample's own value off again would lose those before an opaque one.
    if len(samples) == 0:
        return values
    num_rays, width = len(samples.num_per_ray), samples.most_per_ray + 1
    firsts = samples.num_per_ray.cumsum(0) - samples.num_per_ray
    ranks = torch.arange(len(samples), device=values.device) - firsts[samples.ray_indices]
    slots = samples.ray_indices * width + ranks
    rows = values.new_zeros(num_rays * width).index_copy(0, slots + 1, values)
    return rows.reshape(num_rays, width).cumsum(dim=1).reshape(-1).index_select(0, slots)
