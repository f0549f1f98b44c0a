"""Laws of VSD in the real loop, with a prior and a variational network whose best predictions are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from redream.images import to_images
from redream.prior.stable_diffusion import VARIATIONAL
from tests.redream.distill.closed_forms import CONFIG, FIELD, MEAN, STD, Trained, asset, latents, train

VSD = replace(CONFIG, method="vsd")


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(replace(VSD, anneal_from_step=0, annealed_max_t=0.3, num_particles=2), 40)


def test_the_variational_network_learns_the_distribution_of_the_renders() -> None:
    still = replace(VSD, lr_encoding=0.0, lr_mlp=0.0, views_per_step=8, lr_variational=0.05)
    run = train(still, 60, seed=3, contrast=4.0)
    shown = torch.cat([latents(images) for images in run.prior.images]).flatten(1).mean(dim=0)
    assert shown.abs().max() > 0.3
    assert run.prior.variational_mean.flatten().tolist() == pytest.approx(shown.tolist(), abs=0.1)
    losses = [step.losses["variational"] for step in run.steps]
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])


def test_the_lora_is_drawn_from_the_seed() -> None:
    loras = [train(replace(VSD, variational_rank=7), 0, seed=seed).prior.loras for seed in (1, 1, 2)]
    assert loras[0] == loras[1] != loras[2]
    assert [lora[:2] for lora in loras[0]] == [(VARIATIONAL, 7)]


def test_the_prior_is_asked_with_the_guidance_of_vsd(trained: Trained) -> None:
    assert {call.scale for call in trained.prior.asked()} == {VSD.guidance_scale}


def test_both_networks_see_the_same_noised_image_and_only_one_the_camera(trained: Trained) -> None:
    asked, compared = trained.prior.asked(), trained.prior.compared()
    for mine, theirs, (camera, _) in zip(asked, compared, trained.renders, strict=True):
        assert torch.equal(mine.x_t, theirs.x_t) and torch.equal(mine.t, theirs.t)
        assert theirs.camera is not None and torch.equal(theirs.camera.c2w, camera.c2w)
        assert set(theirs.words) == {"plain"}


def test_the_score_is_the_weighted_difference_of_the_two_predictions() -> None:
    run = train(replace(VSD, lr_variational=0.0), 5)
    for step, call in zip(run.steps, run.prior.asked(), strict=True):
        eps_prior = run.prior.eps(call.x_t, call.t, run.prior.mean, run.prior.std)
        eps_variational = run.prior.predict_eps_variational(call.x_t, call.t, call.cond, None).detach()
        weight = (1 - run.prior.alphas_cumprod[call.t])[:, None, None, None]
        gradient = weight * (eps_prior - eps_variational)
        expected = 0.5 * float(gradient.square().sum()) / VSD.views_per_step
        assert step.losses["score"] == pytest.approx(expected, rel=1e-3)


def test_the_variational_network_learns_at_all_timesteps_from_fresh_noise(trained: Trained) -> None:
    taught = trained.prior.taught()
    assert len(taught) == 40
    times = torch.cat([call.t for call in taught])
    assert times.min() < 10 and times.max() > 90  # the annealed limit is the particle's alone
    noise = []
    for call, images in zip(taught, trained.prior.images, strict=True):
        a = trained.prior.alphas_cumprod[call.t][:, None, None, None]
        noise.append((call.x_t - a.sqrt() * latents(images)) / (1 - a).sqrt())
        assert set(call.words) == {"plain"}
    eps = torch.cat(noise)
    assert float(eps.mean()) == pytest.approx(0, abs=0.2) and float(eps.std()) == pytest.approx(1, abs=0.15)


def test_the_camera_is_dropped_as_often_as_was_set_and_else_is_the_renders(trained: Trained) -> None:
    dropped = 0
    for call, (camera, _) in zip(trained.prior.taught(), trained.renders, strict=True):
        dropped += call.camera is None
        if call.camera is not None:
            assert torch.equal(call.camera.c2w, camera.c2w) and torch.equal(call.camera.fovy_deg, camera.fovy_deg)
    assert 3 <= dropped <= 18  # a quarter of 40
    for share in (0.0, 1.0):
        run = train(replace(VSD, camera_dropout=share), 3)
        assert [call.camera is None for call in run.prior.taught()] == [share == 1.0] * 3


def test_the_loss_of_the_record_is_that_of_the_variational_network() -> None:
    run = train(replace(VSD, lr_variational=0.0), 4)
    for step, call, images in zip(run.steps, run.prior.taught(), run.prior.images, strict=True):
        a = run.prior.alphas_cumprod[call.t][:, None, None, None]
        eps = (call.x_t - a.sqrt() * latents(images)) / (1 - a).sqrt()
        eps_pred = run.prior.predict_eps_variational(call.x_t, call.t, call.cond, None).detach()
        assert step.losses["variational"] == pytest.approx(float((eps_pred - eps).square().mean()), rel=1e-3)


def test_vsd_ends_with_the_mean_and_the_spread_of_the_prior() -> None:
    # From particles that are nearly alike. SDS ends with a spread of .13, that of its steps: all particles at the mean.
    config = replace(VSD, num_particles=32, views_per_step=1, lr_encoding=0.05, lr_mlp=0.05, lr_variational=0.1)
    run = train(config, 256, seed=7, contrast=0.3)
    camera = asset(1, num_views=4).camera
    with torch.no_grad():
        shown = [latents(to_images(particle.render(camera, FIELD).rgb)) for particle in run.state.particles]
    found = torch.stack([views.mean(dim=(0, 2, 3)) for views in shown])  # [particles, 3]
    assert found.mean(dim=0).tolist() == pytest.approx(MEAN, abs=0.12)
    assert found.var(dim=0).mean().sqrt().item() == pytest.approx(STD, abs=0.08)
