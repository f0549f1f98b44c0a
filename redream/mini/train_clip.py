"""Train the miniature's CLIP models: one for retrieval, two of other architectures and seeds for evaluation.

The loss is CLIP's (Radford et al. 2021) with several positives: a caption fits every image of the batch of which all
that it states is true, and the target spreads evenly over those: a world of 192 things fills a batch with repeats.
All views are equally likely here, and half of the captions name theirs truthfully. People do not write captions: in
half of the texts the words that matter stand anywhere, in any order, among invented words, so that the text tower finds
them in sentences it has never seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from redream.mini.catalog import CATEGORIES, COLORS, make_caption
from redream.mini.dataset import CATEGORY_NAMES, COLOR_NAMES, VIEWS, Renders, draw_images
from redream.mini.tokenization import CONTEXT_LENGTH, END_ID, PAD_ID, save_clip_tokenizer
from redream.mini.training import Draws, TrainStep, train

BATCH_SIZE = 96
LEARNING_RATE = 1e-3
VIEW_SHARE = 0.5  # of captions name the view
LOOSE_SHARE = 0.5  # of texts are loose words instead of a caption
MAX_INVENTED_WORDS = 10
_ONSETS = ("", "b", "br", "c", "ch", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "th", "w")
_RIMES = ("a", "ai", "e", "ea", "i", "o", "ou", "u", "ing", "er", "an")
_SYLLABLES = [onset + rime for onset in _ONSETS for rime in _RIMES]
VISION_TOWERS: dict[str, dict[str, Any]] = {
    "clip-retrieval": {"image_size": 64, "patch_size": 8, "width": 96, "layers": 3, "head_width": 32},
    "clip-eval-a": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},  # ModifiedResNet
    "clip-eval-b": {
        "image_size": 64,
        "patch_size": 16,
        "width": 128,
        "layers": 4,
        "head_width": 32,
        "pool_type": "avg",
    },
}
SEEDS = {"clip-retrieval": 21, "clip-eval-a": 22, "clip-eval-b": 23}


def train_clip(name: str, renders: Renders, num_steps: int, work: Path, out: Path) -> Iterator[TrainStep]:
    """Train one model and write it to `out` in open_clip's `local-dir:` form."""
    vocab_size = save_clip_tokenizer(out)
    text_tower = {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": vocab_size,
        "width": 96,
        "heads": 3,
        "layers": 2,
        "pool_type": "eos",
        "eos_id": END_ID,
        "pad_id": PAD_ID,
        "hf_tokenizer_name": "tokenizer",  # any name makes open_clip take the tokenizer of its own folder
    }
    model_cfg = {"embed_dim": 96, "quick_gelu": False, "vision_cfg": VISION_TOWERS[name], "text_cfg": text_tower}
    preprocess_cfg = {
        "size": 64,
        "mode": "RGB",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    settings = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (out / "open_clip_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}")
    torch.manual_seed(SEEDS[name])  # open_clip initialises from the global generator
    model = open_clip.CLIP(**model_cfg)
    truth = torch.stack([renders.category, renders.color, renders.view], dim=1)

    def loss_of_batch(draws: Draws) -> Tensor:
        indices = torch.randint(len(renders), (BATCH_SIZE,), generator=draws.torch)
        labels = truth[indices]
        captions, states_view = _captions(labels, draws.numpy)
        images = draw_images(renders, indices, draws.torch) * 2.0 - 1.0
        image_embeddings, text_embeddings, scale = model(images, tokenize(captions))
        return _contrastive_loss(scale * text_embeddings @ image_embeddings.T, _fits(labels, states_view))

    yield from train(model, loss_of_batch, num_steps, LEARNING_RATE, work / f"{name}.pt", SEEDS[name])
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, out / "weights.part")
    (out / "weights.part").replace(out / "open_clip_model.safetensors")


def _captions(labels: Int[Tensor, "batch 3"], rng: np.random.Generator) -> tuple[list[str], Tensor]:
    captions, states_view = [], []
    for category, color, view in labels.tolist():
        named = VIEWS[view] if view >= 0 and rng.random() < VIEW_SHARE else None
        describe = _loose_words if rng.random() < LOOSE_SHARE else make_caption
        captions.append(describe(CATEGORY_NAMES[category], COLOR_NAMES[color], rng, named))
        states_view.append(named is not None)
    return captions, torch.tensor(states_view)


def _loose_words(category: str, color: str, rng: np.random.Generator, view: str | None) -> str:
    """Return category, colour and view, or synonyms, in any order among invented words."""
    info = CATEGORIES[category]
    words = [str(rng.choice([category, *info.synonyms])), str(rng.choice([color, *COLORS[color].synonyms]))]
    words += [f"{view} view"] if view else []
    words += ["".join(rng.choice(_SYLLABLES, rng.integers(1, 4))) for _ in range(rng.integers(MAX_INVENTED_WORDS + 1))]
    return " ".join(words[i] for i in rng.permutation(len(words)))


def _fits(labels: Int[Tensor, "batch 3"], states_view: Tensor) -> Float[Tensor, "captions images"]:
    """Return 1 where all that the caption of the row states is true of the image of the column."""
    is_same = labels[:, None] == labels[None]  # [captions, images, 3]
    return (is_same[..., 0] & is_same[..., 1] & (is_same[..., 2] | ~states_view[:, None])).float()


def _contrastive_loss(logits: Float[Tensor, "captions images"], fits: Float[Tensor, "captions images"]) -> Tensor:
    by_caption = F.cross_entropy(logits, fits / fits.sum(dim=1, keepdim=True))
    by_image = F.cross_entropy(logits.T, fits.T / fits.T.sum(dim=1, keepdim=True))
    return 0.5 * (by_caption + by_image)
