"""Byte-pair tokenizers of the miniature, trained on its captions, in the two forms that its models' libraries load.

Both fall back to bytes, so no text is ever unknown. `save_clip_tokenizer` writes what open_clip loads beside its
weights; `prior_tokenizer` builds a `CLIPTokenizer` as Stable Diffusion has.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer

from redream.mini.catalog import CATEGORIES, COLORS, make_caption, vocabulary

CONTEXT_LENGTH = 32  # tokens of the prior; the longest caption with a view prefix has fewer
CLIP_CONTEXT_LENGTH = 48  # words that captions lack fall into several tokens
WORD_END = "</w>"
PAD_ID, START_ID, END_ID = 0, 1, 2
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def caption_corpus(num_captions: int = 8_000, seed: int = 0) -> list[str]:
    """Return captions over all pairs and views, and every word of the vocabulary often enough to become one token."""
    rng = np.random.default_rng(seed)
    views = (None, None, "front", "side", "back", "overhead")
    captions = [
        make_caption(str(rng.choice(list(CATEGORIES))), str(rng.choice(list(COLORS))), rng, views[rng.integers(6)])
        for _ in range(num_captions)
    ]
    return captions + [f"a {word}" for word in vocabulary() for _ in range(20)]


def save_clip_tokenizer(folder: Path) -> int:
    """Write `tokenizer.json` and its config for open_clip's `local-dir:` form and return the vocabulary's size."""
    tokens, merges = _learn_merges(vocab_size=1_200)
    vocabulary_of_clip = {token: index for index, token in enumerate(["<pad>", "<start>", "<end>", *tokens])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary_of_clip, merges=merges, end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.add_special_tokens(["<pad>", "<start>", "<end>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START_ID), ("<end>", END_ID)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        # Written by hand: the class name that transformers 5 writes does not load in 4.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<start>",
        "eos_token": "<end>",
        "model_max_length": CLIP_CONTEXT_LENGTH,
        "padding_side": "right",
        "truncation_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer.get_vocab_size()


def prior_tokenizer() -> CLIPTokenizer:
    """Build CLIP's own kind of vocabulary: bytes, bytes that end a word, merges, two specials."""
    tokens, merges = _learn_merges(vocab_size=1_200)
    tokens = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as scratch:
        vocab_file, merges_file = Path(scratch) / "vocab.json", Path(scratch) / "merges.txt"
        vocab_file.write_text(json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False))
        merges_file.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
        return CLIPTokenizer.from_pretrained(scratch, model_max_length=CONTEXT_LENGTH)


def _learn_merges(vocab_size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Return tokens (bytes, bytes that end a word, and what merges make of them) and merges, learnt from the captions.

    The mark at a word's end keeps "car" apart from the beginning of "carry".
    """
    trained = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trained.train_from_iterator(
        caption_corpus(),
        trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, end_of_word_suffix=WORD_END),
    )
    pairs = [(first, second) for first, second in json.loads(trained.to_str())["model"]["merges"]]
    tokens = _ALPHABET + [f"{byte}{WORD_END}" for byte in _ALPHABET]
    tokens += list(dict.fromkeys("".join(pair) for pair in pairs if "".join(pair) not in tokens))
    return tokens, pairs
