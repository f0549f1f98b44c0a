"""What the index sees of an asset."""

from __future__ import annotations

import torch

from index_build.views import index_cameras, render_index_views
from redream.assets import Asset
from redream.cameras import camera_angles


def test_views_go_round_the_asset_evenly_and_start_in_front():
    azimuth, elevation, distance = camera_angles(index_cameras(6, 16))
    torch.testing.assert_close(azimuth % 360, torch.arange(6) * 60.0, atol=1e-3, rtol=0)
    assert elevation.std() < 1e-3 and distance.std() < 1e-5


def test_every_view_shows_the_whole_asset_before_white(assets: list[Asset]):
    for asset in assets:
        images = render_index_views(asset, index_cameras(4, 32))
        assert images.shape == (4, 3, 32, 32)
        assert images.min() >= 0 and images.max() <= 1
        border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=-1)
        torch.testing.assert_close(border, torch.ones_like(border))
        assert (images < 0.95).any(dim=1).flatten(1).sum(dim=1).min() > 20
