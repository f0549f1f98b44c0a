"""The miniature's image codec: principal components of 8x8 patches, behind the interface of diffusers' AutoencoderKL.

A linear codec has a closed form, exact gradients and no training time, and at 64x64 pixels it reconstructs flat
renders better than a convolutional autoencoder that the same budget could train. Channels keep their natural variance:
whitening would spend the prior's capacity on the weakest ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class PatchCodec(ModelMixin, ConfigMixin):
    """Linear patch codec: images in [-1, 1] to latents at an eighth of the resolution and back."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        scaling_factor: float = 1.0,
        # Pipelines derive the down-sampling factor, 2 ** (len - 1), from this name of AutoencoderKL's.
        block_out_channels: Sequence[int] = (192, 192, 192, 192),
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = 2 ** (len(block_out_channels) - 1)
        self.basis = nn.Parameter(torch.zeros(latent_channels, 3, self.patch_size, self.patch_size))
        self.mean = nn.Parameter(torch.zeros(3, 1, 1))

    def encode(
        self, images: Float[Tensor, "batch 3 height width"], return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Project patches on the basis; the distribution is a point (its log-variance is the least representable)."""
        latents = F.conv2d(images - self.mean, self.basis, stride=self.patch_size)
        distribution = DiagonalGaussianDistribution(
            torch.cat([latents, torch.zeros_like(latents)], dim=1), deterministic=True
        )
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(
        self, latents: Float[Tensor, "batch channels h w"], return_dict: bool = True, generator: object = None
    ) -> DecoderOutput | tuple[Float[Tensor, "batch 3 height width"]]:
        """Sum the basis patches; `generator` is part of AutoencoderKL's signature and unused."""
        del generator
        images = F.conv_transpose2d(latents, self.basis, stride=self.patch_size) + self.mean
        return DecoderOutput(sample=images) if return_dict else (images,)


def fit_codec(images: Float[Tensor, "num 3 height width"], latent_channels: int, latent_std: float) -> PatchCodec:
    """Fit the basis in closed form.

    Args:
        images: in [0, 1].
        latent_std: of the strongest channel after scaling; it sets the signal-to-noise ratio of the diffusion.
    """
    signed = 2.0 * images - 1.0
    mean = signed.mean(dim=(0, 2, 3))
    patches = F.unfold(signed - mean[None, :, None, None], kernel_size=8, stride=8)  # [N, 192, L]
    rows = patches.permute(0, 2, 1).reshape(-1, patches.shape[1]).double()
    variances, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    strongest = vectors.flip(1)[:, :latent_channels].T
    codec = PatchCodec(latent_channels=latent_channels, scaling_factor=latent_std / float(variances[-1].sqrt()))
    with torch.no_grad():
        codec.basis.copy_(strongest.reshape(latent_channels, 3, 8, 8).float())
        codec.mean.copy_(mean[:, None, None])
    return codec.requires_grad_(False)
