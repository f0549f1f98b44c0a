"""Read a multi-view UNet from any of the forms it is published in, into diffusers' own class.

    ours           a Stable Diffusion folder whose unet/config.json has class_embed_type "projection"
    lzq49's        diffusers' names, with the camera's two layers in camera_proj/
    ashawkey's     a folder whose unet/ has the names and the settings of MVDream's own code ("LDM names")
    the original   one file with LDM names behind "model.diffusion_model."; only as safetensors, since a .pt is a pickle

Code from outside never runs: `model_index.json` and the class names in it are not even read. Components are loaded from
their folders into stock classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file
from torch import Tensor

CAMERA_DIM = 16
CAMERA_EMBEDDING = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA_DIM}
LDM_PREFIX = "model.diffusion_model."
MVDREAM_UNET = {  # of sd-v2.1-base-4view
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "num_head_channels": 64, "transformer_depth": 1,
    "context_dim": 1024, "camera_dim": CAMERA_DIM,
}  # fmt: skip


def load_unet(place: Path) -> UNet2DConditionModel:
    """Load a multi-view UNet from a folder, or from the original file.

    Raises:
        ValueError: none of the known forms, or weights that do not fit; in one line.
    """
    if place.is_file():
        return _of_ldm(_read(place), MVDREAM_UNET, place)
    config_file = place / "unet" / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise ValueError(f"{place} is not a multi-view model: {config_file} cannot be read") from error
    state = _read(_weights_file(place / "unet"))
    if "model_channels" in config:
        return _of_ldm(state, config, place)
    if (place / "camera_proj").is_dir():
        camera = _read(_weights_file(place / "camera_proj"))
        state |= {f"class_embedding.{name}": value for name, value in camera.items()}
    return _filled(config, state, place)


def _of_ldm(state: Mapping[str, Tensor], config: Mapping[str, Any], place: Path) -> UNet2DConditionModel:
    named = {name.removeprefix(LDM_PREFIX).replace("camera_embed.", "label_emb.0."): v for name, v in state.items()}
    converted = {**_of_ldm_config(config), **CAMERA_EMBEDDING}
    found = {f"{LDM_PREFIX}{name}": value for name, value in named.items()}
    try:
        return _filled(converted, convert_ldm_unet_checkpoint(found, converted), place)
    except KeyError as error:
        raise ValueError(f"{place} is not a multi-view model: its UNet has no {error.args[0]}") from error


def _of_ldm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Say in diffusers' words what the settings of MVDream's own UNet say."""
    channels = [config["model_channels"] * factor for factor in config["channel_mult"]]
    levels = range(len(channels))
    has_attention = [2**level in config["attention_resolutions"] for level in levels]
    return {
        "sample_size": config["image_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": channels,
        "layers_per_block": config["num_res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if has_attention[level] else "DownBlock2D" for level in levels],
        "up_block_types": ["CrossAttnUpBlock2D" if has_attention[level] else "UpBlock2D" for level in levels[::-1]],
        "attention_head_dim": [width // config["num_head_channels"] for width in channels],
        "cross_attention_dim": config["context_dim"],
        "use_linear_projection": True,
    }


def _filled(config: Mapping[str, Any], state: Mapping[str, Tensor], place: Path) -> UNet2DConditionModel:
    with torch.device("meta"):  # its random weights would only cost time
        unet: Any = UNet2DConditionModel.from_config({**config, **CAMERA_EMBEDDING})
    try:
        unet.load_state_dict(dict(state), strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{place} is not a multi-view model that this program knows ({reason})") from error
    return unet


def _weights_file(folder: Path) -> Path:
    names = [f"diffusion_pytorch_model{variant}.safetensors" for variant in ("", ".fp16")]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder} has no {names[0]}; weights are read only as safetensors")
    return found[0]


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} is not a .safetensors file; other forms can run code when they are read")
    try:
        return load_file(file)
    except Exception as error:  # the library has one class of its own for all that can be wrong with a file
        raise ValueError(f"{file} cannot be read as safetensors: {' '.join(str(error).split())[:200]}") from error
