"""Laws of the miniature's perceptual networks, random weights at tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redream.metrics.perceptual import PerceptualConfig, PerceptualNet, pool_config, residual_config, to_signed

CONFIGS = [pool_config(("cat", "dog"), ("red", "blue")), residual_config(("cat", "dog"), ("red", "blue"))]


def test_signed_range_maps_black_grey_white_to_minus_one_zero_one():
    torch.testing.assert_close(to_signed(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_each_stage_halves_the_resolution_of_the_one_before(config: PerceptualConfig, generator: torch.Generator):
    features = PerceptualNet(config).features(torch.rand(2, 3, 32, 32, generator=generator))
    assert tuple(f.shape[1] for f in features) == config.channels
    sides = [f.shape[-1] for f in features]
    assert all(fine == 2 * coarse for fine, coarse in zip(sides, sides[1:], strict=False))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_classification_gives_one_logit_per_name_at_any_size(
    config: PerceptualConfig, size: int, generator: torch.Generator
):
    logits = PerceptualNet(config)(torch.rand(2, 3, size, size, generator=generator))
    assert logits.category.shape == (2, 2) and logits.color.shape == (2, 2) and logits.view.shape == (2, 3)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_a_loaded_network_equals_the_saved_one_and_is_frozen(
    config: PerceptualConfig, tmp_path: Path, generator: torch.Generator
):
    images = torch.rand(2, 3, 16, 16, generator=generator)
    net = PerceptualNet(config).eval()
    net.save(tmp_path / "net")
    loaded = PerceptualNet.load(tmp_path / "net")
    assert loaded.config == config
    torch.testing.assert_close(loaded(images).category, net(images).category, rtol=0, atol=0)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]


def test_every_weight_learns_from_the_three_heads(generator: torch.Generator):
    for config in CONFIGS:
        net = PerceptualNet(config)
        logits = net(torch.rand(4, 3, 16, 16, generator=generator))
        (logits.category.logsumexp(-1) + logits.color.logsumexp(-1) + logits.view.logsumexp(-1)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_folder_without_a_network_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="config.json and model.safetensors"):
        PerceptualNet.load(tmp_path)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_features_and_logits_are_those_of_the_signed_image(config: PerceptualConfig, generator: torch.Generator):
    net = PerceptualNet(config).eval()
    images = torch.rand(2, 3, 16, 16, generator=generator)
    x, expected = 2 * images - 1, []
    for stage in net.stages:
        x = stage(x)
        expected.append(x)
    for found, wanted in zip(net.features(images), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    hidden = net.trunk(expected[-1])
    logits = net(images)
    torch.testing.assert_close(logits.category, net.category_head(hidden))
    torch.testing.assert_close(logits.color, net.color_head(hidden))
    torch.testing.assert_close(logits.view, net.view_head(hidden))
