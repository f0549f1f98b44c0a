"""View-dependent prompts: a view prefix before the caption, [e_psi ; c] of Eq. 5.

Before adaptation a prefix is the words "front view of". Adaptation replaces those by learned tokens, which start at
the embeddings of their words and are used, like any textual inversion, by writing their names into the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from redream.cameras import Camera, camera_angles, view_name
from redream.devices import send
from redream.settings import CameraConfig

VIEW_NAMES = ("front", "side", "back", "overhead")


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """One prompt's embeddings: with each view's prefix, without any, and the empty prompt's."""

    by_view: Float[Tensor, "views length dim"]  # in the order of VIEW_NAMES
    plain: Float[Tensor, "1 length dim"]
    uncond: Float[Tensor, "1 length dim"]

    def cond(self, view_names: list[str]) -> Float[Tensor, "batch length dim"]:
        return self.by_view[_view_indices(view_names, self.by_view.device)]


def prefix_words(view: str) -> str:
    return f"{view} view of"


def camera_views(camera: Camera, config: CameraConfig) -> list[str]:
    """Name the view of every camera of a batch."""
    azimuth, elevation, _ = camera_angles(camera)
    return [view_name(a, e, config) for a, e in zip(azimuth.tolist(), elevation.tolist(), strict=True)]


class ViewPrefixes(nn.Module):
    """The learned prefixes: as many tokens for each view as its words have."""

    def __init__(self, embeds: Float[Tensor, "views tokens dim"]) -> None:
        super().__init__()
        self.embeds = nn.Parameter(embeds)

    @classmethod
    def of_words(cls, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> ViewPrefixes:
        """Start at the embeddings of the words."""
        ids = [_word_ids(tokenizer, prefix_words(view)) for view in VIEW_NAMES]
        longest = max(map(len, ids))
        # A shorter prefix is filled up at its end with its last word ("of"), which changes nothing of its meaning.
        padded = torch.tensor([row + row[-1:] * (longest - len(row)) for row in ids])
        with torch.no_grad():
            return cls(text_encoder.get_input_embeddings()(padded.to(text_encoder.device)).float())


def embed_prompts(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompts: list[str],
    view_names: list[str] | None = None,
    prefixes: ViewPrefixes | None = None,
) -> Float[Tensor, "batch length dim"]:
    """Encode prompts, each behind its view's prefix where `view_names` are given; gradients reach `prefixes`."""
    device, length = text_encoder.device, tokenizer.model_max_length
    if view_names is None:
        return text_encoder(send(_tokenize(tokenizer, prompts, length), device)).last_hidden_state
    if prefixes is None:
        worded = [f"{prefix_words(view)} {prompt}" for view, prompt in zip(view_names, prompts, strict=True)]
        return text_encoder(send(_tokenize(tokenizer, worded, length), device)).last_hidden_state
    learned = prefixes.embeds[_view_indices(view_names, prefixes.embeds.device)]  # [B, tokens, dim]
    num_tokens = learned.shape[1]
    # Cut to what the prefix leaves, so that the end token is in the row whatever the tokenizer fills rows up with.
    ids = _tokenize(tokenizer, prompts, length - num_tokens)
    ids = torch.cat([ids[:, :1], ids[:, :1].expand(-1, num_tokens), ids[:, 1:]], dim=1)  # room behind the start token

    def put_prefixes(_module: nn.Module, _arguments: tuple[Tensor], embeds: Tensor) -> Tensor:
        return torch.cat([embeds[:, :1], learned.to(embeds.dtype), embeds[:, 1 + num_tokens :]], dim=1)

    hook = text_encoder.get_input_embeddings().register_forward_hook(put_prefixes)
    try:
        return text_encoder(send(ids, device)).last_hidden_state
    finally:
        hook.remove()


def _view_indices(view_names: list[str], device: torch.device) -> Int[Tensor, " views"]:
    # Indexing by the list itself would wait for a GPU.
    return send(torch.tensor([VIEW_NAMES.index(name) for name in view_names]), device)


def _tokenize(tokenizer: CLIPTokenizer, prompts: list[str], length: int) -> Int[Tensor, "batch length"]:
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def _word_ids(tokenizer: CLIPTokenizer, words: str) -> list[int]:
    return tokenizer(words, add_special_tokens=False).input_ids
