"""Which of a preset's weights are on this machine, how large the others are and where they come from.

Nothing is downloaded and no hub is asked; sizes are those of the published files.
"""

from __future__ import annotations

import os
from pathlib import Path

from flows.command.findings import Finding
from redream.prior.layouts import NETWORKS, cached_folder, find_layout, network_files
from redream.settings import RunConfig

HUB = "https://huggingface.co"
# By the name that a setting gives: where the file comes from, and its size in GB.
CLIPS = {
    "ViT-L-14/laion2b_s32b_b82k": ("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", 1.7),
    "ViT-L-14-quickgelu/openai": ("timm/vit_large_patch14_clip_224.openai", 1.7),
    "ViT-L-14/datacomp_xl_s13b_b90k": ("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", 1.7),
}
BACKBONES = {"vgg": ("vgg16-397923af.pth", 0.55), "alex": ("alexnet-owt-7be5be79.pth", 0.24)}
TORCHVISION = "https://download.pytorch.org/models"
PRIOR_GB = 5.2  # UNet 3.5, text encoder 1.4, codec 0.3, in float32


def check_weights(config: RunConfig) -> list[Finding]:
    """Look for every model that the settings name."""
    clips = (config.retrieval.clip_model, *config.evaluation.clip_models)
    return [
        _check_prior(config.prior.model, config.prior.config),
        *(_check_clip(model) for model in clips if not model.startswith("mini:")),
        *(_check_backbone(name) for name in config.evaluation.lpips_backbones if name in BACKBONES),
    ]


def _check_prior(model: str, config_folder: str) -> Finding:
    place = Path(model)
    if place.exists() or model.startswith("mini:"):
        try:
            layout = find_layout(model, config_folder)
        except ValueError as error:
            found, _, remedy = str(error).partition("; ")
            return Finding(name="prior", state="missing", found=found, remedy=remedy or "give another folder")
        files = [layout.file] if layout.file else _weights(layout.folder, layout.variants)
        return Finding(name="prior", state="ok", found=f"{model}, {_gigabytes(files)}")
    folder = cached_folder(model)
    files = _weights(folder) if folder is not None else []
    if folder is not None and all(_weights(folder, {network: ""}) for network in NETWORKS):
        return Finding(name="prior", state="ok", found=f"{model}, {_gigabytes(files)}, in {folder.parents[1]}")
    name, _, revision = model.partition("@")
    fetch = f"hf download {name} {f'--revision {revision} ' * bool(revision)}--include '*.json' '*.txt' "
    fetch += " ".join(f"'{network}/{stem}.safetensors'" for network, stem in NETWORKS.items())
    half = "; a part of it is here" if files else ""
    return Finding(
        name="prior",
        state="missing",
        found=f"{name} is not on this machine ({PRIOR_GB} GB){half}",
        remedy=f"the first run downloads it from {HUB}/{name}; beforehand: {fetch}; or --set prior.model=FOLDER",
    )


def _check_clip(model: str) -> Finding:
    if Path(model).is_dir():
        return Finding(name="CLIP", state="ok", found=f"{model}, {_gigabytes(list(Path(model).glob('*.safetensors')))}")
    repository, size = CLIPS.get(model, ("", 0.0))
    folder = cached_folder(repository) if repository else None
    files = [path for path in folder.glob("open_clip*") if path.suffix in (".safetensors", ".bin")] if folder else []
    if folder is not None and files:
        return Finding(name="CLIP", state="ok", found=f"{model}, {_gigabytes(files)}, in {folder.parents[1]}")
    where = f"downloads it from {HUB}/{repository}" if repository else "downloads it as open_clip does"
    amount = f" ({size} GB)" if size else ""
    return Finding(
        name="CLIP",
        state="missing",
        found=f"{model} is not on this machine{amount}",
        remedy=f"the first run {where}; or give a local folder in open_clip's form",
    )


def _check_backbone(name: str) -> Finding:
    file, size = BACKBONES[name]
    home = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch")
    place = home.expanduser() / "hub" / "checkpoints" / file
    if place.is_file():
        return Finding(name="LPIPS", state="ok", found=f"{name}, {_gigabytes([place])}, in {place.parent}")
    return Finding(
        name="LPIPS",
        state="missing",
        found=f"{name} is not on this machine ({size} GB)",
        remedy=f"the first run downloads {TORCHVISION}/{file}; or put that file into {place.parent}",
    )


def _weights(folder: Path, variants: dict[str, str] | None = None) -> list[Path]:
    chosen = variants or dict.fromkeys(NETWORKS, "")
    return [path for network, variant in chosen.items() for path in network_files(folder, network, variant)]


def _gigabytes(files: list[Path]) -> str:
    size = sum(path.stat().st_size for path in files)
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
