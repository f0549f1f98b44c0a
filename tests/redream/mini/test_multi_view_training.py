"""Training `mini:multi-view`: it starts as the 2D prior, resumes exactly, and writes what the method loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from redream.mini.training import multi_view
from redream.mini.training.multi_view import multi_view_unet, train_multi_view
from redream.mini.view_sets import ViewSets, draw_views
from redream.prior.multi_view import MultiViewPrior, camera_condition
from redream.weights import weights_path

GENERATOR = torch.Generator().manual_seed(0)
SETS = ViewSets(
    rgba=torch.randint(0, 256, (3, 4, 64, 64, 4), dtype=torch.uint8, generator=GENERATOR),
    c2w=torch.randn(3, 4, 4, 4, generator=GENERATOR),
    category=torch.tensor([0, 1, 2]),
    color=torch.tensor([2, 1, 0]),
)


def test_training_starts_as_the_2d_prior_does_for_a_single_view() -> None:
    plain = UNet2DConditionModel.from_pretrained(weights_path("mini:prior"), subfolder="unet").eval()
    views = multi_view_unet(plain).eval()
    x_t, embeds = torch.randn(1, 64, 8, 8, generator=GENERATOR), torch.randn(1, 16, 96, generator=GENERATOR)
    _, camera = draw_views(SETS, torch.tensor([0]), GENERATOR)
    with torch.no_grad():
        expected = plain(x_t, 300, embeds).sample
        # Four times the same view: attention over all of them is attention over one.
        found = views(x_t.repeat(4, 1, 1, 1), 300, embeds.repeat(4, 1, 1), class_labels=camera_condition(camera)).sample
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-4, atol=1e-4)


def test_a_killed_training_continues_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_view, "OBJECTS_PER_BATCH", 2)
    monkeypatch.setattr("redream.mini.training.loop.CHECKPOINT_EVERY_S", 0.0)

    def weights(work: str, out: str) -> dict[str, torch.Tensor]:
        steps = [step.loss for step in train_multi_view(SETS, 3, tmp_path / work, tmp_path / out)]
        assert steps
        return load_file(tmp_path / out / "unet" / "diffusion_pytorch_model.safetensors")

    undisturbed = weights("one", "whole")
    killed = train_multi_view(SETS, 3, tmp_path / "two", tmp_path / "resumed")
    next(killed)
    next(killed)
    killed.close()
    resumed = weights("two", "resumed")
    assert undisturbed.keys() == resumed.keys() and {v.dtype for v in resumed.values()} == {torch.float16}
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    prior = MultiViewPrior(str(tmp_path / "resumed"))
    images, camera = draw_views(SETS, torch.tensor([0, 1]), GENERATOR)
    eps = prior.predict_eps_pair(prior.encode(images), torch.full((8,), 500), prior.prompt_embeds("a red car"), camera)
    assert all(each.shape == (8, 64, 8, 8) and each.isfinite().all() for each in eps)
