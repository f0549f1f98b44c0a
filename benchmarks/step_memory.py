"""Peak memory of one 512-pixel VSD step at the size of Stable Diffusion 2.1, counted without a GPU.

Networks and field are shapes without values; rays are sampled for real, through an object that fills a third of the
ball. Counted are the bytes that live at once on a simulated GPU, not what a kernel takes while it runs:
`python -m benchmarks.step_memory [--samples-per-chunk N]`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn

from redream.distill import loop
from redream.field import hash_grid_triton
from redream.presets import sd21
from redream.prior.prompts import PromptEmbeds
from redream.prior.stable_diffusion import StableDiffusionPrior
from tests.redream.simulated_cuda import CudaTensor, SimulatedCuda, simulated_cuda

GIB = 2**30
KERNELS = ("_encode_kernel", "_scatter_kernel", "_pull_back_kernel")


class NoKernel:
    """Stands for a Triton kernel, whose outputs its caller has allocated already."""

    def __getitem__(self, grid: object) -> object:
        return lambda *arguments: None


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--samples-per-chunk", type=int, default=sd21().field.samples_per_chunk)
    chunk = parser.parse_args().samples_per_chunk
    for name in KERNELS:
        setattr(hash_grid_triton, name, NoKernel())
    with simulated_cuda() as cuda:
        prior = full_size_prior(cuda)
        config = sd21()
        field = replace(config.field, implementation="triton", samples_per_chunk=chunk)
        distill = replace(config.distill, method="vsd")
        state = loop.create_state(prior, [], distill, field, seed=0)
        particle = state.particles[0]
        for network in (prior.unet, particle.field):  # what was drawn becomes a shape as well
            without_values(network, cuda)
        state.optimizers[0] = loop._field_optimizer(particle.field, distill)
        particle.occupancy.is_occupied = cuda.wrap(third_of_the_ball(field.occupancy_resolution))
        state.step = distill.high_resolution_from_step
        print(f"before the step   {cuda.live_bytes / GIB:6.2f} GiB")
        cuda.syncs.clear()
        cuda.peak_bytes = cuda.live_bytes
        started = time.perf_counter()
        next(loop.distill(state, prior, "a chair", [], distill, field, config.camera, state.step + 1))
        print(f"peak in the step  {cuda.peak_bytes / GIB:6.2f} GiB with {chunk:,} samples per chunk")
        print(f"waits for the GPU {cuda.syncs.total():3d}: {dict(cuda.syncs)}")
        print(f"counted in {time.perf_counter() - started:.0f} s")


def full_size_prior(cuda: SimulatedCuda) -> StableDiffusionPrior:
    """Return a prior of SD 2.1's size as shapes, at rest: text encoder and VAE decoder are not on the GPU."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        )
    prior = StableDiffusionPrior.__new__(StableDiffusionPrior)
    prior.device, prior.unet, prior.vae = torch.device("cuda"), unet, vae
    prior.text_encoder, prior._decoder, prior._is_resting = nn.Linear(1, 1), [], True
    for network in (unet, vae.encoder, vae.quant_conv):
        without_values(network.requires_grad_(False), cuda)
    prior.alphas_cumprod = DDIMScheduler().alphas_cumprod.cuda()
    prior.prediction_type, prior.image_size, prior.prefixes, prior._active = "epsilon", 512, None, None
    embeds = [cuda.wrap(torch.empty(num, 77, 1024, device="meta")) for num in (4, 1, 1)]
    prior.prompt_embeds = lambda prompt: PromptEmbeds(*embeds)
    return prior


def without_values(network: nn.Module, cuda: SimulatedCuda) -> None:
    """Put a network's parameters on the simulated GPU as shapes."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or (isinstance(parameter, CudaTensor) and parameter.inner.is_meta):
                continue
            shape = cuda.wrap(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
            module._parameters[name] = nn.Parameter(shape, parameter.requires_grad)


def third_of_the_ball(resolution: int) -> torch.Tensor:
    """Return the occupied cells of a ball that fills a third of the unit ball."""
    axis = (torch.arange(resolution) + 0.5) * (2.0 / resolution) - 1.0
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return (x**2 + y**2 + z**2).sqrt() < (1 / 3) ** (1 / 3)


if __name__ == "__main__":
    main()
