"""Laws of ReDream in the real loop: the warm-up with retrieved assets, and the delta regulariser."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from redream.cameras import Camera
from redream.distill.asset_velocity import asset_energy
from redream.distill.particle import Particle
from redream.field.occupancy import visual_hull
from redream.images import to_images
from redream.render.mesh import AssetViews
from tests.redream.distill.closed_forms import CONFIG, FIELD, GaussianPrior, Trained, asset, latents, paint, train

REDREAM = replace(CONFIG, method="redream")
WARM = replace(REDREAM, warm_up_steps=10, num_steps=20, lambda_ret_rgb=1e4, lambda_ret_opacity=300.0)
STILL = {"lr_encoding": 0.0, "lr_mlp": 0.0, "lr_variational": 0.0}


def is_from(camera: Camera, views: AssetViews) -> bool:
    """Tell whether every camera is one of the asset's."""
    same = (camera.c2w[:, None] == views.camera.c2w[None]).flatten(2).all(dim=-1)
    return bool(same.any(dim=1).all())


def tinted(views: AssetViews, color: tuple[float, float, float]) -> AssetViews:
    rendering = views.rendering
    return AssetViews(replace(rendering, rgb=rendering.opacity * torch.tensor(color)), views.camera)


@pytest.fixture(scope="module")
def warm() -> Trained:
    return train(WARM, 14, [asset(5, size=16)])


def test_warm_up_looks_from_the_assets_cameras_and_later_steps_do_not(warm: Trained) -> None:
    views = asset(5, size=16)
    assert [is_from(camera, views) for camera, _ in warm.renders] == [True] * 10 + [False] * 4
    assert len({float(camera.c2w[0, 0, 0]) for camera, _ in warm.renders[:10]}) > 4  # not always the same
    assert ["asset" in step.losses for step in warm.steps] == [True] * 10 + [False] * 4


def test_the_assets_pull_is_the_energy_before_the_steps_own_background(warm: Trained) -> None:
    views = asset(5, size=16)
    greys = [images[:, :1, :1, :1].permute(0, 2, 3, 1) for images in warm.prior.images[:20:2]]
    for step, grey, (camera, rendering) in zip(warm.steps[:10], greys, warm.renders, strict=False):
        chosen = [int((views.camera.c2w == c2w).flatten(1).all(dim=1).nonzero()[0]) for c2w in camera.c2w]
        theirs = views.rendering[torch.tensor(chosen)]
        halved = [
            torch.nn.functional.interpolate(to_images(value), (8, 8), mode="bilinear", antialias=True)
            for value in (theirs.rgb, theirs.opacity, theirs.depth)
        ]
        small = type(theirs)(*(value.permute(0, 2, 3, 1) for value in halved))
        energy = asset_energy(rendering, small, grey, WARM.lambda_ret_rgb, WARM.lambda_ret_opacity)
        assert step.losses["asset"] == pytest.approx(float(energy), rel=1e-3)


def test_a_variational_network_in_warm_up_learns_the_asset_as_well(warm: Trained) -> None:
    # In warm-up every step encodes two batches: the particle's images, then the asset's before the same background.
    taught = warm.prior.taught()
    assert [len(call.t) for call in taught] == [6] * 10 + [3] * 4
    for number, call in enumerate(taught[:10]):
        particle, theirs = warm.prior.images[2 * number : 2 * number + 2]
        assert torch.equal(particle[:, :, 0, 0], theirs[:, :, 0, 0])
        a = warm.prior.alphas_cumprod[call.t][:, None, None, None]
        eps = (call.x_t - a.sqrt() * latents(torch.cat([particle, theirs]))) / (1 - a).sqrt()
        assert eps.abs().max() < 5 and len(eps.unique()) == eps.numel()
        if call.camera is not None:
            camera = warm.renders[number][0]
            assert torch.equal(call.camera.c2w, torch.cat([camera.c2w] * 2))
            assert torch.equal(call.camera.fovy_deg, torch.cat([camera.fovy_deg] * 2))
    blind = train(replace(WARM, variational_sees_assets=False), 3, [asset(5)])
    assert [len(call.t) for call in blind.prior.taught()] == [3] * 3


def test_the_prior_is_asked_with_the_same_guidance_as_vsd(warm: Trained) -> None:
    assert {call.scale for call in warm.prior.asked()} == {REDREAM.guidance_scale}


def test_without_initialisation_there_is_no_warm_up_and_no_hull() -> None:
    run = train(replace(WARM, use_initialisation=False), 3, [asset(5)])
    assert not any("asset" in step.losses for step in run.steps)
    assert not any(is_from(camera, asset(5)) for camera, _ in run.renders)
    assert run.state.particles[0].occupancy.is_occupied.all()


def test_the_first_occupancy_is_the_hull_of_the_particles_own_asset() -> None:
    field, small = replace(FIELD, occupancy_resolution=8), replace(FIELD, radius=0.1)
    particle, camera = Particle(small, -1, torch.Generator().manual_seed(0)), asset(5).camera
    assets = [asset(5), AssetViews(particle.render(camera, small), camera)]
    run = train(replace(WARM, num_particles=2), 0, assets, field=field)
    for particle in run.state.particles:
        views = assets[int(particle.asset_index)]
        hull = visual_hull(views.rendering.opacity, views.camera, field.radius, field.occupancy_resolution)
        assert torch.equal(particle.occupancy.is_occupied, hull)
    shares = [particle.occupancy.is_occupied.float().mean() for particle in run.state.particles]
    assert shares[0] != shares[1]


