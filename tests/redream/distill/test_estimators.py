"""Every estimator against a literal, slow transcription of its formula in float64, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redream.cameras import camera_angles, camera_rays, orbit
from redream.distill.methods.sds import sds_gradient
from redream.distill.methods.sjc import sjc_gradient
from redream.distill.methods.vsd import vsd_gradient
from redream.distill.particle import Particle
from redream.distill.schedule import weight
from redream.method_settings import DebiasConfig, MethodSettings, PerpNegConfig, SjcConfig
from redream.prior.perp_neg import perp_neg_guidance, perpendicular, view_mixture
from redream.render.volume import render_weights, sample_rays
from tests.redream.distill.closed_forms import CAMERAS, CONFIG, FIELD, MEAN, GaussianPrior, latents, train

ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 100, dtype=torch.float64)
SHAPE = (3, 4, 2, 2)
TOLERANCE = 1e-6  # relative


class TinyNetwork(nn.Module):
    """Predict noise from the latents and a condition, in float64."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 1)).double()
        self.requires_grad_(False)

    def forward(self, x_t: Tensor, cond: float) -> Tensor:
        return self.layers(x_t + cond)


NETWORK = TinyNetwork()
GENERATOR = torch.Generator().manual_seed(5)
Y, EPS = (torch.randn(SHAPE, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
T = torch.tensor([2, 50, 97])
ABAR = ALPHAS_CUMPROD[T][:, None, None, None]
X_T = ABAR.sqrt() * Y + (1 - ABAR).sqrt() * EPS


def guided(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x_t: NETWORK(x_t, 0.0) + scale * (NETWORK(x_t, 0.7) - NETWORK(x_t, 0.0))


def numbers(shape: tuple[int, ...] = SHAPE) -> Iterator[tuple[int, ...]]:
    return iter(np.ndindex(*shape))


def assert_close(found: Tensor, expected: np.ndarray | Tensor) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize(
    ("weighting", "formula"),
    [("sds", lambda a: 1 - a), ("uniform", lambda a: 1.0), ("fantasia3d", lambda a: math.sqrt(a) * (1 - a))],
)
def test_sds_and_vsd_are_their_formulas_with_every_weighting(weighting: str, formula: Callable) -> None:
    eps_prior, eps_variational = guided(30.0)(X_T).numpy(), NETWORK(X_T, -0.4).numpy()
    sds, vsd = np.zeros(SHAPE), np.zeros(SHAPE)
    for index in numbers():
        w = formula(float(ALPHAS_CUMPROD[T[index[0]]]))
        sds[index] = w * (eps_prior[index] - float(EPS[index]))
        vsd[index] = w * (eps_prior[index] - eps_variational[index])
    w_t = weight(T, ALPHAS_CUMPROD, weighting)
    assert_close(sds_gradient(X_T, EPS, w_t, guided(30.0)), sds)
    assert_close(vsd_gradient(X_T, w_t, guided(30.0), lambda x_t: NETWORK(x_t, -0.4)), vsd)


@pytest.mark.parametrize("is_reduced", [True, False])
def test_sjc_is_its_formula_in_both_forms(is_reduced: bool) -> None:
    expected, z, scaled = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE)
    sigmas = [math.sqrt((1 - float(a)) / float(a)) for a in ALPHAS_CUMPROD[T]]
    for index in numbers():
        sigma = sigmas[index[0]]
        z[index] = float(Y[index]) + sigma * float(EPS[index])
        scaled[index] = z[index] / math.sqrt(1 + sigma * sigma)
    predicted = guided(100.0)(torch.as_tensor(scaled)).numpy()
    for index in numbers():
        sigma = sigmas[index[0]]
        denoised = z[index] - sigma * predicted[index]
        expected[index] = -(denoised - (float(Y[index]) if is_reduced else z[index])) / sigma
    assert_close(sjc_gradient(Y, EPS, ABAR, guided(100.0), is_reduced), expected)


def test_sjc_reduced_is_sds_of_weight_one_and_plain_is_the_prediction_itself() -> None:
    one = torch.ones_like(ABAR)
    assert_close(sjc_gradient(Y, EPS, ABAR, guided(7.0), True), sds_gradient(X_T, EPS, one, guided(7.0)))
    assert_close(sjc_gradient(Y, EPS, ABAR, guided(7.0), False), guided(7.0)(X_T))


def test_perp_neg_is_its_formula() -> None:
    uncond, positive, front, side = (NETWORK(X_T, cond) for cond in (0.0, 0.7, 0.3, -0.5))
    weights = torch.tensor([[-0.7, -1.5], [0.0, -2.0], [-0.1, 0.0]], dtype=torch.float64)
    expected = np.zeros(SHAPE)
    for image in range(SHAPE[0]):
        e_pos = (positive[image] - uncond[image]).numpy().ravel()
        total = e_pos.copy()
        for k, negative in enumerate((front, side)):
            e_neg = (negative[image] - uncond[image]).numpy().ravel()
            dot = sum(a * b for a, b in zip(e_neg, e_pos, strict=True))
            norm = sum(b * b for b in e_pos)
            total += float(weights[image, k]) * (e_neg - e_pos * dot / max(norm, 1e-6))
        expected[image] = uncond[image].numpy() + 9.0 * total.reshape(SHAPE[1:])
    assert_close(perp_neg_guidance(uncond, positive, [front, side], weights, 9.0), expected)


def test_perp_neg_moves_along_its_positive_as_plain_guidance_does() -> None:
    """So a negative takes nothing off the prompt: at the pure front too, what is along the front is plain guidance."""
    uncond, positive, front, side = (NETWORK(X_T, cond) for cond in (0.0, 0.7, 0.3, -0.5))
    shares, weights = view_mixture(torch.zeros(3), torch.zeros(3), 60.0, "threestudio")
    assert torch.equal(shares, torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3))
    assert weights[:, 0].abs().max() < 1e-3  # the front is no negative of itself
    direction = positive - uncond
    found = perp_neg_guidance(uncond, positive, [front, side], weights.double(), 9.0) - uncond
    assert_close((found * direction).sum((1, 2, 3)), (9.0 * direction * direction).sum((1, 2, 3)))
    assert_close((perpendicular(side, direction) * direction).sum((1, 2, 3)), torch.zeros(3, dtype=torch.float64))
    # A negative that says what the positive says takes nothing off at all.
    same = perp_neg_guidance(uncond, positive, [positive, uncond + 2 * direction], weights.double(), 9.0)
    assert_close(same, uncond + 9.0 * direction)


def test_perp_neg_from_overhead_is_plain_guidance() -> None:
    shares, weights = view_mixture(torch.tensor([10.0, 170.0]), torch.tensor([70.0, 61.0]), 60.0, "threestudio")
    assert torch.equal(shares, torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 2)) and not weights.any()


