"""The text tower of an OpenCLIP model in NumPy: a search wants one vector, and torch alone takes seconds to import.

It knows the form that released CLIP models have (Radford et al., 2021): a causal transformer of pre-norm blocks whose
vector at the end token is projected. Any other model, and weights that are no safetensors at hand, are for `clip.py`,
whose vectors these equal but for rounding.
"""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from redream.weights import clip_identity, weights_path

WEIGHTS = "open_clip_model.safetensors"
HUB = {"ViT-L-14/laion2b_s32b_b82k": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"}  # where open_clip keeps what we name
KNOWN_SETTINGS = {
    "context_length", "vocab_size", "width", "heads", "layers", "pool_type", "eos_id", "pad_id", "hf_tokenizer_name",
}  # fmt: skip
LAYER_NORM_EPS = 1e-5
MAX_CONFIG_BYTES = 2**20
NUM_BYTES = 256  # the tokenizer's first symbols
NUM_MERGES = 49_152 - NUM_BYTES - 2

Tokenize = Callable[[str], list[int]]


class TextTower:
    """A frozen text tower on the CPU. `identity` and the vectors are those of `Clip` for the same model id."""

    def __init__(self, model_id: str, config: dict[str, Any], tokenize: Tokenize, weights: Any) -> None:
        text = config["text_cfg"]
        self.model_id = model_id
        self.embedding_dim: int = config["embed_dim"]
        # Hashes gigabytes, beside what comes next.
        self._identity: Future[str] = ThreadPoolExecutor(1, thread_name_prefix="hash").submit(clip_identity, model_id)
        self._tokenize = tokenize
        self._num_heads: int = text.get("heads", 8)
        self._end_token: int | None = text.get("eos_id", 2) if text.get("pool_type") == "eos" else None
        self._activation = _quick_gelu if config.get("quick_gelu") else _gelu
        self._num_layers: int = text.get("layers", 12)
        self._weights = weights

    @property
    def identity(self) -> str:
        """The model's name and the hash of its weights, as indexes have it."""
        return self._identity.result()

    def embed_prompt(self, prompt: str) -> Float[np.ndarray, " dim"]:
        """Embed a text, cut at the model's context length, as a unit vector."""
        tokens = self._tokenize(prompt)
        end = tokens.index(max(tokens) if self._end_token is None else self._end_token)
        tokens = tokens[: end + 1]  # what comes behind the end does not reach it
        x = self._weight("token_embedding.weight")[tokens] + self._weight("positional_embedding")[: len(tokens)]
        for layer in range(self._num_layers):
            block = f"transformer.resblocks.{layer}"
            x = x + self._attend(f"{block}.attn", self._norm(f"{block}.ln_1", x))
            hidden = self._activation(self._linear(f"{block}.mlp.c_fc", self._norm(f"{block}.ln_2", x)))
            x = x + self._linear(f"{block}.mlp.c_proj", hidden)
        embedding = self._norm("ln_final", x)[-1] @ self._weight("text_projection")
        return embedding / np.linalg.norm(embedding)

    def _weight(self, name: str) -> Float[np.ndarray, "..."]:
        return self._weights.get_tensor(name).astype(np.float32, copy=False)  # read when it is needed

    def _linear(self, name: str, x: Float[np.ndarray, "tokens in"]) -> Float[np.ndarray, "tokens out"]:
        return x @ self._weight(f"{name}.weight").T + self._weight(f"{name}.bias")

    def _norm(self, name: str, x: Float[np.ndarray, "tokens width"]) -> Float[np.ndarray, "tokens width"]:
        centered = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.square(centered).mean(axis=-1, keepdims=True) + LAYER_NORM_EPS)
        return centered / scale * self._weight(f"{name}.weight") + self._weight(f"{name}.bias")

    def _attend(self, name: str, x: Float[np.ndarray, "tokens width"]) -> Float[np.ndarray, "tokens width"]:
        """Let each token look at itself and at those before it."""
        num_tokens, width = x.shape
        mixed = x @ self._weight(f"{name}.in_proj_weight").T + self._weight(f"{name}.in_proj_bias")
        query, key, value = mixed.reshape(num_tokens, 3, self._num_heads, -1).transpose(1, 2, 0, 3)
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        scores += np.triu(np.full((num_tokens, num_tokens), -np.inf, dtype=np.float32), k=1)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return self._linear(f"{name}.out_proj", (shares @ value).transpose(1, 0, 2).reshape(num_tokens, width))


