"""A-LPIPS: how much adjacent views of an orbit differ, a measure of inconsistency (Hong et al. 2023; Table 1).

    LPIPS(x, y) = sum_l 1/(H_l W_l) sum_hw || w_l * (f_l(x)_hw - f_l(y)_hw) ||^2       (Zhang et al. 2018, Eq. 1)

with f_l the activations of layer l, scaled to unit length over channels at every position. A-LPIPS is the mean over
adjacent views; lower is better, 0 is identical, figures of different backbones do not compare. `vgg` and `alex` are the
`lpips` package's networks with its channel weights calibrated on human judgements. `mini:...` are the miniature's small
backbones with all channel weights 1 (the paper's "baseline" variant): their figures are no VGG or Alex figures.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import lpips
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.models import AlexNet_Weights, VGG16_Weights

from redream.metrics.perceptual import PerceptualNet, to_signed

IMAGENET_WEIGHTS = {"vgg": VGG16_Weights.IMAGENET1K_V1, "alex": AlexNet_Weights.IMAGENET1K_V1}
Features = list[Float[Tensor, "batch _ _ _"]]  # one tensor per layer, [B, C, H, W]


class ALpips:
    """A-LPIPS with one backbone: `vgg`, `alex`, `mini:NAME` or the folder of a perceptual network."""

    def __init__(self, backbone: str, device: torch.device | str = "cpu", batch_size: int = 8) -> None:
        self.backbone = backbone
        self.device = torch.device(device)
        self.batch_size = batch_size
        self._features, self._channel_weights = _open_backbone(backbone, self.device)

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "batch 3 height width"], close_loop: bool = False
    ) -> Float[Tensor, " pairs"]:
        """Return LPIPS of each view and the next, lower is better; images in [0, 1], in the orbit's order.

        Args:
            close_loop: also compare the last view with the first.
        """
        if images.shape[0] < 2:
            raise ValueError(f"A-LPIPS compares adjacent views, but there is {images.shape[0]} view")
        views = torch.cat([images, images[:1]]) if close_loop else images
        distances = []
        for start in range(0, len(views) - 1, self.batch_size):
            features = self._features(views[start : start + self.batch_size + 1].to(self.device))
            distances.append(
                lpips_distance([f[:-1] for f in features], [f[1:] for f in features], self._channel_weights)
            )
        return torch.cat(distances).cpu()


def lpips_distance(
    features_x: Features, features_y: Features, channel_weights: list[Float[Tensor, " _"]]
) -> Float[Tensor, " batch"]:
    """Compare two batches of activations, layer by layer (Eq. 1); `channel_weights` are the squares of w_l."""
    distance = torch.zeros(features_x[0].shape[0], device=features_x[0].device)
    for f_x, f_y, weight in zip(features_x, features_y, channel_weights, strict=True):
        difference = _unit_channels(f_x) - _unit_channels(f_y)
        distance = distance + torch.einsum("bchw,c->bhw", difference**2, weight).mean(dim=(1, 2))
    return distance


def _unit_channels(features: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
    # The small constant is the lpips package's: positions where every channel is silent stay zero.
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def _open_backbone(backbone: str, device: torch.device) -> tuple[Callable[[Tensor], Features], list[Tensor]]:
    if backbone in IMAGENET_WEIGHTS:
        net = calibrated_net(backbone, _imagenet_state(backbone)).to(device)
        return lambda images: calibrated_features(net, images), calibrated_weights(net)
    net = PerceptualNet.load(backbone, device)
    return net.features, [torch.ones(channels, device=device) for channels in net.config.channels]


def calibrated_net(backbone: str, backbone_state: dict[str, Tensor]) -> lpips.LPIPS:
    """Return the lpips package's network for `vgg` or `alex`, given torchvision's state of the backbone."""
    # pnet_rand keeps the package from fetching the backbone itself, which it does without weights_only; the random
    # initialisation it then draws must not move the global generator. It still calls torchvision the old way.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore", category=UserWarning):
        net = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    state = {
        name: backbone_state["features." + name.partition(".")[2]]  # slice2.4.bias is torchvision's features.4.bias
        for name in net.net.state_dict()
    }
    net.net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def calibrated_features(net: lpips.LPIPS, images: Float[Tensor, "batch 3 height width"]) -> Features:
    return list(net.net(net.scaling_layer(to_signed(images))))


def calibrated_weights(net: lpips.LPIPS) -> list[Float[Tensor, " _"]]:
    state = net.state_dict()
    return [state[f"lin{layer}.model.1.weight"][0, :, 0, 0] for layer in range(net.L)]


def _imagenet_state(backbone: str) -> dict[str, Tensor]:
    url = IMAGENET_WEIGHTS[backbone].url
    name = url.rpartition("/")[2]
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"A-LPIPS with {backbone!r} needs torchvision's ImageNet weights {name}, which could not be loaded "
            f"({error}); put the file into {torch.hub.get_dir()}/checkpoints, or choose a backbone that is embedded, "
            "such as mini:perceptual-a"
        ) from error