def test_assets_are_drawn_without_repeats_while_there_are_any_left() -> None:
    assets = [asset(number, num_views=2) for number in range(3)]
    orders = set()
    for seed in range(6):
        run = train(replace(WARM, num_particles=5), 0, assets, seed=seed)
        drawn = [int(particle.asset_index) for particle in run.state.particles]
        assert sorted(drawn[:3]) == [0, 1, 2] and drawn[3] != drawn[4]
        orders.add(tuple(drawn))
    assert len(orders) > 2


def views_of_the_particle(plain_seed: int, contrast: float) -> AssetViews:
    """Return views of what `train(..., contrast=0.0)` starts from, or of another colour at the same places."""
    particle = Particle(FIELD, -1, torch.Generator().manual_seed(plain_seed))
    paint(particle, plain_seed, contrast)
    camera = asset(1).camera
    with torch.no_grad():
        return AssetViews(particle.render(camera, FIELD), camera)


DELTA = replace(REDREAM, delta_every=1, **STILL)


def test_the_regularised_gradient_vanishes_where_the_render_is_the_asset() -> None:
    alike = views_of_the_particle(0, 0.0)
    plain = train(replace(DELTA, delta_every=0), 6, [alike], contrast=0.0)
    assert min(step.losses["score"] for step in plain.steps) > 1e-4
    run = train(DELTA, 6, [alike], contrast=0.0)
    assert max(step.losses["score"] for step in run.steps) < 1e-8
    different = train(DELTA, 6, [views_of_the_particle(0, 3.0)], contrast=0.0)
    assert min(step.losses["score"] for step in different.steps) > 1e-8


@pytest.mark.parametrize("delta_weight", [1.0, 0.3])
def test_the_regularised_gradient_is_what_the_formula_says(delta_weight: float) -> None:
    run = train(replace(DELTA, delta_weight=delta_weight), 4, [asset(5)])
    asked, prior = run.prior.asked(), GaussianPrior()
    for number, step in enumerate(run.steps):
        of_particle, of_asset = asked[2 * number : 2 * number + 2]
        ours, theirs = (latents(images) for images in run.prior.images[2 * number : 2 * number + 2])
        a = prior.alphas_cumprod[of_particle.t][:, None, None, None]
        # The same timesteps, noise and words in both.
        assert torch.equal(of_particle.t, of_asset.t) and of_particle.words == of_asset.words
        torch.testing.assert_close(of_particle.x_t - of_asset.x_t, a.sqrt() * (ours - theirs), atol=1e-5, rtol=1e-4)

        def score(x_t: torch.Tensor, t: torch.Tensor = of_particle.t) -> torch.Tensor:
            return prior.eps(x_t, t, prior.mean, prior.std) - prior.predict_eps_variational(x_t, t, x_t, None).detach()

        gradient = (1 - a) * (score(of_particle.x_t) - delta_weight * score(of_asset.x_t))
        assert step.losses["score"] == pytest.approx(0.5 * float(gradient.square().sum()) / 3, rel=1e-3)


def test_every_third_step_is_regularised_from_the_assets_cameras_also_behind_the_warm_up() -> None:
    views = asset(5)
    run = train(replace(WARM, warm_up_steps=2, delta_every=3), 9, [views])
    asked = [len(run.prior.asked()), len(run.prior.compared())]
    assert asked == [12, 12]  # steps 0, 3 and 6 ask twice
    assert [is_from(camera, views) for camera, _ in run.renders] == [True, True, False] + [True, False, False] * 2


def test_other_methods_and_particles_without_assets_are_not_regularised() -> None:
    for method in ("vsd", "sds"):
        assert len(train(replace(DELTA, method=method), 2, [asset(5)]).prior.asked()) == 2
    assert len(train(DELTA, 2).prior.asked()) == 2


def test_warm_up_ends_at_the_asset_of_each_particle() -> None:
    colors = ((0.9, 0.2, 0.4), (0.2, 0.7, 0.9))
    assets = [tinted(asset(5), colors[0]), tinted(asset(6), colors[1])]
    config = replace(WARM, num_particles=2, warm_up_steps=80, num_steps=80, lr_encoding=0.2, lr_mlp=0.05)
    run = train(config, 80, assets)
    drawn = [int(particle.asset_index) for particle in run.state.particles]
    assert sorted(drawn) == [0, 1]
    for particle, index in zip(run.state.particles, drawn, strict=True):
        middle = particle.render(assets[1 - index].camera, FIELD).rgb[:, 3:5, 3:5].mean(dim=(0, 1, 2))
        assert middle.tolist() == pytest.approx(colors[index], abs=0.1)


def test_the_networks_mean_in_warm_up_is_between_render_and_asset() -> None:
    # With everything else at rest, the mean that it learns is that of both.
    config = replace(WARM, warm_up_steps=60, num_steps=60, lr_encoding=0.0, lr_mlp=0.0, lr_variational=0.05)
    run = train(config, 60, [asset(5)])
    ours, theirs = (torch.cat([latents(i) for i in run.prior.images[k::2]]).mean(dim=(0, 2, 3)) for k in (0, 1))
    assert (ours - theirs).abs().max() > 0.2
    expected = 0.5 * (ours + theirs)
    assert run.prior.variational_mean.flatten().tolist() == pytest.approx(expected.tolist(), abs=0.1)
