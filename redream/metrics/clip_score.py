"""CLIP score: how well renders show the prompt (Sec. 4; Table 1 gives the mean over 120 orbit views).

The cosine between the prompt's text embedding and each view's image embedding, in [-1, 1], higher is better. Neither
rescaled by 100 nor clipped at 0, as other definitions do. Scores of different CLIP models do not compare.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from redream.clip import Clip


@torch.no_grad()
def clip_score(images: Float[Tensor, "batch 3 height width"], prompt: str, clip: Clip) -> Float[Tensor, " batch"]:
    """Return each view's cosine with the prompt, higher is better; their mean is the paper's CLIP score."""
    return clip.embed_images(images) @ clip.embed_text([prompt])[0]
