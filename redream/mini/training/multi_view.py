"""Train `mini:multi-view` from `mini:prior`, as MVDream was trained from Stable Diffusion.

The UNet gets the camera, whose last layer starts at zero, and attention across an object's four views; it starts from
the 2D prior's weights and is trained on, while codec and text encoder stay as they are. Captions do not name the view:
the camera does. All views of an object share t; noise is independent. The loss is that of `prior.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from redream.mini.catalog import make_caption
from redream.mini.dataset import CATEGORY_NAMES, COLOR_NAMES
from redream.mini.training.loop import Draws, TrainStep, train
from redream.mini.training.prior import MAX_SNR, UNCONDITIONAL_SHARE
from redream.mini.view_sets import ViewSets, draw_views
from redream.prior import patch_codec
from redream.prior.multi_view import NUM_VIEWS, camera_condition, join_views
from redream.prior.multi_view_files import CAMERA_EMBEDDING
from redream.prior.prompts import embed_prompts
from redream.weights import weights_path

OBJECTS_PER_BATCH = 16
LEARNING_RATE = 4e-4
SEED = 12


def multi_view_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a UNet with the camera and joint views that starts as the 2D one: the camera's last layer is zero."""
    found: Any = UNet2DConditionModel.from_config({**unet.config, **CAMERA_EMBEDDING})
    missing, unexpected = found.load_state_dict(unet.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("class_embedding.") for name in missing)
    nn.init.zeros_(found.class_embedding.linear_2.weight)
    nn.init.zeros_(found.class_embedding.linear_2.bias)
    join_views(found)
    return found


def train_multi_view(sets: ViewSets, num_steps: int, work: Path, out: Path) -> Iterator[TrainStep]:
    """Train for `num_steps` batches and write the pipeline's folder to `out` at the end, in half precision."""
    assert patch_codec  # diffusers loads the miniature's codec only from a module that is already imported
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        weights_path("mini:prior"), use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    torch.manual_seed(SEED)  # diffusers initialises the camera's layers from the global generator
    unet = multi_view_unet(pipeline.unet)
    ema = copy.deepcopy(unet).requires_grad_(False)
    codec, scheduler = pipeline.vae.requires_grad_(False), pipeline.scheduler
    pipeline.text_encoder.requires_grad_(False)

    def loss_of_batch(draws: Draws) -> Tensor:
        indices = torch.randint(len(sets), (OBJECTS_PER_BATCH,), generator=draws.torch)
        captions = [_caption(sets, index, draws.numpy) for index in indices.tolist()]
        images, camera = draw_views(sets, indices, draws.torch)
        x_0 = codec.encode(2.0 * images - 1.0).latent_dist.mode() * codec.config.scaling_factor
        t = torch.randint(len(scheduler.alphas_cumprod), (OBJECTS_PER_BATCH,), generator=draws.torch)
        t = t.repeat_interleave(NUM_VIEWS)
        x_t = scheduler.add_noise(x_0, torch.randn(x_0.shape, generator=draws.torch), t)
        embeds = embed_prompts(pipeline.tokenizer, pipeline.text_encoder, captions).repeat_interleave(NUM_VIEWS, dim=0)
        x_0_pred = unet(x_t, t, embeds, class_labels=camera_condition(camera)).sample
        snr = scheduler.alphas_cumprod[t] / (1.0 - scheduler.alphas_cumprod[t])
        return ((snr.clamp_max(MAX_SNR) + 1.0) * (x_0_pred - x_0).square().mean(dim=(1, 2, 3))).mean()

    yield from train(unet, loss_of_batch, num_steps, LEARNING_RATE, work / "multi-view.pt", SEED, ema)
    pipeline.unet = ema
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)


def _caption(sets: ViewSets, index: int, rng: np.random.Generator) -> str:
    category, color = CATEGORY_NAMES[int(sets.category[index])], COLOR_NAMES[int(sets.color[index])]
    caption = make_caption(category, color, rng, None)
    return "" if rng.random() < UNCONDITIONAL_SHARE else caption
