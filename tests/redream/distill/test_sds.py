"""Laws of SDS in the real loop, with a prior whose best prediction is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.redream.distill.closed_forms import CONFIG, MEAN, latents, train

SDS = replace(CONFIG, method="sds")


def test_sds_asks_with_its_own_guidance_and_has_no_network_of_its_own() -> None:
    run = train(SDS, 3)
    assert {call.scale for call in run.prior.calls} == {SDS.sds_guidance_scale}
    assert run.prior.loras == [] and all("variational" not in step.losses for step in run.steps)


def test_the_score_is_what_the_formula_says_of_the_calls() -> None:
    run = train(SDS, 5)
    for step, call, images in zip(run.steps, run.prior.asked(), run.prior.images, strict=True):
        a = run.prior.alphas_cumprod[call.t][:, None, None, None]
        eps = (call.x_t - a.sqrt() * latents(images)) / (1 - a).sqrt()
        gradient = (1 - a) * (run.prior.eps(call.x_t, call.t, run.prior.mean, run.prior.std) - eps)
        expected = 0.5 * float(gradient.square().sum()) / SDS.views_per_step
        assert step.losses["score"] == pytest.approx(expected, rel=1e-3)


def test_sds_ends_at_the_mean_of_the_prior() -> None:
    run = train(replace(SDS, views_per_step=8, lr_encoding=0.05, lr_mlp=0.05), 60)
    found = torch.cat([latents(images) for images in run.prior.images[-30:]]).mean(dim=(0, 2, 3))
    assert found.tolist() == pytest.approx(MEAN, abs=0.04)
