from typing import Any

import pytest
import torch

from redream.prior.patch_codec import PatchCodec
from redream.prior.patch_codec import fit_codec as fit_typed_codec


def fit_codec(images: torch.Tensor, latent_channels: int, latent_std: float) -> Any:
    """Fit a codec; diffusers types what it returns by flags, and its `config` as a plain dict."""
    return fit_typed_codec(images, latent_channels, latent_std)


def test_all_components_reconstruct_exactly_and_gradients_are_the_basis(generator) -> None:
    images = torch.rand(16, 3, 16, 16, generator=generator)
    codec = fit_codec(images, latent_channels=192, latent_std=1.0)
    signed = 2 * images - 1
    latents = codec.encode(signed).latent_dist.mode()
    assert latents.shape == (16, 192, 2, 2)
    assert torch.allclose(codec.decode(latents).sample, signed, atol=1e-4)


def test_fewer_components_keep_the_most_variance(generator) -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(64, 3, 2, 2, generator=generator), 16, mode="bilinear")
    few, more = (fit_codec(smooth, channels, 1.0) for channels in (4, 24))
    signed = 2 * smooth - 1
    errors = [(c.decode(c.encode(signed).latent_dist.mode()).sample - signed).square().mean() for c in (few, more)]
    assert errors[1] < 0.2 * errors[0]


def test_scaling_gives_the_strongest_channel_the_wanted_spread(generator) -> None:
    images = torch.rand(64, 3, 16, 16, generator=generator)
    codec = fit_codec(images, latent_channels=8, latent_std=2.0)
    latents = codec.encode(2 * images - 1).latent_dist.mode() * codec.config.scaling_factor
    assert float(latents[:, 0].square().mean().sqrt()) == pytest.approx(2.0, rel=0.02)


def test_the_codec_survives_its_folder(tmp_path, generator) -> None:
    codec = fit_codec(torch.rand(8, 3, 16, 16, generator=generator), 12, 1.5)
    codec.save_pretrained(tmp_path)
    again: Any = PatchCodec.from_pretrained(tmp_path)
    assert torch.equal(again.basis, codec.basis) and again.config.scaling_factor == codec.config.scaling_factor
