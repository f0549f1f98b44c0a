"""The miniature's small image networks: backbones of its A-LPIPS, and the judge classifier.

One class, two architectures that share no layer shape: `pool` (3x3 convolutions, ReLU, max-pooling, after VGG)
and `residual` (strided convolutions and residual blocks with GroupNorm). Trained as classifiers of category, colour and
view; A-LPIPS reads the stages' activations and never the heads, the judge reads the heads. Images are [B, 3, H, W] in
[0, 1] everywhere outside; `to_signed` is the one place that turns them into the [-1, 1] that LPIPS networks want.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redream.weights import weights_path

POOLED_SIDE = 4  # the heads see the last activation as a 4 x 4 grid: a view is told by where things are


@dataclass(frozen=True, kw_only=True, slots=True)
class PerceptualConfig:
    """Architecture and label names; the position of a name is its class index."""

    architecture: Literal["pool", "residual"] = "pool"
    channels: tuple[int, ...] = (16, 32, 64, 96)  # per stage; every stage halves the resolution
    kernel_size: int = 3
    activation: Literal["relu", "gelu"] = "relu"
    hidden_dim: int = 128  # of the classifier between pooled activations and heads
    categories: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    views: tuple[str, ...] = ("front", "side", "back")

    def __post_init__(self) -> None:
        if not self.channels or any(c % 8 for c in self.channels):
            raise ValueError(f"channels is {self.channels}; it must be a non-empty list of multiples of 8")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}; it must be odd")


def pool_config(categories: tuple[str, ...], colors: tuple[str, ...]) -> PerceptualConfig:
    """Return the backbone of `mini:perceptual-a`."""
    return PerceptualConfig(categories=categories, colors=colors)


def residual_config(categories: tuple[str, ...], colors: tuple[str, ...]) -> PerceptualConfig:
    """Return the backbone of `mini:perceptual-b`, also fit for the judge."""
    return PerceptualConfig(
        architecture="residual", channels=(24, 48, 96), activation="gelu", categories=categories, colors=colors
    )


@dataclass(frozen=True, eq=False)
class Logits:
    category: Float[Tensor, "batch categories"]
    color: Float[Tensor, "batch colors"]
    view: Float[Tensor, "batch views"]


class PerceptualNet(nn.Module):
    """A small convolutional classifier whose stage activations serve as perceptual features."""

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        self.config = config
        widths = (3, *config.channels)
        stage = _pool_stage if config.architecture == "pool" else _residual_stage
        self.stages = nn.ModuleList(
            stage(widths[i], widths[i + 1], config, is_first=i == 0) for i in range(len(config.channels))
        )
        self.trunk = nn.Sequential(
            nn.AdaptiveAvgPool2d(POOLED_SIDE),
            nn.Flatten(),
            nn.Linear(config.channels[-1] * POOLED_SIDE**2, config.hidden_dim),
            _activation(config),
        )
        self.category_head = nn.Linear(config.hidden_dim, len(config.categories))
        self.color_head = nn.Linear(config.hidden_dim, len(config.colors))
        self.view_head = nn.Linear(config.hidden_dim, len(config.views))

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return each stage's activations, finest first; images in [0, 1]."""
        activations = []
        x = to_signed(images)
        for stage in self.stages:
            x = stage(x)
            activations.append(x)
        return activations

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Logits:
        """Classify images in [0, 1]."""
        hidden = self.trunk(self.features(images)[-1])
        return Logits(self.category_head(hidden), self.color_head(hidden), self.view_head(hidden))

    def save(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`; each file appears whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors.part")
        (folder / "config.json.part").write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")
        for name in ("model.safetensors", "config.json"):
            os.replace(folder / f"{name}.part", folder / name)

    @classmethod
    def load(cls, model_id: Path | str, device: torch.device | str = "cpu") -> PerceptualNet:
        """Load a saved network in evaluation mode, its weights frozen.

        Args:
            model_id: a `mini:` name or a folder with `config.json` and `model.safetensors`.
        """
        folder = Path(weights_path(str(model_id)))
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise ValueError(f"{model_id!r} is no perceptual network: it needs config.json and model.safetensors")
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings |= {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
        net = cls(PerceptualConfig(**settings))
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return net.to(device).eval().requires_grad_(False)


def to_signed(images: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Map [0, 1] to the [-1, 1] of LPIPS networks."""
    return 2.0 * images - 1.0


def _activation(config: PerceptualConfig) -> nn.Module:
    return nn.ReLU() if config.activation == "relu" else nn.GELU()


def _pool_stage(in_channels: int, out_channels: int, config: PerceptualConfig, is_first: bool) -> nn.Module:
    # Pooling opens a stage, so that the activation LPIPS reads is the one before the next pooling, as in VGG. The first
    # stage, at full resolution, has one convolution only: a second would take half of the network's time.
    pad = config.kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, config.kernel_size, padding=pad)
    if is_first:
        return nn.Sequential(conv, _activation(config))
    again = nn.Conv2d(out_channels, out_channels, config.kernel_size, padding=pad)
    return nn.Sequential(nn.MaxPool2d(2), conv, _activation(config), again, _activation(config))


def _residual_stage(in_channels: int, out_channels: int, config: PerceptualConfig, is_first: bool) -> nn.Module:
    del is_first  # every residual stage opens with a stride
    pad = config.kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, config.kernel_size, stride=2, padding=pad),
        ResidualBlock(out_channels, config),
    )


class ResidualBlock(nn.Module):
    """Pre-activation residual block: x + conv(act(norm(conv(act(norm(x))))))."""

    def __init__(self, channels: int, config: PerceptualConfig) -> None:
        super().__init__()
        pad = config.kernel_size // 2
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            _activation(config),
            nn.Conv2d(channels, channels, config.kernel_size, padding=pad),
            nn.GroupNorm(8, channels),
            _activation(config),
            nn.Conv2d(channels, channels, config.kernel_size, padding=pad),
        )

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        return x + self.body(x)
