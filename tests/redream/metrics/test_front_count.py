"""Laws of the count of false fronts, with a judge that knows one thing: bright images are fronts."""

from __future__ import annotations

import pytest
import torch

from redream.metrics.front_count import wrong_front_share
from redream.metrics.perceptual import PerceptualConfig, PerceptualNet

AZIMUTH = torch.tensor([0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0])  # behind: 135, 180, 225


@pytest.fixture(scope="module")
def judge() -> PerceptualNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = PerceptualNet(PerceptualConfig(channels=(8, 8), views=("back", "side", "front")))
        images = torch.cat([torch.full((4, 3, 8, 8), value) for value in (0.1, 0.9)])
        labels = torch.tensor([0] * 4 + [2] * 4)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images).view, labels).backward()
            optimizer.step()
    return net.eval()


def views(bright: list[bool]) -> torch.Tensor:
    return torch.stack([torch.full((3, 8, 8), 0.9 if b else 0.1) for b in bright])


def test_fronts_seen_from_the_front_and_the_sides_are_not_counted(judge: PerceptualNet):
    assert wrong_front_share(views([True, True, True, False, False, False, True, True]), AZIMUTH, judge) == 0.0


def test_the_share_is_of_the_views_from_behind(judge: PerceptualNet):
    assert wrong_front_share(views([False, False, False, True, False, True, False, False]), AZIMUTH, judge) == 2 / 3


def test_angles_count_modulo_a_full_turn(judge: PerceptualNet):
    images = views([False, False, False, True, False, False, False, False])
    for turns in (-360.0, 360.0, 720.0):
        assert wrong_front_share(images, AZIMUTH + turns, judge) == 1 / 3


def test_views_from_the_front_only_are_refused(judge: PerceptualNet):
    with pytest.raises(ValueError, match="from behind"):
        wrong_front_share(views([True]), torch.tensor([0.0]), judge)
