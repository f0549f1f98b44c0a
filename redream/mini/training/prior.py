"""Train `mini:prior`, a Stable Diffusion pipeline at 64x64 with the viewpoint bias of a web-scale model.

Fronts are four times as likely as either other side, half of the captions are silent about the view, and of those that
name one, nine in ten name it at random: on the web the words "side" and "back" seldom describe the camera. So the prior
draws fronts for "back view of …": the Janus problem, which adaptation has to cure.

The network predicts the clean latents. The codec's weak channels are far below the noise at most timesteps; as epsilon
or v they would be mostly noise to copy, and what is not copied exactly shows as grain. The loss is that of v-prediction
(Salimans & Ho 2022), in which x_0 counts SNR + 1 times, with the SNR clipped (Hang et al. 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Int
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from redream.mini.catalog import make_caption
from redream.mini.dataset import CATEGORY_NAMES, COLOR_NAMES, VIEWS, Renders, draw_images
from redream.mini.tokenization import CONTEXT_LENGTH, prior_tokenizer
from redream.mini.training.loop import Draws, TrainStep, train
from redream.prior.patch_codec import PatchCodec, fit_codec

BATCH_SIZE = 64
LEARNING_RATE = 8e-4
VIEW_WEIGHTS = (4.0, 1.0, 1.0)  # front, side, back
SILENT_SHARE = 0.5  # of captions say nothing about the view
RANDOM_VIEW_SHARE = 0.9  # of the others name any view
UNCONDITIONAL_SHARE = 0.1  # of captions are empty, for classifier-free guidance
LATENT_CHANNELS = 64
LATENT_STD = 2.0  # of the strongest channel
MAX_SNR = 5.0
SEED = 11


class TextToLatents(nn.Module):
    """The two trained networks as one module."""

    def __init__(self, vocab_size: int, end_id: int, start_id: int) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocab_size,
                hidden_size=96,
                intermediate_size=384,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT_LENGTH,
                projection_dim=96,
                bos_token_id=start_id,
                eos_token_id=end_id,
                pad_token_id=end_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(64, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(2, 4),  # pyright: ignore[reportArgumentType]  # diffusers means one per level
            cross_attention_dim=96,
            norm_num_groups=16,
            use_linear_projection=True,
        )


def train_prior(
    renders: Renders, num_steps: int, work: Path, out: Path, use_compile: bool = False
) -> Iterator[TrainStep]:
    """Train for `num_steps` batches and write the pipeline's folder to `out` at the end."""
    codec_images = draw_images(renders, torch.arange(0, len(renders), 8), torch.Generator().manual_seed(SEED))
    codec: Any = fit_codec(codec_images, LATENT_CHANNELS, LATENT_STD)
    tokenizer: Any = prior_tokenizer()
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    torch.manual_seed(SEED)  # diffusers and transformers initialise from the global generator
    model = TextToLatents(len(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id)
    ema = copy.deepcopy(model).requires_grad_(False)
    forward = torch.compile(model.unet) if use_compile else model.unet
    alphas_cumprod = scheduler.alphas_cumprod
    by_view = _indices_by_view(renders)

    def loss_of_batch(draws: Draws) -> Tensor:
        indices, captions = _draw_captioned(renders, by_view, draws.numpy)
        images = draw_images(renders, indices, draws.torch)
        x_0 = codec.encode(2.0 * images - 1.0).latent_dist.mode() * codec.config.scaling_factor
        t = torch.randint(len(alphas_cumprod), (BATCH_SIZE,), generator=draws.torch)
        eps = torch.randn(x_0.shape, generator=draws.torch)
        x_t = scheduler.add_noise(x_0, eps, t)
        x_0_pred = forward(x_t, t, _embed(model.text_encoder, tokenizer, captions)).sample
        snr = alphas_cumprod[t] / (1.0 - alphas_cumprod[t])
        return ((snr.clamp_max(MAX_SNR) + 1.0) * (x_0_pred - x_0).square().mean(dim=(1, 2, 3))).mean()

    yield from train(model, loss_of_batch, num_steps, LEARNING_RATE, work / "prior.pt", SEED, ema)
    save_prior(ema, codec, tokenizer, scheduler, out)


def save_prior(
    networks: TextToLatents, codec: PatchCodec, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler, out: Path
) -> None:
    """Write a diffusers pipeline folder, all weights as safetensors."""
    parts: dict[str, Any] = {
        "text_encoder": networks.text_encoder,
        "unet": networks.unet,
        "vae": codec,
        "tokenizer": tokenizer,
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(out, safe_serialization=True)


def _embed(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    tokens = tokenizer(captions, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt")
    return text_encoder(tokens.input_ids).last_hidden_state


def _indices_by_view(renders: Renders) -> dict[tuple[int, int, int], np.ndarray]:
    """Group image indices by (category, colour, view); frontless categories have one group, view -1."""
    keys = torch.stack([renders.category, renders.color, renders.view], dim=1).numpy()
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, (category, color, view) in enumerate(keys.tolist()):
        groups.setdefault((category, color, view), []).append(index)
    return {key: np.array(indices) for key, indices in groups.items()}


def _draw_captioned(
    renders: Renders, by_view: dict[tuple[int, int, int], np.ndarray], rng: np.random.Generator
) -> tuple[Int[Tensor, " batch"], list[str]]:
    weights = np.array(VIEW_WEIGHTS) / sum(VIEW_WEIGHTS)
    indices, captions = [], []
    for _ in range(BATCH_SIZE):
        category, color = int(rng.integers(len(CATEGORY_NAMES))), int(rng.integers(len(COLOR_NAMES)))
        view = int(rng.choice(len(VIEWS), p=weights)) if (category, color, 0) in by_view else -1
        indices.append(int(rng.choice(by_view[category, color, view])))
        named = None
        if rng.random() >= SILENT_SHARE:
            is_random = view < 0 or rng.random() < RANDOM_VIEW_SHARE
            named = VIEWS[int(rng.integers(len(VIEWS)))] if is_random else VIEWS[view]
        caption = make_caption(CATEGORY_NAMES[category], COLOR_NAMES[color], rng, named)
        captions.append("" if rng.random() < UNCONDITIONAL_SHARE else caption)
    return torch.tensor(indices), captions
