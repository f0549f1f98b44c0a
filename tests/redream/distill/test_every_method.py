"""Laws of the loop that hold for every method: what the prior is shown and asked, and what a step moves.

A new method is held to them once `Method` names it; its own laws stand in a file of its own, as `test_vsd.py`.
"""

from __future__ import annotations

import copy
import typing
from dataclasses import replace

import pytest
import torch

from redream.cameras import camera_angles, camera_rays
from redream.images import composite, to_images
from redream.method_settings import MethodSettings, SjcConfig
from redream.prior.prompts import VIEW_NAMES, camera_views
from redream.settings import Linear, Method
from tests.redream.distill.closed_forms import CAMERAS, CONFIG, FIELD, UNCOND, Trained, latents, train

METHODS = [name for name in typing.get_args(Method) if name != "mvdream"]  # which has another prior and cameras
FOG = replace(FIELD, density_blob_scale=4.0, density_blob_radius=0.4)  # lets half of the light through


@pytest.fixture(scope="module", params=METHODS)
def trained(request: pytest.FixtureRequest) -> Trained:
    config = replace(
        CONFIG,
        method=request.param,
        min_t=0.1,
        max_t=0.9,
        annealed_max_t=0.5,
        anneal_from_step=20,
        high_resolution_from_step=30,
    )
    return train(config, 40)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


def test_every_view_is_asked_for_by_the_word_of_its_camera(trained: Trained) -> None:
    asked = [call.words for call in trained.prior.asked()]
    assert asked == [camera_views(camera, CAMERAS) for camera, _ in trained.renders]
    assert {word for words in asked for word in words} == set(VIEW_NAMES)


def test_guidance_starts_from_the_empty_prompt(trained: Trained) -> None:
    assert {float(call.uncond) for call in trained.prior.asked() if call.uncond is not None} == {UNCOND}


def test_the_prior_sees_the_render_before_a_grey_of_the_range(trained: Trained) -> None:
    greys = []
    for images, (_, rendering) in zip(trained.prior.images, trained.renders, strict=True):
        grey = images[:, :, :1, :1]  # a corner, which the object never covers
        assert (rendering.opacity[:, 0, 0] == 0).all()
        torch.testing.assert_close(images, to_images(composite(rendering, grey.permute(0, 2, 3, 1))))
        greys.append(grey[..., 0, 0])
    seen = torch.cat(greys)  # [views, 3]
    assert torch.equal(seen, seen[:, :1].expand(-1, 3)) and len(seen[:, 0].unique()) == len(seen)
    assert 0.2 <= seen.min() < 0.22 and 0.58 < seen.max() <= 0.6


def test_latents_are_noised_with_fresh_standard_normal_noise(trained: Trained) -> None:
    noise = []
    for images, call in zip(trained.prior.images, trained.prior.asked(), strict=True):
        a = trained.prior.alphas_cumprod[call.t][:, None, None, None]
        noise.append((call.x_t - a.sqrt() * latents(images)) / (1 - a).sqrt())
    eps = torch.cat(noise)
    assert float(eps.mean()) == pytest.approx(0, abs=0.2) and float(eps.std()) == pytest.approx(1, abs=0.15)
    assert len(eps.unique()) == eps.numel()


def test_timesteps_keep_below_the_annealed_limit_from_its_step_on(trained: Trained) -> None:
    early, late = ([t for step in steps for t in step.t] for steps in (trained.steps[:20], trained.steps[20:]))
    assert 10 <= min(early) < 20 and 80 < max(early) <= 90
    assert 10 <= min(late) < 20 and 40 < max(late) <= 50
    assert trained.steps[19].step == 20  # the step that was number 19 as it started


def test_timesteps_of_the_record_are_those_that_the_prior_was_asked_at(trained: Trained) -> None:
    assert [list(step.t) for step in trained.steps] == [call.t.tolist() for call in trained.prior.asked()]


def test_images_grow_at_the_step_that_was_set(trained: Trained) -> None:
    assert [images.shape[-1] for images in trained.prior.images] == [8] * 30 + [12] * 10
    assert {len(images) for images in trained.prior.images} == {CONFIG.views_per_step}


def test_cameras_are_new_in_every_step_and_keep_their_ranges(trained: Trained) -> None:
    eyes = torch.cat([camera.c2w[:, :3, 3] for camera, _ in trained.renders])
    assert len(eyes.unique(dim=0)) == len(eyes)
    for camera, _ in trained.renders:
        _, elevation, distance = camera_angles(camera)
        for values, (low, high) in (
            (elevation, CAMERAS.elevation_deg),
            (distance, CAMERAS.camera_distance),
            (camera.fovy_deg, CAMERAS.fovy_deg),
        ):
            assert (values > low - 1e-3).all() and (values < high + 1e-3).all()


