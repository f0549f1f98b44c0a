"""The embeddings that an index is made of."""

from __future__ import annotations

import torch

from index_build.embeddings import embed_captions, embed_views
from redream.assets import Asset
from redream.clip import Clip


def test_an_asset_is_the_normalised_mean_of_its_views_in_any_order(clip: Clip):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    embedding = embed_views(images, clip)
    mean = clip.embed_images(images).mean(dim=0)
    torch.testing.assert_close(embedding, mean / mean.norm())
    torch.testing.assert_close(embed_views(images.flip(0), clip), embedding)


def test_an_asset_of_one_view_is_that_view(clip: Clip):
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(embed_views(image, clip), clip.embed_images(image)[0])


def test_captions_are_embedded_in_the_order_of_the_assets(clip: Clip, assets: list[Asset]):
    embeddings = embed_captions(assets, clip)
    torch.testing.assert_close(embeddings[1], clip.embed_text([assets[1].caption])[0])
