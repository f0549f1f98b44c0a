"""One open_clip model behind two calls, shared by retrieval, orientation and the CLIP score (Radford et al., 2021).

A model id is `mini:NAME` (the embedded miniature), a local folder in open_clip's form (`open_clip_config.json`, the
weights, and tokenizer files if it has its own), or `ARCH/PRETRAINED` such as `ViT-L-14/laion2b_s32b_b82k`, where
PRETRAINED is a tag of open_clip or a file of weights. `ViT-L-14` with openai's weights is spelt
`ViT-L-14-quickgelu/openai`: they were trained with QuickGELU, and scores drift without it. Images are square and in
[0, 1]; embeddings are float32 and L2-normalised, so that a dot product is a cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from redream.weights import clip_identity, weights_path

IMAGES_PER_BATCH = 64
TEXTS_PER_BATCH = 256


class Clip:
    """A frozen CLIP with its own tokenizer, image size, mean and std.

    `identity` names the weights, as `clip_identity` does.
    """

    def __init__(self, model_id: str, device: torch.device | str = "cpu") -> None:
        name, pretrained = _open_clip_name(model_id)
        self.model_id = model_id
        self.identity = clip_identity(model_id)
        self.device = torch.device(device)
        config = open_clip.get_model_config(name)
        assert config is not None
        self.embedding_dim: int = config["embed_dim"]
        self._model: Any = open_clip.create_model(name, pretrained, device=self.device, require_pretrained=True)
        self._model.eval().requires_grad_(False)
        self._tokenize = open_clip.get_tokenizer(name)
        preprocess = open_clip.get_model_preprocess_cfg(self._model)
        self.image_size = _square_size(preprocess["size"])  # side in pixels of the images that the model sees
        self._mean = torch.tensor(preprocess["mean"], device=self.device).view(3, 1, 1)
        self._std = torch.tensor(preprocess["std"], device=self.device).view(3, 1, 1)
        self._interpolation = transforms.InterpolationMode(preprocess["interpolation"])

    def to(self, device: torch.device | str) -> Clip:
        """Move to a device and return itself."""
        self.device = torch.device(device)
        self._model.to(self.device)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        return self

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> Float[Tensor, "texts dim"]:
        """Embed texts; each is cut at the model's context length."""
        batches = [texts[i : i + TEXTS_PER_BATCH] for i in range(0, len(texts), TEXTS_PER_BATCH)]
        embeddings = [
            self._model.encode_text(self._tokenize(batch).to(self.device), normalize=True) for batch in batches
        ]
        return torch.cat(embeddings).float() if embeddings else torch.zeros(0, self.embedding_dim, device=self.device)

    def embed_prompt(self, prompt: str) -> Float[np.ndarray, " dim"]:
        """Embed one text, for a search."""
        return self.embed_text([prompt])[0].cpu().numpy()

    @torch.no_grad()
    def embed_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Embed square images in [0, 1]; no gradient flows."""
        embeddings = [
            self._model.encode_image(self.preprocess(batch), normalize=True) for batch in images.split(IMAGES_PER_BATCH)
        ]
        return torch.cat(embeddings).float()

    def preprocess(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """Resize to the model's own size and normalise with its own mean and std."""
        if images.shape[-1] != images.shape[-2]:
            raise ValueError(
                f"CLIP gets an image of {images.shape[-1]}x{images.shape[-2]} pixels; it must be square, "
                "for open_clip's models differ in how they crop or squash others"
            )
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()  # so that the copy need not wait for what the GPU is doing
        images = images.to(self.device, torch.float32, non_blocking=True)
        if images.shape[-1] != self.image_size:
            # Bicubic weights are partly negative, so that the result can leave the range, which PIL clips as well.
            size = [self.image_size, self.image_size]
            images = transforms.resize(images, size, self._interpolation, antialias=True).clamp(0, 1)
        return (images - self._mean) / self._std


def _open_clip_name(model_id: str) -> tuple[str, str | None]:
    """Split a model id into open_clip's name and pretrained tag, or say what is wrong with it."""
    folder = Path(weights_path(model_id))
    if folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"CLIP model {model_id!r} has no open_clip_config.json; save it in open_clip's form")
        # Without weights open_clip would go on with random ones.
        if not any(any(folder.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin", ".pth")):
            raise ValueError(f"CLIP model {model_id!r} has no weights; it needs open_clip_model.safetensors")
        return f"local-dir:{folder}", None
    architecture, _, pretrained = model_id.partition("/")
    if architecture not in open_clip.list_models() or not pretrained:
        raise ValueError(
            f"unknown CLIP model {model_id!r}; name one as mini:NAME, as an existing local folder or as "
            "ARCH/PRETRAINED, such as ViT-L-14/laion2b_s32b_b82k"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(
            f"CLIP {architecture} has no weights {pretrained!r}; there are {', '.join(tags) or 'none'}, "
            "or name a file of weights"
        )
    return architecture, pretrained


def _square_size(size: int | tuple[int, int] | list[int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"this CLIP model wants images of {width}x{height} pixels; only square ones are supported")
    return height
