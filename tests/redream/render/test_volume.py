import math

import pytest
import torch
from torch import Tensor

from redream.cameras import camera_rays, orbit
from redream.field.radiance_field import RadianceField
from redream.presets import smoke
from redream.render.volume import (
    RaySamples,
    intersect_cube,
    render_camera,
    render_rays,
    render_weights,
    sample_rays,
    step_length,
    sum_along_rays,
)

RADIUS = 0.5


def random_rays(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rays from a sphere of radius 2 towards a point near the origin; some miss the cube."""
    rays_o = 2 * torch.nn.functional.normalize(torch.randn(num, 3, generator=generator), dim=-1)
    rays_d = torch.nn.functional.normalize(0.5 * torch.randn(num, 3, generator=generator) - rays_o, dim=-1)
    return rays_o, rays_d


def random_samples(num_rays: int, generator: torch.Generator) -> RaySamples:
    """Contiguous intervals of random lengths; some rays have none."""
    counts = torch.randint(0, 9, (num_rays,), generator=generator)
    counts[::5] = 0
    starts, ends = [], []
    for count in counts.tolist():
        edges = 1 + torch.rand(count + 1, generator=generator).cumsum(0) * 0.1
        starts.append(edges[:-1])
        ends.append(edges[1:])
    return packed(torch.cat(starts), torch.cat(ends), torch.arange(num_rays).repeat_interleave(counts), num_rays)


def packed(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, num_rays: int) -> RaySamples:
    num_per_ray = torch.bincount(ray_indices, minlength=num_rays)
    return RaySamples(t_starts, t_ends, ray_indices, num_per_ray, int(num_per_ray.max()))


def fog(sigma: float):
    def density_and_color(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(positions),), sigma), torch.sigmoid(4 * positions)

    return density_and_color


def test_constant_density_gives_the_closed_form_transmittance(generator):
    rays_o, rays_d = random_rays(200, generator)
    t_near, t_far = intersect_cube(rays_o, rays_d, RADIUS)
    chord = (t_far - t_near).clamp_min(0)
    num_samples = 200
    step = step_length(RADIUS, num_samples)
    rendering = render_rays(fog(3.0), rays_o, rays_d, sample_rays(rays_o, rays_d, RADIUS, num_samples))
    # The intervals cover the chord up to half of one.
    shortest, longest = 1 - torch.exp(-3.0 * (chord - step)), 1 - torch.exp(-3.0 * (chord + step))
    assert (rendering.opacity[:, 0] >= shortest - 1e-5).all() and (rendering.opacity[:, 0] <= longest + 1e-5).all()
    assert (chord == 0).any() and (chord > 0.5).any()


def test_weights_are_transmittance_times_alpha_ray_by_ray(generator):
    samples = random_samples(40, generator)
    sigmas = 30 * torch.rand(len(samples), generator=generator)
    expected = []
    for ray in range(40):
        trans = 1.0
        for i in (samples.ray_indices == ray).nonzero()[:, 0].tolist():
            alpha = 1 - math.exp(-float(sigmas[i]) * float(samples.t_ends[i] - samples.t_starts[i]))
            expected.append(trans * alpha)
            trans *= 1 - alpha
    torch.testing.assert_close(render_weights(sigmas, samples), torch.tensor(expected), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("sigma", [1e5, 1e9, 1e30])
def test_an_opaque_interval_gets_all_the_light_that_reaches_it(sigma):
    edges = torch.arange(5.0)
    samples = packed(edges[:-1], edges[1:], torch.zeros(4, dtype=torch.long), 1)
    weights = render_weights(torch.tensor([0.5, 0.25, sigma, 1.0]), samples)
    expected = [1 - math.exp(-0.5), math.exp(-0.5) - math.exp(-0.75), math.exp(-0.75), 0.0]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_weights_sum_to_the_opacity_and_one_minus_the_last_transmittance(generator):
    samples = random_samples(50, generator)
    sigmas = 50 * torch.rand(len(samples), generator=generator)
    rays_o, rays_d = random_rays(50, generator)
    rendering = render_rays(lambda p, d: (sigmas, torch.ones_like(p)), rays_o, rays_d, samples)
    depths = sum_along_rays((sigmas * (samples.t_ends - samples.t_starts))[:, None], samples)
    torch.testing.assert_close(sum_along_rays(rendering.weights[:, None], samples), rendering.opacity)
    torch.testing.assert_close(rendering.opacity, 1 - torch.exp(-depths), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rendering.rgb, rendering.opacity.expand(-1, 3))


def test_splitting_an_interval_does_not_change_the_compositing(generator):
    samples = random_samples(50, generator)
    sigmas = 20 * torch.rand(len(samples), generator=generator)
    rgb = torch.rand(len(samples), 3, generator=generator)
    middles = torch.lerp(samples.t_starts, samples.t_ends, torch.rand(len(samples), generator=generator))
    halves = packed(
        torch.stack([samples.t_starts, middles], dim=1).flatten(),
        torch.stack([middles, samples.t_ends], dim=1).flatten(),
        samples.ray_indices.repeat_interleave(2),
        len(samples.num_per_ray),
    )
    whole = sum_along_rays(render_weights(sigmas, samples)[:, None] * rgb, samples)
    weights = render_weights(sigmas.repeat_interleave(2), halves)
    split = sum_along_rays(weights[:, None] * rgb.repeat_interleave(2, dim=0), halves)
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=1e-4)


def test_an_empty_ray_renders_to_zero_with_finite_gradients(generator):
    rays_o = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    rays_d = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    samples = sample_rays(rays_o, rays_d, RADIUS, 32)
    assert set(samples.ray_indices.tolist()) == {1}
    sigmas = torch.zeros(len(samples), requires_grad=True)  # nothing is hit on the ray that has samples, either
    rendering = render_rays(lambda p, d: (sigmas, torch.ones_like(p)), rays_o, rays_d, samples)
    assert not rendering.rgb.any() and not rendering.opacity.any() and not rendering.depth.any()
    (rendering.rgb.sum() + rendering.opacity.sum()).backward()
    assert sigmas.grad is not None and sigmas.grad.isfinite().all() and (sigmas.grad > 0).all()


def test_no_samples_at_all_render_to_zero():
    rays_o, rays_d = torch.full((7, 3), 2.0), torch.eye(3)[:1].expand(7, 3)
    samples = sample_rays(rays_o, rays_d, RADIUS, 32)
    rendering = render_rays(fog(1.0), rays_o, rays_d, samples)
    assert len(samples) == 0 and rendering.rgb.shape == (7, 3) and not rendering.opacity.any()


@pytest.mark.parametrize("sigma", [0.0, 1e-8, 1e8, 1e30])
def test_extreme_densities_give_finite_values_and_gradients(generator, sigma):
    rays_o, rays_d = random_rays(20, generator)
    samples = sample_rays(rays_o, rays_d, RADIUS, 32)
    sigmas = torch.full((len(samples),), sigma, requires_grad=True)
    rendering = render_rays(lambda p, d: (sigmas, torch.ones_like(p)), rays_o, rays_d, samples)
    (rendering.rgb.sum() + rendering.opacity.sum() + rendering.depth.sum()).backward()
    assert sigmas.grad is not None and sigmas.grad.isfinite().all()
    assert rendering.opacity.isfinite().all() and rendering.depth.isfinite().all()


def test_depth_of_a_wall_is_its_distance_and_not_scaled_by_opacity():
    rays_o, rays_d = torch.tensor([[2.0, 0.1, 0.2]]), torch.tensor([[-1.0, 0.0, 0.0]])
    samples = sample_rays(rays_o, rays_d, RADIUS, 512)
    for sigma in (1e5, 10.0):  # opaque, and a thin translucent sheet

        def wall(positions, directions, sigma=sigma):
            return sigma * (positions[:, 0].abs() < 0.01).float(), torch.ones_like(positions)

        depth = render_rays(wall, rays_o, rays_d, samples).depth
        assert depth.item() == pytest.approx(2.0, abs=0.012)


def test_a_ray_keeps_its_digits_among_opaque_neighbours(generator):
    rays_o, rays_d = random_rays(30, generator)
    samples = sample_rays(rays_o, rays_d, RADIUS, 64)
    sigmas = 5 * torch.rand(len(samples), generator=generator)
    is_faint = samples.ray_indices % 2 == 1
    alone = packed(samples.t_starts[is_faint], samples.t_ends[is_faint], samples.ray_indices[is_faint], 30)
    # A cumulative sum over the whole batch would lose the faint rays' optical depths to those before them.
    among_opaque = render_weights(torch.where(is_faint, sigmas, 1e9), samples)
    torch.testing.assert_close(among_opaque[is_faint], render_weights(sigmas[is_faint], alone), atol=1e-7, rtol=1e-5)


def test_samples_are_equal_intervals_inside_the_cube_near_to_far(generator):
    rays_o, rays_d = random_rays(100, generator)
    samples = sample_rays(rays_o, rays_d, RADIUS, 48, generator=generator)
    step = step_length(RADIUS, 48)
    torch.testing.assert_close(samples.t_ends - samples.t_starts, torch.full_like(samples.t_ends, step))
    middles = 0.5 * (samples.t_starts + samples.t_ends)
    positions = rays_o[samples.ray_indices] + middles[:, None] * rays_d[samples.ray_indices]
    assert positions.abs().max() <= RADIUS + 1e-5
    same_ray = samples.ray_indices[1:] == samples.ray_indices[:-1]
    torch.testing.assert_close(samples.t_starts[1:][same_ray], samples.t_ends[:-1][same_ray])
    assert (samples.ray_indices[1:] >= samples.ray_indices[:-1]).all()
    t_near, t_far = intersect_cube(rays_o, rays_d, RADIUS)
    counts = torch.bincount(samples.ray_indices, minlength=100)
    assert ((counts - (t_far - t_near).clamp_min(0) / step).abs() <= 1).all() and counts.max() <= 49


def test_rays_that_start_inside_or_run_along_an_axis_are_cut_at_the_faces():
    rays_o = torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.0, 2.0], [0.5, 0.0, 2.0], [0.6, 0.0, 2.0]])
    rays_d = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, 0.0, -1.0]])
    t_near, t_far = intersect_cube(rays_o, rays_d, RADIUS)
    torch.testing.assert_close(t_near[:3], torch.tensor([0.0, 1.5, 1.5]))
    torch.testing.assert_close(t_far[:3], torch.tensor([0.4, 2.5, 2.5]))
    assert t_near[3] > t_far[3]


def test_jitter_is_the_generators_and_shifts_each_ray_by_less_than_an_interval(generator):
    rays_o, rays_d = random_rays(50, generator)

    def starts(seed: int) -> Tensor:
        jitter = torch.Generator().manual_seed(seed)
        return sample_rays(rays_o, rays_d, RADIUS, 32, generator=jitter).t_starts

    assert torch.equal(starts(1), starts(1)) and not torch.equal(starts(1)[:20], starts(2)[:20])


def test_jittered_renders_average_to_the_finely_sampled_one(generator):
    camera = orbit(1, 20.0, 1.5, 45.0, 8)

    def ball(positions, directions):
        return 5.0 * (positions.norm(dim=-1) < 0.3).float(), torch.sigmoid(4 * positions)

    fine = render_camera(ball, camera, RADIUS, 4096)
    coarse = torch.stack([render_camera(ball, camera, RADIUS, 64, generator=generator).rgb for _ in range(50)])
    torch.testing.assert_close(coarse.mean(0), fine.rgb, atol=0.02, rtol=0)


def test_occupied_drops_samples_and_keeps_the_phase_of_the_rest(generator):
    rays_o, rays_d = random_rays(50, generator)
    whole = sample_rays(rays_o, rays_d, RADIUS, 32)
    above = sample_rays(rays_o, rays_d, RADIUS, 32, occupied=lambda positions: positions[:, 2] > 0)
    middles = 0.5 * (whole.t_starts + whole.t_ends)
    keep = (rays_o[whole.ray_indices] + middles[:, None] * rays_d[whole.ray_indices])[:, 2] > 0
    assert torch.equal(above.t_starts, whole.t_starts[keep])
    assert torch.equal(above.ray_indices, whole.ray_indices[keep])


def test_a_camera_is_its_rays_and_chunks_do_not_show(generator):
    camera = orbit(2, 15.0, 1.5, 50.0, 12)
    whole = render_camera(fog(4.0), camera, RADIUS, 32)
    chunked = render_camera(fog(4.0), camera, RADIUS, 32, rays_per_chunk=37)
    rays = camera_rays(camera[1])
    rays_o, rays_d = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
    alone = render_rays(fog(4.0), rays_o, rays_d, sample_rays(rays_o, rays_d, RADIUS, 32))
    torch.testing.assert_close(chunked.rgb, whole.rgb)
    torch.testing.assert_close(chunked.depth, whole.depth)
    torch.testing.assert_close(alone.rgb.reshape(12, 12, 3), whole.rgb[1])
    assert whole.opacity.shape == whole.depth.shape == (2, 12, 12, 1)


def test_samples_split_into_whole_rays_within_the_limit_and_none_is_lost(generator):
    rays_o, rays_d = random_rays(300, generator)
    samples = sample_rays(rays_o, rays_d, RADIUS, 40, occupied=lambda positions: positions[:, 0] > 0.1)
    chunks = samples.split(100)
    assert len(chunks) > len(samples) / 100 and all(0 <= len(chunk) <= 100 for _, chunk in chunks)
    assert [rays.start for rays, _ in chunks[1:]] == [rays.stop for rays, _ in chunks[:-1]]
    assert chunks[0][0].start == 0 and chunks[-1][0].stop == 300
    assert torch.equal(torch.cat([chunk.t_starts for _, chunk in chunks]), samples.t_starts)
    assert torch.equal(torch.cat([chunk.ray_indices + rays.start for rays, chunk in chunks]), samples.ray_indices)
    assert all(
        torch.equal(torch.bincount(c.ray_indices, minlength=len(c.num_per_ray)), c.num_per_ray) for _, c in chunks
    )
    assert len(samples.split(10**6)) == 1


def test_a_render_in_chunks_has_the_gradients_of_the_whole_and_is_computed_again_for_them():
    config, camera = smoke().field, orbit(2, 15.0, 1.5, 45.0, 24)

    def run(samples_per_chunk: int) -> tuple[Tensor, Tensor, int]:
        field = RadianceField(config, torch.Generator().manual_seed(0))
        largest = 0

        def density_and_color(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal largest
            largest = max(largest, len(positions))
            return field.density_and_color(positions, directions)

        generator = torch.Generator().manual_seed(1)
        rendering = render_camera(density_and_color, camera, config.radius, 32, None, generator, samples_per_chunk)
        (rendering.rgb.square().sum() + rendering.opacity.sum()).backward()
        assert field.encoding.table.grad is not None
        return rendering.rgb.detach(), field.encoding.table.grad, largest

    (rgb, grad, most), (rgb_of_whole, grad_of_whole, num_samples) = run(500), run(10**6)
    assert most <= 500 < num_samples
    torch.testing.assert_close(rgb, rgb_of_whole)
    torch.testing.assert_close(grad, grad_of_whole, atol=1e-5 * float(grad_of_whole.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_rendering_a_field_is_bit_identical_when_repeated(num_threads):
    config = smoke().field

    def run() -> list[Tensor]:
        field = RadianceField(config, torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        rendering = render_camera(
            field.density_and_color, orbit(2, 15.0, 1.5, 45.0, 32), config.radius, 32, generator=generator
        )
        (rendering.rgb.square().sum() + rendering.opacity.sum()).backward()
        grads = [parameter.grad for parameter in (field.encoding.table, *field.network.parameters())]
        assert all(grad is not None for grad in grads)
        return [rendering.rgb.detach(), *(grad for grad in grads if grad is not None)]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        first, second = run(), run()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, again) for value, again in zip(first, second, strict=True))


def test_a_field_is_asked_at_the_middle_of_every_interval():
    # Along the cube's diagonal, whose middle is the origin; thin fog weighs all of it alike.
    direction = torch.full((1, 3), 1 / math.sqrt(3))
    rays_o = -2.0 * direction
    samples = sample_rays(rays_o, direction, RADIUS, 16)
    assert len(samples) == 16
    asked = []

    def thin(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        asked.append((positions, directions))
        return torch.full((len(positions),), 1e-3), positions + 1.0

    rendering = render_rays(thin, rays_o, direction, samples)
    torch.testing.assert_close(rendering.rgb / rendering.opacity, torch.ones(1, 3), atol=2e-3, rtol=0)
    torch.testing.assert_close(rendering.depth, torch.full((1, 1), 2.0), atol=2e-3, rtol=0)
    ((positions, directions),) = asked
    middles = 0.5 * (samples.t_starts + samples.t_ends)
    torch.testing.assert_close(positions, rays_o + middles[:, None] * direction)
    torch.testing.assert_close(directions, direction.expand(16, -1))
