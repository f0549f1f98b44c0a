"""What of a long prompt the text encoders do not read, said before a run starts.

Each encoder of CLIP's kind reads so many tokens and drops the rest without a word. The prior also reads a view prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from redream.settings import RunConfig
from redream.weights import weights_path

SHORT_BYTES = 24  # a token is a byte at least, so that what is not longer fits into every encoder behind a prefix
VIEW_PREFIX = "overhead view of"  # of the prefixes the longest


def cut_remarks(prompt: str, config: RunConfig) -> list[str]:
    """Return a line for each encoder that drops words of a prompt."""
    if len(prompt.encode()) <= SHORT_BYTES:
        return []
    lost: dict[str, list[str]] = {}
    for role, words in _lost_words(prompt, config).items():
        if words:
            lost.setdefault(words, []).append(role)
    return [f"the prompt is too long for {' and '.join(roles)}: {words!r} is not read" for words, roles in lost.items()]


def _lost_words(prompt: str, config: RunConfig) -> dict[str, str]:
    """Return the words that each text encoder of a run drops, by what it is used for."""
    from redream.retrieval.text_tower import open_tokenizer

    lost = {}
    num_prior, length = _prior_tokenizer(config.prior.model)
    prefixed = lost_words(prompt, lambda text: num_prior(f"{VIEW_PREFIX} {text}"), length)
    lost["the prior"] = prefixed
    models = {f"evaluation by {model}": model for model in config.evaluation.clip_models}
    if config.distill.method == "redream":
        models["retrieval"] = config.retrieval.clip_model
    for role, model in models.items():
        if (found := open_tokenizer(model)) is not None:
            tokenize, length = found
            lost[role] = lost_words(prompt, lambda text, tokenize=tokenize: len(tokenize(text)), length)
    return lost


def lost_words(prompt: str, num_tokens: Callable[[str], int], length: int) -> str:
    """Return the end of a prompt that does not fit into `length` tokens, from the first word that is cut."""
    words = prompt.split()
    fitting = next(n for n in range(len(words), -1, -1) if n == 0 or num_tokens(" ".join(words[:n])) <= length)
    return " ".join(words[fitting:])


def _prior_tokenizer(model: str) -> tuple[Callable[[str], int], int]:
    """Return what counts a text's tokens, ends included, and the number that the prior reads."""
    folder = Path(weights_path(model), "tokenizer")
    if not folder.is_dir():  # of the hub: Stable Diffusion has CLIP's own
        from redream.retrieval.text_tower import open_tokenizer

        found = open_tokenizer("ViT-L-14/openai")
        assert found is not None
        return lambda text: len(found[0](text)), found[1]
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return lambda text: len(tokenizer(text, verbose=False).input_ids), tokenizer.model_max_length
