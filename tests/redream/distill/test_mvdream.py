"""Laws of MVDream: its loss number by number, its cameras and timesteps, and the real loop with a known prior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from redream.cameras import Camera, camera_angles
from redream.distill.methods.mvdream import mvdream_gradient, orthogonal_cameras
from redream.distill.methods.sds import sds_gradient
from redream.method_settings import MethodSettings, MVDreamConfig
from redream.prior.prompts import PromptEmbeds
from tests.redream.distill.closed_forms import CONFIG, MEAN, GaussianPrior, Trained, latents, train

SHAPE = (8, 4, 2, 2)  # two objects
GENERATOR = torch.Generator().manual_seed(5)
X_0, EPS, UNCOND, COND = (torch.randn(SHAPE, dtype=torch.float64, generator=GENERATOR) for _ in range(4))
ABAR = torch.full((8, 1, 1, 1), 0.3, dtype=torch.float64)
X_T = ABAR.sqrt() * X_0 + (1 - ABAR).sqrt() * EPS
MVDREAM = MVDreamConfig(fovy_deg=(35.0, 55.0), half_height=(0.5, 0.7))


class GaussianViews(GaussianPrior):
    """The Gaussian prior as a multi-view one: views are independent, and the prompt changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Camera]] = []

    def predict_eps_pair(self, x_t: Tensor, t: Tensor, embeds: PromptEmbeds, camera: Camera) -> tuple[Tensor, Tensor]:
        self.seen.append((t, camera))
        eps = self.eps(x_t, t, self.mean, self.std)
        return eps, eps


def run(num_steps: int, own: MVDreamConfig = MVDREAM, **settings: object) -> Trained:
    config = replace(CONFIG, method="mvdream", num_steps=num_steps, **settings)
    return train(config, num_steps, prior=GaussianViews(), own=MethodSettings(mvdream=own))


def literal(rescale: float) -> np.ndarray:
    """The loss's gradient as it is written down, number by number."""
    a, x_t, uncond, cond = 0.3, X_T.numpy(), UNCOND.numpy(), COND.numpy()
    guided, unguided = np.zeros(SHAPE), np.zeros(SHAPE)
    for i in np.ndindex(*SHAPE):
        eps = uncond[i] + 50.0 * (cond[i] - uncond[i])
        guided[i] = (x_t[i] - np.sqrt(1 - a) * eps) / np.sqrt(a)
        unguided[i] = (x_t[i] - np.sqrt(1 - a) * cond[i]) / np.sqrt(a)
    found = np.zeros(SHAPE)
    for first in (0, 4):
        views = slice(first, first + 4)
        f = (np.std(unguided[views], ddof=1) + 1e-8) / (np.std(guided[views], ddof=1) + 1e-8)
        target = rescale * f * guided[views] + (1 - rescale) * guided[views]
        found[views] = X_0[views].numpy() - target
    return found


@pytest.mark.parametrize("rescale", [0.0, 0.5, 1.0])
def test_the_gradient_is_its_formula(rescale: float) -> None:
    found = mvdream_gradient(X_0, X_T, ABAR, UNCOND, COND, 50.0, rescale)
    torch.testing.assert_close(found, torch.as_tensor(literal(rescale)), rtol=1e-6, atol=1e-12)


def test_without_rescaling_it_is_sds_of_another_weight() -> None:
    weight = ((1 - ABAR) / ABAR).sqrt()
    expected = sds_gradient(X_T, EPS, weight, lambda x_t: UNCOND + 50.0 * (COND - UNCOND))
    found = mvdream_gradient(X_0, X_T, ABAR, UNCOND, COND, 50.0, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


def test_four_cameras_are_a_quarter_turn_apart_and_share_the_rest() -> None:
    config = MVDreamConfig()
    camera = orthogonal_cameras(config, 50, 8, torch.Generator().manual_seed(0))
    azimuth, elevation, distance = (each.reshape(50, 4) for each in camera_angles(camera))
    fovy = camera.fovy_deg.reshape(50, 4)
    turns = (azimuth[:, 1:] - azimuth[:, :-1]) % 360.0
    torch.testing.assert_close(turns, torch.full_like(turns, 90.0), atol=1e-2, rtol=0)
    for shared in (elevation, distance, fovy):
        torch.testing.assert_close(shared, shared[:, :1].expand(-1, 4), atol=1e-3, rtol=0)
    half_height = distance * torch.tan(0.5 * torch.deg2rad(fovy))
    for values, (low, high) in (
        (elevation, config.elevation_deg), (fovy, config.fovy_deg), (half_height, config.half_height)
    ):  # fmt: skip
        assert low - 1e-3 <= values.min() and values.max() <= high + 1e-3 and values.std() > 0.1 * (high - low)


def timesteps(trained: Trained) -> Iterator[set[int]]:
    prior = trained.prior
    assert isinstance(prior, GaussianViews)
    return (set(t.tolist()) for t, _ in prior.seen)


def test_a_step_has_one_timestep_and_their_range_falls_over_the_run() -> None:
    found = list(timesteps(run(40, views_per_step=8)))
    assert all(len(step) == 1 for step in found)
    t = [min(step) for step in found]
    assert t[0] == 98
    for step, value in enumerate(t):
        progress = min(step / 32, 1.0)  # of 40 steps, 80 % anneal; 100 timesteps
        low, high = int(100 * (0.98 - 0.96 * progress) + 1e-6), int(100 * (0.98 - 0.48 * progress) + 1e-6)
        assert low - 1 <= value <= high + 1
    assert min(t[32:]) < 40


def test_views_of_a_step_are_rendered_four_by_four() -> None:
    assert {len(images) for images in run(3, views_per_step=1).prior.images} == {4}
    assert {len(images) for images in run(3, views_per_step=9).prior.images} == {8}


@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_mvdream_ends_at_the_mean_of_the_prior(rescale: float) -> None:
    own = replace(MVDREAM, rescale=rescale, first_t=0.6, last_min_t=0.02, last_max_t=0.5)
    trained = run(80, own, views_per_step=16, lr_encoding=0.05, lr_mlp=0.05)
    found = torch.cat([latents(images) for images in trained.prior.images[-30:]]).mean(dim=(0, 2, 3))
    assert found.tolist() == pytest.approx(MEAN, abs=0.06)