def test_samples_along_rays_are_jittered_in_training(method: Method) -> None:
    still = replace(CONFIG, method=method, lr_encoding=0.0, lr_mlp=0.0)
    run = train(still, 1, field=FOG)
    ((camera, rendering),) = run.renders
    assert not torch.allclose(rendering.opacity, run.state.particles[0].render(camera, FOG).opacity, atol=1e-4)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_learned_background_shows_unless_a_random_colour_does(method: Method, probability: float) -> None:
    config = replace(CONFIG, method=method, background="learned", random_background_probability=probability)
    run = train(replace(config, lr_background=0.0), 12)
    num_learned = 0
    for images, (camera, _) in zip(run.prior.images, run.renders, strict=True):
        corner = images[:, :, 0, 0]
        background = run.state.particles[0].field.background(camera_rays(camera).directions[:, 0, 0])
        is_learned = torch.allclose(corner, background, atol=1e-6)
        num_learned += is_learned
        if not is_learned:
            assert torch.equal(corner, images[:, :, 0, -1])  # one colour for the whole view
            assert len(corner.unique()) == corner.numel()
    assert (num_learned == 0, num_learned == 12) == (probability == 1.0, probability == 0.0)


@pytest.mark.parametrize("still", ["encoding", "mlp", "background"])
def test_each_part_of_the_field_learns_at_its_own_rate(method: Method, still: str) -> None:
    config = replace(CONFIG, method=method, background="learned", random_background_probability=0.0)
    states = []
    config = replace(config, **{f"lr_{still}": 0.0})
    train(config, 1, field=FOG, watch=lambda state: states.append(copy.deepcopy(state.particles[0].state_dict())))
    parts = {"encoding": "field.encoding.", "mlp": "field.network.", "background": "field.background_network."}
    for part, prefix in parts.items():
        before, after = ([v for name, v in state.items() if name.startswith(prefix)] for state in states)
        has_moved = any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
        assert has_moved == (part != still), part


def test_a_step_moves_one_particle_and_all_get_their_turn(method: Method) -> None:
    tables: list[list[torch.Tensor]] = []
    run = train(
        replace(CONFIG, method=method, num_particles=3),
        9,
        watch=lambda state: tables.append([p.field.encoding.table.detach().clone() for p in state.particles]),
    )
    for step, before, after in zip(run.steps, tables, tables[1:], strict=False):
        assert [i for i in range(3) if not torch.equal(before[i], after[i])] == [step.particle]
    assert {step.particle for step in run.steps} == {0, 1, 2}


def test_the_gradients_norm_is_that_of_all_the_fields_gradients(method: Method) -> None:
    run = train(replace(CONFIG, method=method), 1)
    grads = [p.grad.flatten() for p in run.state.particles[0].field.parameters() if p.grad is not None]
    assert run.steps[0].grad_norm == pytest.approx(float(torch.cat(grads).norm()), rel=1e-5)
    assert run.steps[0].grad_norm > 0


def test_gradients_do_not_pile_up_over_steps(method: Method) -> None:
    still = replace(CONFIG, method=method, lr_encoding=0.0, lr_mlp=0.0)
    norms = [step.grad_norm for step in train(still, 12).steps]
    assert max(norms[6:]) < 3 * max(norms[:6])


def test_sparsity_and_entropy_are_what_their_formulas_say_of_the_render(method: Method) -> None:
    schedule = Linear(start=0.0, end=7.0, begin_step=2, end_step=2)
    run = train(replace(CONFIG, method=method, lambda_sparsity=5.0, lambda_opacity_entropy=schedule), 4, field=FOG)
    for step, (_, rendering) in zip(run.steps, run.renders, strict=True):
        opacity = rendering.opacity
        assert step.losses["sparsity"] == pytest.approx(5.0 * float((opacity**2 + 0.01).sqrt().mean()), rel=1e-5)
        p = opacity.clamp(1e-3, 1 - 1e-3)
        entropy = float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())
        if step.step <= 2:
            assert "opacity_entropy" not in step.losses
        else:
            assert step.losses["opacity_entropy"] == pytest.approx(7.0 * entropy, rel=1e-4)


def test_sparsity_and_entropy_empty_a_faint_fog(method: Method) -> None:
    own = MethodSettings(sjc=SjcConfig(lambda_emptiness=0.0))  # which would empty it alone

    def opacity_after(**settings: object) -> float:
        run = train(replace(CONFIG, method=method, **settings), 6, field=replace(FOG, density_blob_scale=0.1), own=own)
        return run.renders[-1][1].opacity[:, 3:5, 3:5].mean().item()

    plain, sparse = opacity_after(), opacity_after(lambda_sparsity=1e4)
    decided = opacity_after(lambda_opacity_entropy=Linear(start=1e4, end=1e4, begin_step=0, end_step=0))
    assert 0.1 < plain < 0.6 and sparse < 0.95 * plain and decided < 0.95 * plain


def test_the_occupancy_is_looked_at_as_often_as_was_set(method: Method) -> None:
    grids: list[torch.Tensor] = []
    config = replace(CONFIG, method=method, occupancy_every=3)
    train(config, 7, watch=lambda state: grids.append(state.particles[0].occupancy.opacities.clone()))
    assert [step for step in range(1, 8) if not torch.equal(grids[step], grids[step - 1])] == [3, 6]


def test_all_randomness_comes_from_the_seed(method: Method) -> None:
    before = torch.get_rng_state()
    runs = [train(replace(CONFIG, method=method, num_particles=2), 2, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = ([step.losses for step in run.steps] for run in runs)
    assert first == again != other
    fields = [particle.field.encoding.table for run in runs for particle in run.state.particles]
    assert not torch.equal(fields[0], fields[1]) and torch.equal(fields[0], fields[2])