@pytest.mark.parametrize(
    ("azimuth", "threestudio", "paper"),
    [
        (0.0, (0.0, -1.574), (0.0, -2.0)),
        (45.0, (-0.689, -0.689), (-2 * math.exp(-1.0), -2 * math.exp(-5.0))),
        (90.0, (-1.574, 0.0), (-2.0, 0.0)),
        (-90.0, (-1.574, 0.0), (-2.0, 0.0)),
        (180.0, (-1.967, -0.394), (-2.0, -1.0)),
        (-180.0, (-1.967, -0.394), (-2.0, -1.0)),
    ],
)
def test_weights_of_negatives_are_those_of_both_references(azimuth: float, threestudio: tuple, paper: tuple) -> None:
    for rule, expected in (("threestudio", threestudio), ("paper", paper)):
        _, weights = view_mixture(torch.tensor([azimuth]), torch.zeros(1), 60.0, rule)
        assert weights[0].tolist() == pytest.approx(expected, abs=1e-3)


def test_the_positive_prompt_passes_from_view_to_view_without_a_jump() -> None:
    azimuth = torch.linspace(-180.0, 180.0, 721)
    shares, weights = view_mixture(azimuth, torch.zeros(721), 60.0, "threestudio")
    assert torch.allclose(shares.sum(1), torch.ones(721))
    assert (shares[1:] - shares[:-1]).abs().max() < 0.01 and (weights[1:] - weights[:-1]).abs().max() < 0.02


def test_emptiness_is_the_mean_of_its_logarithm_over_all_samples_of_a_ray() -> None:
    generator = torch.Generator().manual_seed(0)
    particle = Particle(replace(FIELD, density_blob_scale=4.0, density_blob_radius=0.4), -1, generator)
    camera = orbit(1, 15.0, 1.5, 45.0, 6)
    found = particle.render(camera, FIELD, emptiness_scale=10.0)
    assert found.emptiness is not None and particle.render(camera, FIELD).emptiness is None
    rays = camera_rays(camera)
    origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
    samples = sample_rays(origins, directions, FIELD.radius, FIELD.num_samples_per_ray, particle.occupancy.occupied)
    middles = 0.5 * (samples.t_starts + samples.t_ends)
    at = samples.ray_indices
    sigmas, _ = particle.field.density_and_color(origins[at] + middles[:, None] * directions[at], directions[at])
    expected = np.zeros(36)
    for ray, w in zip(at.tolist(), render_weights(sigmas, samples).tolist(), strict=True):
        expected[ray] += math.log(1 + 10.0 * w) / FIELD.num_samples_per_ray
    assert expected.max() > 0.01
    assert found.emptiness.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("form", ["reduced", "plain"])
