"""The two embeddings of an asset: its caption's, and the mean of its views', both L2-normalised (ReDream, Sec. 5.1)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from redream.assets import Asset
from redream.clip import Clip


def embed_captions(assets: list[Asset], clip: Clip) -> Float[Tensor, "assets dim"]:
    return clip.embed_text([asset.caption for asset in assets])


def embed_views(images: Float[Tensor, "views 3 height width"], clip: Clip) -> Float[Tensor, " dim"]:
    """Embed an asset by the mean of its views: the direction nearest to all of them on average."""
    return torch.nn.functional.normalize(clip.embed_images(images).mean(dim=0), dim=0)
