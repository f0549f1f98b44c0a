"""Laws of the CLIP score, on a tiny random model."""

from __future__ import annotations

from pathlib import Path

import torch

from redream.clip import Clip
from redream.metrics.clip_score import clip_score


def test_scores_are_cosines_one_per_view(tiny_clip_folder: Path, generator: torch.Generator):
    clip = Clip(str(tiny_clip_folder))
    images = torch.rand(5, 3, 16, 16, generator=generator)
    scores = clip_score(images, "a red car", clip)
    image, text = clip.embed_images(images), clip.embed_text(["a red car"])
    torch.testing.assert_close(scores, torch.nn.functional.cosine_similarity(image, text))
    assert scores.shape == (5,) and (scores.abs() <= 1 + 1e-6).all()


def test_each_view_is_scored_on_its_own(tiny_clip_folder: Path, generator: torch.Generator):
    clip = Clip(str(tiny_clip_folder))
    images = torch.rand(4, 3, 16, 16, generator=generator)
    alone = torch.cat([clip_score(image[None], "an owl", clip) for image in images])
    torch.testing.assert_close(clip_score(images, "an owl", clip), alone, atol=1e-5, rtol=0)
