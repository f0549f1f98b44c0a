"""Train the miniature's CLIP models: one for retrieval, two of other architectures and seeds for evaluation.

The loss is CLIP's (Radford et al. 2021) with several positives: a caption fits every image of the batch of which all
that it states is true, and the target spreads evenly over those: a world of 192 things fills a batch with repeats.
All views are equally likely here, and half of the captions name theirs truthfully. People do not write captions: in
half of the texts the words that matter stand anywhere, in any order, among invented words, so that the text tower finds
them in sentences it has never seen.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from redream.mini.catalog import CATEGORIES, COLORS, make_caption, vocabulary
from redream.mini.dataset import CATEGORY_NAMES, COLOR_NAMES, VIEWS, Renders, draw_images
from redream.mini.tokenization import CLIP_CONTEXT_LENGTH, END_ID, PAD_ID, save_clip_tokenizer
from redream.mini.training.loop import Draws, TrainStep, train

BATCH_SIZE = 96
IMAGES_PER_PAIR = 4  # of a batch are of the same category and colour, so that views have rivals to be told from
LEARNING_RATE = 1e-3
VIEW_SHARE = 0.5  # of captions name the view
LOOSE_SHARE = 0.5  # of texts are loose words instead of a caption
MAX_OTHER_WORDS = 10
FUNCTION_WORDS = (  # noqa: SIM905
    "the of and to in that is for it with as on at by this from my me his her our your their we you one be or who "
    "which what when where into over near not but all very some two three old new big little made looks like"
).split()
_ONSETS = ("", "b", "br", "c", "ch", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "th", "w")
_RIMES = ("a", "ai", "e", "ea", "i", "o", "ou", "u", "ing", "er", "an")
_SYLLABLES = [onset + rime for onset in _ONSETS for rime in _RIMES]
_CAPTION_WORDS = vocabulary()
OtherWord = Callable[[np.random.Generator], str]
VISION_TOWERS: dict[str, dict[str, Any]] = {
    "clip-retrieval": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},  # ModifiedResNet
    "clip-eval-a": {"image_size": 64, "patch_size": 8, "width": 96, "layers": 3, "head_width": 32},
    "clip-eval-b": {
        "image_size": 64,
        "patch_size": 16,
        "width": 128,
        "layers": 4,
        "head_width": 32,
        "pool_type": "avg",
    },
}
NUM_TEXT_STEPS = {"clip-retrieval": 3_000}  # with the image tower locked
TEXT_BATCH_SIZE = 192
TEXT_LEARNING_RATE = 5e-4
TEXT_LOOSE_SHARE = 0.7
RELATIVE_FIT = 0.1  # of an image of the caption's category where the rest does not fit
NUM_ENGLISH_WORDS = 15_000
SEEDS = {"clip-retrieval": 21, "clip-eval-a": 22, "clip-eval-b": 23}


def train_clip(name: str, renders: Renders, num_steps: int, work: Path, out: Path) -> Iterator[TrainStep]:
    """Train one model and write it to `out` in open_clip's `local-dir:` form."""
    vocab_size = save_clip_tokenizer(out)
    text_tower = {
        "context_length": CLIP_CONTEXT_LENGTH,
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
    model = open_clip.CLIP(**model_cfg).to(memory_format=torch.channels_last)
    truth = torch.stack([renders.category, renders.color, renders.view], dim=1)
    of_pair = _indices_by_pair(renders)

    def loss_of_batch(draws: Draws) -> Tensor:
        pairs = torch.randint(len(of_pair), (BATCH_SIZE // IMAGES_PER_PAIR,), generator=draws.torch)
        chosen = torch.randint(of_pair.shape[1], (len(pairs), IMAGES_PER_PAIR), generator=draws.torch)
        indices = of_pair[pairs[:, None], chosen].flatten()
        labels = truth[indices]
        captions, states_view = _captions(labels, draws.numpy, LOOSE_SHARE, _made_up_word)
        images = draw_images(renders, indices, draws.torch) * 2.0 - 1.0
        image_embeddings, text_embeddings, scale = model(images, tokenize(captions))
        return _contrastive_loss(scale * text_embeddings @ image_embeddings.T, _fits(labels, states_view))

    yield from train(model, loss_of_batch, num_steps, LEARNING_RATE, work / f"{name}.pt", SEEDS[name])
    if name in NUM_TEXT_STEPS:
        yield from _tune_text(
            model, tokenize, renders, truth, NUM_TEXT_STEPS[name], work / f"{name}-text.pt", SEEDS[name]
        )
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, out / "weights.part")
    (out / "weights.part").replace(out / "open_clip_model.safetensors")


def _tune_text(
    model: Any,
    tokenize: Any,
    renders: Renders,
    truth: Int[Tensor, "num 3"],
    num_steps: int,
    checkpoint: Path,
    seed: int,
) -> Iterator[TrainStep]:
    """Train the text tower against image embeddings that stay as they are; continues a killed training."""
    model.visual.requires_grad_(False)
    model.eval()  # nothing but the batch statistics of the image tower knows the difference
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        embedded = torch.cat(
            [
                model.encode_image(draw_images(renders, indices, generator) * 2.0 - 1.0, normalize=True)
                for indices in torch.arange(len(renders)).split(TEXT_BATCH_SIZE)
            ]
        )

    def loss_of_batch(draws: Draws) -> Tensor:
        indices = torch.randint(len(renders), (TEXT_BATCH_SIZE,), generator=draws.torch)
        labels = truth[indices]
        captions, states_view = _captions(labels, draws.numpy, TEXT_LOOSE_SHARE, _english_word)
        text_embeddings = model.encode_text(tokenize(captions), normalize=True)
        logits = model.logit_scale.exp() * text_embeddings @ embedded[indices].T
        is_category = (labels[:, None, 0] == labels[None, :, 0]).float()
        fits = torch.maximum(_fits(labels, states_view), RELATIVE_FIT * is_category)
        return _contrastive_loss(logits, fits)

    yield from train(model, loss_of_batch, num_steps, TEXT_LEARNING_RATE, checkpoint, seed)


def _indices_by_pair(renders: Renders) -> Int[Tensor, "pairs images"]:
    """Return the images of each (category, colour); all pairs have as many."""
    pair = renders.category * len(COLOR_NAMES) + renders.color
    return pair.argsort(stable=True).reshape(int(pair.max()) + 1, -1)


def _captions(
    labels: Int[Tensor, "batch 3"], rng: np.random.Generator, loose_share: float, other_word: OtherWord
) -> tuple[list[str], Tensor]:
    captions, states_view = [], []
    for category, color, view in labels.tolist():
        named = VIEWS[view] if view >= 0 and rng.random() < VIEW_SHARE else None
        describe = partial(_loose_words, other_word=other_word) if rng.random() < loose_share else make_caption
        captions.append(describe(CATEGORY_NAMES[category], COLOR_NAMES[color], rng, named))
        states_view.append(named is not None)
    return captions, torch.tensor(states_view)


def _loose_words(category: str, color: str, rng: np.random.Generator, view: str | None, other_word: OtherWord) -> str:
    """Return category, colour and view, or synonyms, in any order among other words."""
    info = CATEGORIES[category]
    words = [str(rng.choice([category, *info.synonyms])), str(rng.choice([color, *COLORS[color].synonyms]))]
    words += [f"{view} view"] if view else []
    words += [other_word(rng) for _ in range(rng.integers(MAX_OTHER_WORDS + 1))]
    return " ".join(words[i] for i in rng.permutation(len(words)))


def _made_up_word(rng: np.random.Generator) -> str:
    """Return a function word, or a made-up one, which may begin as a word of the captions does."""
    if rng.random() < 0.4:
        return str(rng.choice(FUNCTION_WORDS))
    beginning = ""
    if rng.random() < 0.3:
        beginning = str(rng.choice(_CAPTION_WORDS))[: rng.integers(2, 6)]
    return beginning + "".join(rng.choice(_SYLLABLES, rng.integers(1, 3)))


def _english_word(rng: np.random.Generator) -> str:
    """Return a word that says nothing of this world, frequent ones more often."""
    words = _english_words()
    return words[int(len(words) * rng.random() ** 3)]


@cache
def _english_words() -> list[str]:
    """Return the whole words among CLIP's merges, which are ordered by frequency, without those of the captions."""
    file = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        merges = lines.read().splitlines()[1:]
    words = ["".join(merge.split()).removesuffix("</w>") for merge in merges if merge.endswith("</w>")]
    known = {*_CAPTION_WORDS, *(f"{word}s" for word in _CAPTION_WORDS)}
    return [word for word in words if word.isascii() and word.isalpha() and word not in known][:NUM_ENGLISH_WORDS]


def _fits(labels: Int[Tensor, "batch 3"], states_view: Tensor) -> Float[Tensor, "captions images"]:
    """Return 1 where all that the caption of the row states is true of the image of the column."""
    is_same = labels[:, None] == labels[None]  # [captions, images, 3]
    return (is_same[..., 0] & is_same[..., 1] & (is_same[..., 2] | ~states_view[:, None])).float()


def _contrastive_loss(logits: Float[Tensor, "captions images"], fits: Float[Tensor, "captions images"]) -> Tensor:
    by_caption = F.cross_entropy(logits, fits / fits.sum(dim=1, keepdim=True))
    by_image = F.cross_entropy(logits.T, fits.T / fits.T.sum(dim=1, keepdim=True))
    return 0.5 * (by_caption + by_image)