def open_text_tower(model_id: str) -> TextTower | None:
    """Open the text tower of a CLIP model id (see `clip.py`), or return None where `Clip` has to be used."""
    found = _files(model_id)
    if found is None:
        return None
    config, weights, tokenizer = found
    text = config.get("text_cfg", {})
    is_plain = text.keys() <= KNOWN_SETTINGS and text.get("pool_type", "argmax") in ("argmax", "eos")
    if not is_plain or config.get("custom_text") or "multimodal_cfg" in config or not weights.is_file():
        return None
    context_length = text.get("context_length", 77)
    if not text.get("hf_tokenizer_name"):
        tokenize = _clip_tokenizer(context_length)
    elif tokenizer is not None:
        tokenize = _own_tokenizer(tokenizer, context_length)
    else:
        return None
    try:
        opened = safe_open(weights, framework="numpy")
    except SafetensorError:
        return None
    types = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    is_readable = types <= {"F32", "F16", "I64"} and "token_embedding.weight" in opened.keys()  # noqa: SIM118
    return TextTower(model_id, config, tokenize, opened) if is_readable else None


def _files(model_id: str) -> tuple[dict[str, Any], Path, Path | None] | None:
    """Return a model's configuration, its weights, and its tokenizer where it has one of its own."""
    folder = Path(weights_path(model_id))
    if folder.is_dir():
        path = folder / "open_clip_config.json"
        if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            return None
        tokenizer = folder / "tokenizer.json"
        config = json.loads(path.read_text()).get("model_cfg", {})
        return config, folder / WEIGHTS, tokenizer if _is_plain_tokenizer(folder) else None
    architecture, _, pretrained = model_id.partition("/")
    path = _open_clip_folder() / "model_configs" / f"{architecture}.json"
    weights = pretrained
    if model_id in HUB:
        from huggingface_hub import try_to_load_from_cache

        weights = try_to_load_from_cache(HUB[model_id], WEIGHTS)
    if not isinstance(weights, str) or not weights.endswith(".safetensors") or not path.is_file():
        return None
    return json.loads(path.read_text()), Path(weights), None


def _is_plain_tokenizer(folder: Path) -> bool:
    """Tell whether a folder's `tokenizer.json` is all there is to its tokenizer."""
    path = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file() or not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        return False
    return json.loads(path.read_text()).get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")


def _open_clip_folder() -> Path:
    """Return where open_clip lies, without importing it, which would import torch."""
    spec = find_spec("open_clip")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _own_tokenizer(path: Path, context_length: int) -> Tokenize:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(context_length)
    return lambda text: tokenizer.encode(_cleaned(text)).ids


def _clip_tokenizer(context_length: int) -> Tokenize:
    """Build CLIP's tokenizer of byte pairs from the vocabulary that open_clip carries."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    lines = gzip.decompress((_open_clip_folder() / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = [(first, second) for first, second in map(str.split, lines[1 : NUM_MERGES + 1])]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(code) for code in (*printable, *range(NUM_BYTES, 2 * NUM_BYTES - len(printable)))]
    start, end = "<start_of_text>", "<end_of_text>"
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges), start, end]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    pieces = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([start, end])

    def tokenize(text: str) -> list[int]:
        inner = tokenizer.encode(_cleaned(text).lower()).ids[: context_length - 2]
        return [vocabulary[start], *inner, vocabulary[end]]

    return tokenize


def _cleaned(text: str) -> str:
    """Mend broken encodings and entities and single out spaces, as open_clip does."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _gelu(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    from scipy.special import erf

    return 0.5 * x * (1.0 + erf(x / np.sqrt(np.float32(2.0))))


def _quick_gelu(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return x / (1.0 + np.exp(-1.702 * x))
