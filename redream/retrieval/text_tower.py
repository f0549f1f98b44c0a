"""The text tower of an OpenCLIP model in NumPy: a search wants one vector, and torch alone takes seconds to import.

It knows the form that released CLIP models have (Radford et al., 2021): a causal transformer of pre-norm blocks whose
vector at the end token is projected. Whatever differs from that in any respect, and weights that are no safetensors at
hand, are for `clip.py`, whose vectors these equal but for rounding.
"""

from __future__ import annotations

import gzip
import html
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from redream.weights import clip_identity, weights_path

WEIGHTS = "open_clip_model.safetensors"
HUB = {"ViT-L-14/laion2b_s32b_b82k": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"}  # where open_clip keeps what we name
# open_clip's own defaults; a model with other settings is of another form.
TEXT_SETTINGS = {
    "context_length": 77, "vocab_size": 49_408, "width": 512, "heads": 8, "layers": 12, "pool_type": "argmax",
    "eos_id": 2, "pad_id": 0, "hf_tokenizer_name": "",
}  # fmt: skip
MODEL_SETTINGS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
TOKENIZER_SETTINGS = {
    "tokenizer_class", "backend", "pad_token", "bos_token", "eos_token", "unk_token", "model_max_length",
    "padding_side", "truncation_side",
}  # fmt: skip
LAYER_NORM_EPS = 1e-5
MAX_CONFIG_BYTES = 2**20
UNCUT = 100_000  # tokens, more than a prompt has
TOKENS_PER_BATCH = 4096
FEW_VALUES = 500_000
NUM_BYTES = 256  # the tokenizer's first symbols
NUM_MERGES = 49_152 - NUM_BYTES - 2

Tokenize = Callable[[str], list[int]]


class TextTower:
    """A frozen text tower on the CPU. `identity` and the vectors are those of `Clip` for the same model id."""

    def __init__(self, model_id: str, config: dict[str, Any], tokenize: Tokenize, weights: Any) -> None:
        text = {**TEXT_SETTINGS, **config["text_cfg"]}
        # Hashes gigabytes, beside what comes next.
        self._identity: Future[str] = ThreadPoolExecutor(1, thread_name_prefix="hash").submit(clip_identity, model_id)
        self.embedding_dim: int = config["embed_dim"]
        self._tokenize = tokenize
        self._num_layers: int = text["layers"]
        self._num_heads: int = text["heads"]
        self._end_token: int | None = text["eos_id"] if text["pool_type"] == "eos" else None
        self._activation = _quick_gelu if config.get("quick_gelu") else _gelu
        self._weights = weights

    @property
    def identity(self) -> str:
        """The model's name and the hash of its weights, as indexes have it."""
        return self._identity.result()

    def embed_prompt(self, prompt: str) -> Float[np.ndarray, " dim"]:
        """Embed a text, cut at the model's context length, as a unit vector of float32."""
        return self._embed([self._tokens(prompt)])[0]

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Embed many texts: those of about one length together, so that little is computed for nothing."""
        tokens = [self._tokens(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda row: len(tokens[row]))
        embeddings = np.zeros((len(texts), self.embedding_dim), np.float32)
        batch: list[int] = []
        for row in order:
            if batch and (len(batch) + 1) * len(tokens[row]) > TOKENS_PER_BATCH:
                embeddings[batch] = self._embed([tokens[i] for i in batch])
                batch = []
            batch.append(row)
        if batch:
            embeddings[batch] = self._embed([tokens[i] for i in batch])
        return embeddings

    def keep_weights(self) -> TextTower:
        """Hold all weights in memory from now on, for many texts; returns itself."""
        self._weight = lru_cache(maxsize=None)(self._weight)
        return self

    def _tokens(self, text: str) -> list[int]:
        tokens = self._tokenize(text)
        end_token = max(tokens) if self._end_token is None else self._end_token
        end = tokens.index(end_token) if end_token in tokens else 0
        return tokens[: end + 1]  # what comes behind the end does not reach it

    def _embed(self, tokens: Sequence[list[int]]) -> Float[np.ndarray, "texts dim"]:
        """Embed token lists; what fills up the shorter ones comes behind their ends and does not reach them."""
        longest = max(map(len, tokens))
        filled = np.array([row + row[-1:] * (longest - len(row)) for row in tokens])
        x = self._weight("token_embedding.weight")[filled] + self._weight("positional_embedding")[:longest]
        for layer in range(self._num_layers):
            block = f"transformer.resblocks.{layer}"
            x = x + self._attend(f"{block}.attn", self._norm(f"{block}.ln_1", x))
            hidden = self._activation(self._linear(f"{block}.mlp.c_fc", self._norm(f"{block}.ln_2", x)))
            x = x + self._linear(f"{block}.mlp.c_proj", hidden)
        ends = x[np.arange(len(tokens)), [len(row) - 1 for row in tokens]]
        embeddings = self._norm("ln_final", ends) @ self._weight("text_projection")
        return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)

    def _weight(self, name: str) -> Float[np.ndarray, "..."]:
        return self._weights.get_tensor(name).astype(np.float32, copy=False)  # read when it is needed

    def _linear(self, name: str, x: Float[np.ndarray, "*texts tokens in"]) -> Float[np.ndarray, "*texts tokens out"]:
        flat = x.reshape(-1, x.shape[-1]) @ self._weight(f"{name}.weight").T  # one product for all texts
        flat += self._weight(f"{name}.bias")
        return flat.reshape(*x.shape[:-1], -1)

    def _norm(self, name: str, x: Float[np.ndarray, "*tokens width"]) -> Float[np.ndarray, "*tokens width"]:
        centered = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.square(centered).mean(axis=-1, keepdims=True) + LAYER_NORM_EPS)
        return centered / scale * self._weight(f"{name}.weight") + self._weight(f"{name}.bias")

    def _attend(self, name: str, x: Float[np.ndarray, "texts tokens width"]) -> Float[np.ndarray, "texts tokens width"]:
        """Let each token look at itself and at those before it."""
        num_texts, num_tokens, width = x.shape
        mixed = x.reshape(-1, width) @ self._weight(f"{name}.in_proj_weight").T + self._weight(f"{name}.in_proj_bias")
        query, key, value = mixed.reshape(num_texts, num_tokens, 3, self._num_heads, -1).transpose(2, 0, 3, 1, 4)
        scores = query @ key.transpose(0, 1, 3, 2) * (width // self._num_heads) ** -0.5
        scores += np.triu(np.full((num_tokens, num_tokens), -np.inf, dtype=np.float32), k=1)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return self._linear(f"{name}.out_proj", (shares @ value).transpose(0, 2, 1, 3).reshape(x.shape))


def open_text_tower(model_id: str) -> TextTower | None:
    """Open the text tower of a CLIP model id (see `clip.py`), or return None where `Clip` has to be used."""
    found = _files(model_id)
    if found is None:
        return None
    config, path, folder = found
    if not _is_plain(config) or not path.is_file():
        return None
    text = {**TEXT_SETTINGS, **config["text_cfg"]}
    tokenize = _tokenizer(text, folder, text["context_length"])
    try:
        weights: Any = safe_open(path, framework="numpy")
    except SafetensorError:
        return None
    if tokenize is None or not _has_tensors(weights, _shapes(text, config["embed_dim"])):
        return None
    return TextTower(model_id, config, tokenize, weights)


def open_tokenizer(model_id: str) -> tuple[Tokenize, int] | None:
    """Return what splits a text into all of its tokens, ends included, and how many of them a CLIP model reads.

    None if the model's tokenizer is of another form.
    """
    folder: Path | None = Path(weights_path(model_id))
    if folder is not None and folder.is_dir():
        config = _read_json(folder / "open_clip_config.json").get("model_cfg")
    else:
        folder, architecture = None, model_id.partition("/")[0]
        config = _read_json(_open_clip_folder() / "model_configs" / f"{Path(architecture).name}.json")
    if not _is_plain(config):
        return None
    text = {**TEXT_SETTINGS, **config["text_cfg"]}
    tokenize = _tokenizer(text, folder, UNCUT)
    return None if tokenize is None else (tokenize, text["context_length"])


def _tokenizer(text: dict[str, Any], folder: Path | None, context_length: int) -> Tokenize | None:
    if not text["hf_tokenizer_name"] and text["vocab_size"] == TEXT_SETTINGS["vocab_size"]:
        return _clip_tokenizer(context_length)
    if text["hf_tokenizer_name"] and folder is not None and text["pool_type"] == "eos":  # a pad may be the greatest
        return _own_tokenizer(folder, context_length)
    return None


def _files(model_id: str) -> tuple[Any, Path, Path | None] | None:
    """Return a model's configuration, whatever it holds, its weights, and the folder that may have a tokenizer."""
    folder = Path(weights_path(model_id))
    if folder.is_dir():
        return _read_json(folder / "open_clip_config.json").get("model_cfg"), folder / WEIGHTS, folder
    architecture, _, pretrained = model_id.partition("/")
    weights = pretrained
    if model_id in HUB:
        from huggingface_hub import try_to_load_from_cache

        weights = try_to_load_from_cache(HUB[model_id], WEIGHTS)
    if not isinstance(weights, str) or not weights.endswith(".safetensors"):
        return None
    return _read_json(_open_clip_folder() / "model_configs" / f"{architecture}.json"), Path(weights), None


def _read_json(path: Path) -> dict[str, Any]:
    """Read an object; what is missing, too large or no object is an empty one."""
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_CONFIG_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_plain(config: Any) -> bool:
    """Tell whether a configuration, which may come from anybody, is of the form that is known here."""
    if not isinstance(config, dict) or not config.keys() <= MODEL_SETTINGS or type(config.get("embed_dim")) is not int:
        return False
    if not isinstance(config.get("text_cfg"), dict) or not config["text_cfg"].keys() <= TEXT_SETTINGS.keys():
        return False
    text = {**TEXT_SETTINGS, **config["text_cfg"]}
    if any(type(value) is not type(TEXT_SETTINGS[name]) for name, value in text.items()):
        return False
    are_sizes = all(text[name] > 0 for name in ("context_length", "vocab_size", "width", "heads"))
    is_whole = are_sizes and text["width"] % text["heads"] == 0 and 0 <= text["layers"] <= 1000
    return is_whole and text["pool_type"] in ("argmax", "eos")


def _shapes(text: dict[str, Any], embed_dim: int) -> dict[str, list[int]]:
    """Return the tensors of a text tower."""
    width = text["width"]
    shapes = {
        "token_embedding.weight": [text["vocab_size"], width],
        "positional_embedding": [text["context_length"], width],
        "ln_final.weight": [width],
        "ln_final.bias": [width],
        "text_projection": [width, embed_dim],
    }
    for layer in range(text["layers"]):
        block = f"transformer.resblocks.{layer}"
        shapes |= {f"{block}.{norm}.{part}": [width] for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        shapes |= {
            f"{block}.attn.in_proj_weight": [3 * width, width],
            f"{block}.attn.in_proj_bias": [3 * width],
            f"{block}.attn.out_proj.weight": [width, width],
            f"{block}.attn.out_proj.bias": [width],
            f"{block}.mlp.c_fc.weight": [4 * width, width],
            f"{block}.mlp.c_fc.bias": [4 * width],
            f"{block}.mlp.c_proj.weight": [width, 4 * width],
            f"{block}.mlp.c_proj.bias": [width],
        }
    return shapes


def _has_tensors(weights: Any, shapes: dict[str, list[int]]) -> bool:
    """Tell whether a file has these tensors, in a type that NumPy has, and no other block."""
    names = set(weights.keys())
    if not shapes.keys() <= names or any(name.startswith("transformer.") for name in names - shapes.keys()):
        return False
    slices = {name: weights.get_slice(name) for name in shapes}
    return all(part.get_shape() == shapes[name] and part.get_dtype() in ("F32", "F16") for name, part in slices.items())


def _open_clip_folder() -> Path:
    """Return where open_clip lies, without importing it, which would import torch."""
    spec = find_spec("open_clip")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _own_tokenizer(folder: Path, context_length: int) -> Tokenize | None:
    """Open a folder's `tokenizer.json`, if that is all there is to its tokenizer."""
    from tokenizers import Tokenizer

    settings = _read_json(folder / "tokenizer_config.json")
    is_plain = settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    sides = {settings.get(side, "right") for side in ("padding_side", "truncation_side")}
    if not is_plain or not settings.keys() <= TOKENIZER_SETTINGS or sides != {"right"}:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(context_length)
    except Exception:  # the library raises no other
        return None
    return lambda text: tokenizer.encode(_cleaned(text)).ids


def _clip_tokenizer(context_length: int) -> Tokenize:
    """Build CLIP's tokenizer of byte pairs from the vocabulary that open_clip carries."""
    import regex
    from tokenizers import Tokenizer, models, pre_tokenizers

    lines = gzip.decompress((_open_clip_folder() / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = [(first, second) for first, second in map(str.split, lines[1 : NUM_MERGES + 1])]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(code) for code in (*printable, *range(NUM_BYTES, 2 * NUM_BYTES - len(printable)))]
    start, end = "<start_of_text>", "<end_of_text>"
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges), start, end]
    vocabulary = {word: number for number, word in enumerate(words)}
    pairs = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = regex.compile(
        rf"{start}|{end}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
    )

    def tokenize(text: str) -> list[int]:
        inner: list[int] = []
        for piece in pieces.findall(_cleaned(text).lower()):
            inner += [vocabulary[piece]] if piece in (start, end) else pairs.encode(piece).ids
        return [vocabulary[start], *inner[: context_length - 2], vocabulary[end]]

    return tokenize


def _cleaned(text: str) -> str:
    """Mend broken encodings and entities and single out spaces, as open_clip does."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _gelu(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    if x.size > FEW_VALUES:
        from scipy.special import erf  # its import takes as long as some thousands of values by Python's own
    else:
        erf = np.vectorize(math.erf, otypes=[np.float32])
    return 0.5 * x * (1.0 + erf(x * 2.0**-0.5))


def _quick_gelu(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return 0.5 * x * (1.0 + np.tanh(0.851 * x))  # x times the logistic function of 1.702 x
