"""Laws of LPIPS and A-LPIPS, on random networks; the calibrated channel weights come with the lpips package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import alexnet
from torchvision.models.vgg import cfgs, make_layers

from redream.metrics.a_lpips import ALpips, calibrated_features, calibrated_net, calibrated_weights, lpips_distance
from redream.metrics.perceptual import PerceptualNet, pool_config, residual_config


@pytest.fixture(scope="module", params=["pool", "residual"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("perceptual") / request.param
    make_config = pool_config if request.param == "pool" else residual_config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        PerceptualNet(make_config(("cat",), ("red",))).save(folder)
    return str(folder)


@pytest.fixture
def views(generator: torch.Generator) -> Tensor:
    return torch.rand(7, 3, 32, 32, generator=generator)


def test_identical_views_are_at_distance_zero(backbone: str, views: Tensor):
    distances = ALpips(backbone)(views[:1].expand(4, -1, -1, -1))
    torch.testing.assert_close(distances, torch.zeros(3))


def test_different_views_are_at_positive_distance_both_ways_round(backbone: str, views: Tensor):
    metric = ALpips(backbone)
    assert (metric(views) > 0).all()
    torch.testing.assert_close(metric(views.flip(0)), metric(views).flip(0))


def test_distance_grows_with_the_size_of_the_change(backbone: str, views: Tensor, generator: torch.Generator):
    noise = torch.randn(views[:1].shape, generator=generator)
    near, far = (views[:1] * 0.5 + 0.25 + scale * noise for scale in (0.01, 0.1))
    metric = ALpips(backbone)
    start = views[:1] * 0.5 + 0.25
    assert 0 < metric(torch.cat([start, near]))[0] < metric(torch.cat([start, far]))[0]


def test_an_orbit_of_n_views_has_n_minus_one_pairs_and_n_when_closed(backbone: str, views: Tensor):
    metric = ALpips(backbone)
    open_orbit, closed = metric(views), metric(views, close_loop=True)
    assert len(open_orbit) == len(views) - 1 and len(closed) == len(views)
    torch.testing.assert_close(closed[:-1], open_orbit)
    torch.testing.assert_close(closed[-1:], metric(torch.stack([views[-1], views[0]])))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 50])
def test_pairs_do_not_depend_on_how_views_are_batched(backbone: str, views: Tensor, batch_size: int):
    torch.testing.assert_close(ALpips(backbone, batch_size=batch_size)(views), ALpips(backbone)(views))


def test_one_view_makes_no_pair(backbone: str, views: Tensor):
    with pytest.raises(ValueError, match="adjacent views"):
        ALpips(backbone)(views[:1])


def test_distance_equals_a_slow_loop_over_positions_and_channels(generator: torch.Generator):
    x, y = torch.randn(2, 1, 5, 3, 4, generator=generator).unbind(0)
    weight = torch.rand(5, generator=generator)
    expected = torch.tensor(0.0)
    for row in range(3):
        for column in range(4):
            a, b = x[0, :, row, column], y[0, :, row, column]
            expected = expected + (weight * (a / a.norm() - b / b.norm()) ** 2).sum() / 12
    torch.testing.assert_close(lpips_distance([x, x], [y, y], [weight, weight]), 2 * expected[None])


def test_scaling_a_layers_activations_changes_nothing(generator: torch.Generator):
    x, y = torch.randn(2, 2, 5, 3, 4, generator=generator).unbind(0)
    ones = [torch.ones(5)]
    torch.testing.assert_close(lpips_distance([3 * x], [7 * y], ones), lpips_distance([x], [y], ones))


def test_silent_positions_give_no_nan():
    silent = torch.zeros(1, 5, 3, 4)
    assert lpips_distance([silent], [silent], [torch.ones(5)]).item() == 0


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_our_formula_equals_the_lpips_package(name: str, generator: torch.Generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Without VGG's classifier, whose 124 million weights take most of the time and are never used.
        trunk = alexnet(weights=None).features if name == "alex" else make_layers(cfgs["D"])
    net = calibrated_net(name, {f"features.{key}": value for key, value in trunk.state_dict().items()})
    x, y = torch.rand(2, 2, 3, 64, 64, generator=generator).unbind(0)
    ours = lpips_distance(calibrated_features(net, x), calibrated_features(net, y), calibrated_weights(net))
    torch.testing.assert_close(ours, net(x, y, normalize=True).flatten())
    assert (ours > 0).all()


def test_the_calibrated_network_draws_nothing_from_the_global_generator():
    before = torch.random.get_rng_state()
    state = {f"features.{i}.{kind}": shape for i, shapes in ALEX_SHAPES.items() for kind, shape in shapes.items()}
    calibrated_net("alex", {name: torch.zeros(shape) for name, shape in state.items()})
    assert torch.equal(torch.random.get_rng_state(), before)


def test_missing_imagenet_weights_are_named_with_the_place_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth.*checkpoints"):
        ALpips("vgg")


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match="squeezenet"):
        ALpips("squeezenet")


ALEX_SHAPES = {
    0: {"weight": (64, 3, 11, 11), "bias": (64,)},
    3: {"weight": (192, 64, 5, 5), "bias": (192,)},
    6: {"weight": (384, 192, 3, 3), "bias": (384,)},
    8: {"weight": (256, 384, 3, 3), "bias": (256,)},
    10: {"weight": (256, 256, 3, 3), "bias": (256,)},
}


def test_a_small_backbone_is_compared_by_its_own_features_with_weights_of_one(backbone: str, views: Tensor):
    net = PerceptualNet.load(backbone)
    features = net.features(views)
    ones = [torch.ones(layer.shape[1]) for layer in features]
    expected = lpips_distance([layer[:-1] for layer in features], [layer[1:] for layer in features], ones)
    torch.testing.assert_close(ALpips(backbone)(views), expected)
