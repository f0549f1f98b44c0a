"""Peak memory of a 512-pixel VSD step and of an adaptation step at the size of Stable Diffusion 2.1, without a GPU.

Networks and field are shapes without values; rays are sampled for real, through an object that fills a third of the
ball. Counted are the bytes that live at once on a simulated GPU, not what a kernel takes while it runs; in half
precision norms are computed in float32, as CUDA's autocast does:
`python -m benchmarks.step_memory [--samples-per-chunk N] [--dtype bfloat16] [--save-memory] [--stage adapt]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from redream.distill import loop
from redream.field import hash_grid_triton
from redream.presets import sd21
from redream.prior import stable_diffusion
from redream.prior.prompts import PromptEmbeds
from redream.prior.stable_diffusion import ADAPTER, StableDiffusionPrior
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
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--save-memory", action="store_true", help="as prior.save_memory")
    parser.add_argument("--stage", choices=["distill", "adapt"], default="distill")
    arguments = parser.parse_args()
    for name in KERNELS:
        setattr(hash_grid_triton, name, NoKernel())
    with simulated_cuda() as cuda, autocast_of_cuda():
        prior = full_size_prior(cuda, getattr(torch, arguments.dtype))
        if arguments.save_memory:
            prior.save_memory()
        if arguments.stage == "adapt":
            count_adaptation(prior, cuda)
        else:
            count_distillation(prior, cuda, arguments.samples_per_chunk)


def count_distillation(prior: StableDiffusionPrior, cuda: SimulatedCuda, chunk: int) -> None:
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


def count_adaptation(prior: StableDiffusionPrior, cuda: SimulatedCuda) -> None:
    """Count one step on a batch of latents; captions are embedded already, as the text encoder is small beside it."""
    config = sd21().adaptation
    lora = prior.add_lora(ADAPTER, config.rank, seed=0)
    without_values(prior.unet, cuda)
    lora = [parameter for name, parameter in prior.unet.named_parameters() if "lora" in name]
    shape = (config.batch_size, 4, 64, 64)
    x_t, target = (cuda.wrap(torch.empty(shape, device="meta")) for _ in range(2))
    cond = cuda.wrap(torch.empty(config.batch_size, 77, 1024, device="meta"))
    t = torch.full((config.batch_size,), 500).cuda()
    optimizer = torch.optim.AdamW(lora)
    print(f"before the step   {cuda.live_bytes / GIB:6.2f} GiB")
    cuda.peak_bytes = cuda.live_bytes
    F.mse_loss(prior.predict_target(x_t, t, cond), target).backward()
    optimizer.step()
    print(f"peak in the step  {cuda.peak_bytes / GIB:6.2f} GiB with {config.batch_size} views")


@contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """Cast as CUDA's autocast would, which PyTorch switches off without a GPU: the CPU's, and norms in float32."""

    def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def norm(*arguments: Any, **named: Any) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return function(*arguments, **named)
            arguments = tuple(a.float() if isinstance(a, Tensor) else a for a in arguments)
            return function(*arguments, **{k: v.float() if isinstance(v, Tensor) else v for k, v in named.items()})

        return norm

    def computing_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)

    with (
        mock.patch.object(stable_diffusion, "computing_in", computing_in),
        mock.patch.object(F, "group_norm", in_float32(F.group_norm)),
        mock.patch.object(F, "layer_norm", in_float32(F.layer_norm)),
    ):
        yield


def full_size_prior(cuda: SimulatedCuda, dtype: torch.dtype) -> StableDiffusionPrior:
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
    prior.device, prior.dtype, prior.unet, prior.vae = torch.device("cuda"), dtype, unet, vae
    prior._frozen = SimpleNamespace(text_encoder=nn.Linear(1, 1), vae=nn.Module())
    for network in (unet, vae.encoder, vae.quant_conv):
        without_values(network.requires_grad_(False).to(dtype), cuda)
    prior.alphas_cumprod = DDIMScheduler().alphas_cumprod.cuda()
    prior.prediction_type, prior.image_size, prior.prefixes, prior._active = "epsilon", 512, None, None
    embeds = [cuda.wrap(torch.empty(num, 77, 1024, device="meta")) for num in (4, 1, 1)]
    prior.prompt_embeds = lambda prompt, negative_prompt="": PromptEmbeds(*embeds)
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