def test_sjc_ends_at_the_mean_of_the_prior(form: str) -> None:
    """The plain form has the same expectation and much more variance, so it is averaged over more steps."""
    own = MethodSettings(sjc=SjcConfig(form=form, lambda_emptiness=0.0))
    config = replace(CONFIG, method="sjc", views_per_step=16, lr_encoding=0.05, lr_mlp=0.05, max_t=0.9)
    run = train(config, 60 if form == "reduced" else 120, own=own)
    found = torch.cat([latents(images) for images in run.prior.images[len(run.steps) // 2 :]]).mean(dim=(0, 2, 3))
    assert found.tolist() == pytest.approx(MEAN, abs=0.05 if form == "reduced" else 0.15)


def test_emptiness_clears_a_faint_fog_and_grows_once() -> None:
    fog = replace(FIELD, density_blob_scale=0.1, density_blob_radius=0.4)
    config = replace(CONFIG, method="sjc", num_steps=6)
    weights = [0.0, 1e6]
    runs = [
        train(config, 6, field=fog, own=MethodSettings(sjc=SjcConfig(lambda_emptiness=weight))) for weight in weights
    ]
    plain, cleared = (run.renders[-1][1].opacity[:, 3:5, 3:5].mean().item() for run in runs)
    assert 0.1 < plain < 0.6 and cleared < 0.95 * plain
    losses = [step.losses["emptiness"] for step in runs[1].steps]
    assert losses[3] > 10 * losses[2]


@pytest.mark.parametrize("method", ["sds", "vsd", "redream", "sjc"])
def test_a_clamp_that_nothing_reaches_changes_nothing_and_a_tight_one_does(method: str) -> None:
    def tables(debias: DebiasConfig) -> Tensor:
        run = train(replace(CONFIG, method=method), 3, own=MethodSettings(debias=debias))
        return run.state.particles[0].field.encoding.table.detach()

    plain = tables(DebiasConfig())
    assert torch.equal(plain, tables(DebiasConfig(score=True, first_clamp=1e30, last_clamp=1e30)))
    assert not torch.equal(plain, tables(DebiasConfig(score=True, first_clamp=1e-3, last_clamp=1e-3)))


def test_the_clamp_grows_over_the_run_and_bounds_every_number() -> None:
    own = MethodSettings(debias=DebiasConfig(score=True, first_clamp=0.02, last_clamp=0.05))
    run = train(replace(CONFIG, method="sds", num_steps=4), 4, own=own)
    for step, limit in zip(run.steps, (0.02, 0.03, 0.04, 0.05), strict=True):
        most = 0.5 * 3 * limit**2  # half the squared norm of three latents per image
        assert 0 < step.losses["score"] <= most * (1 + 1e-5)


@pytest.mark.parametrize("method", ["sds", "vsd", "redream", "sjc"])
def test_perp_neg_asks_for_four_predictions_of_each_view(method: str) -> None:
    own = MethodSettings(perp_neg=PerpNegConfig(enabled=True))
    run = train(replace(CONFIG, method=method), 4, own=own)
    for call, (camera, _) in zip(run.prior.asked(), run.renders, strict=True):
        assert call.scale == 1.0 and len(call.x_t) == 4 * len(camera)
        uncond, positive, front, side = call.cond[:, 0, 0].chunk(4)
        assert uncond.tolist() == [-1.0] * 3 and front.tolist() == [0.0] * 3 and side.tolist() == [1.0] * 3
        azimuth, elevation, _ = camera_angles(camera)
        shares, _ = view_mixture(azimuth, elevation, CAMERAS.overhead_above_deg, "threestudio")
        torch.testing.assert_close(positive, shares @ torch.arange(4.0))


def test_perp_neg_of_a_prior_that_ignores_words_is_plain_sds() -> None:
    """The Gaussian prior says the same of all prompts, so nothing is left to be taken off."""
    plain = train(replace(CONFIG, method="sds"), 5, prior=GaussianPrior())
    own = MethodSettings(perp_neg=PerpNegConfig(enabled=True))
    negative = train(replace(CONFIG, method="sds"), 5, prior=GaussianPrior(), own=own)
    tables = [run.state.particles[0].field.encoding.table for run in (plain, negative)]
    torch.testing.assert_close(*tables, rtol=1e-5, atol=1e-6)
