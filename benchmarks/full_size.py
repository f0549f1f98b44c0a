"""Every stage of `redream generate --preset sd21` at the full size of its models, on random weights and without a GPU.

The folders are written by diffusers, open_clip and torchvision in the forms that the hub has: Stable Diffusion 2.1-base
(or the 768-pixel v-prediction one, or 1.5), three ViT-L-14 CLIPs, VGG-16 and AlexNet. Nothing that they make can be
looked at; what counts is that it runs, how long each stage takes and how much memory:

    python -m benchmarks.full_size --work DIR [--model sd21|sd21-v|sd15] [--dtype float32] [--tiny]

DIR takes 12 GB. A result is a row per stage, on standard output as Markdown; `RESULTS.md` keeps them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PROMPT = "a corgi"
POLL_SECONDS = 1.0
CLIP_NAMES = ("clip-retrieval", "clip-eval-a", "clip-eval-b")
# So few steps and views that each stage does everything once; the last step is at 512 pixels.
FEW = {
    "retrieval.num_index_views": 1, "retrieval.num_assets": 1, "retrieval.num_recall": 1, "retrieval.take_weak": True,
    "orientation.num_poses": 4, "render.num_views": 4, "adaptation.num_steps": 1, "adaptation.batch_size": 1,
    "adaptation.num_samples_per_view": 0, "adaptation.sample_steps": 1, "distill.num_steps": 3,
    "distill.warm_up_steps": 1, "distill.anneal_from_step": 2, "distill.high_resolution_from_step": 2,
    "evaluation.num_views": 2, "export.mesh_resolution": 32, "export.turntable_size": 64, "export.density_threshold": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Widths of a Stable Diffusion model and of the CLIPs that go with it."""

    blocks: tuple[int, ...]
    heads: tuple[int, ...] | int  # diffusers' attention_head_dim, which is the number of heads
    text_dim: int
    text_layers: int
    codec_blocks: tuple[int, ...]
    image_size: int
    prediction: str
    use_linear: bool = True
    groups: int = 32


SIZES = {
    "sd21": Size(
        blocks=(320, 640, 1280, 1280), heads=(5, 10, 20, 20), text_dim=1024, text_layers=23,
        codec_blocks=(128, 256, 512, 512), image_size=512, prediction="epsilon",
    ),
    "sd21-v": Size(
        blocks=(320, 640, 1280, 1280), heads=(5, 10, 20, 20), text_dim=1024, text_layers=23,
        codec_blocks=(128, 256, 512, 512), image_size=768, prediction="v_prediction",
    ),
    "sd15": Size(
        blocks=(320, 640, 1280, 1280), heads=8, text_dim=768, text_layers=12,
        codec_blocks=(128, 256, 512, 512), image_size=512, prediction="epsilon", use_linear=False,
    ),
}  # fmt: skip
TINY = {
    name: Size(
        blocks=(8, 16, 16, 16), heads=2, text_dim=16, text_layers=2, codec_blocks=(4, 4, 8, 8), image_size=64,
        prediction=size.prediction, use_linear=size.use_linear, groups=4,
    )
    for name, size in SIZES.items()
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=list(SIZES), default="sd21")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--tiny", action="store_true", help="the same with models of a few kilobytes")
    arguments = parser.parse_args()
    size = (TINY if arguments.tiny else SIZES)[arguments.model]
    work = arguments.work.resolve()
    prior = _once(work / arguments.model, lambda folder: build_prior(folder, size))
    clips = [
        _once(work / name, lambda folder, seed=seed: build_clip(folder, seed, arguments.tiny))
        for seed, name in enumerate(CLIP_NAMES)
    ]
    _once(work / "torch", lambda folder: build_perceptual(folder))
    _once(work / "meshes", build_meshes)
    settings = {
        **FEW, "prior.model": str(prior), "prior.dtype": arguments.dtype, "retrieval.clip_model": str(clips[0]),
        "evaluation.clip_models": (str(clips[1]), str(clips[2])), "render.image_size": size.image_size,
    }  # fmt: skip
    index = ["index", "build", "--catalog", str(work / "meshes"), "--index", str(work / "index")]
    run_command([*index, "--preset", "sd21"], settings, work)
    command = ["generate", PROMPT, "--preset", "sd21", "--index", str(work / "index"), "--json"]
    started = time.monotonic()
    peaks = run_command(command, settings, work)
    print_table(work, peaks, arguments.dtype, time.monotonic() - started)


def run_command(arguments: list[str], settings: dict[str, Any], work: Path) -> dict[str, float]:
    """Run one `redream` command on the CPU, and return the most memory that it had in each stage, GiB."""
    pairs = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "flows.command", *arguments, "--out", str(work / "runs"), *pairs]
    environment = {**os.environ, "REDREAM_DEVICE": "cpu", "TORCH_HOME": str(work / "torch"), "HF_HUB_OFFLINE": "1"}
    with (work / "output.txt").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output)
        peaks: dict[str, float] = defaultdict(float)
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, work / "runs", peaks, ended))
        watcher.start()
        code = process.wait()
        ended.set()
        watcher.join()
    if code != 0:
        sys.exit(f"{' '.join(arguments[:2])} ended with code {code}")
    return peaks


def _watch(pid: int, runs: Path, peaks: dict[str, float], ended: threading.Event) -> None:
    while not ended.wait(POLL_SECONDS):
        memory = 0
        try:
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                memory += process.memory_full_info().uss + process.memory_info().shared
        except psutil.Error:
            continue
        for stage in {"all", *_running(runs)}:
            peaks[stage] = max(peaks[stage], memory / 2**30)


def _running(runs: Path) -> list[str]:
    """Return the stages at work in the newest run."""
    record = _newest(runs)
    return [name for name, stage in record.get("stages", {}).items() if stage.get("state") == "running"]


def _newest(runs: Path) -> dict[str, Any]:
    records = sorted(runs.rglob("run.json"), key=lambda path: path.stat().st_mtime)
    try:
        return json.loads(records[-1].read_text()) if records else {}
    except (OSError, ValueError):
        return {}


def print_table(work: Path, peaks: dict[str, float], dtype: str, seconds: float) -> None:
    print("| stage | seconds | peak memory while it ran, GiB | dtype |\n|---|---|---|---|")
    for name, stage in _newest(work / "runs")["stages"].items():
        print(f"| {name} | {stage.get('seconds', 0):.0f} | {peaks.get(name, 0):.1f} | {dtype} |")
    print(f"| all, with the start | {seconds:.0f} | {peaks['all']:.1f} | {dtype} |")
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores")


def _once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Build a folder unless it is there; half a folder is not there."""
    if not folder.is_dir():
        aside = folder.with_name(f"{folder.name}.part")
        print(f"building {folder.name}", file=sys.stderr)
        build(aside)
        aside.rename(folder)
    return folder


def build_prior(folder: Path, size: Size, seed: int = 0) -> None:
    """Write a Stable Diffusion folder in diffusers' form, network by network, so that one is in memory at a time."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    network: Any = UNet2DConditionModel
    network(
        sample_size=size.image_size // 8, block_out_channels=size.blocks, attention_head_dim=size.heads,
        cross_attention_dim=size.text_dim, use_linear_projection=size.use_linear, norm_num_groups=size.groups,
    ).save_pretrained(folder / "unet")  # fmt: skip
    network = AutoencoderKL
    network(
        block_out_channels=size.codec_blocks, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=size.image_size,
        norm_num_groups=min(size.groups, size.codec_blocks[0]),
    ).save_pretrained(folder / "vae")  # fmt: skip
    config = CLIPTextConfig(
        hidden_size=size.text_dim, intermediate_size=4 * size.text_dim, num_hidden_layers=size.text_layers,
        num_attention_heads=max(2, size.text_dim // 64), hidden_act="gelu", bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    scheduler: Any = DDIMScheduler
    scheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        prediction_type=size.prediction,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    write_tokenizer(folder / "tokenizer")
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.35.0", **parts}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def write_tokenizer(folder: Path) -> None:
    """Write CLIP's tokenizer from the vocabulary that open_clip carries."""
    import open_clip

    with gzip.open(Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def build_clip(folder: Path, seed: int, is_tiny: bool) -> None:
    """Write a ViT-L-14 in open_clip's form."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    architecture = open_clip.get_model_config("ViT-L-14")
    assert architecture is not None
    if is_tiny:
        architecture["embed_dim"] = 16
        architecture["vision_cfg"] |= {"layers": 1, "width": 64, "patch_size": 32}
        architecture["text_cfg"] |= {"layers": 1, "width": 16, "heads": 2}
    model: Any = open_clip.CLIP(**architecture)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    preprocess = {
        "size": 224, "mean": [0.481, 0.458, 0.408], "std": [0.269, 0.261, 0.276], "interpolation": "bicubic"
    }  # fmt: skip
    config = {"model_cfg": architecture, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def build_perceptual(folder: Path) -> None:
    """Write torchvision's VGG-16 and AlexNet where it would download them to."""
    import torch
    from torchvision import models

    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    for network, weights in ((models.vgg16, models.VGG16_Weights), (models.alexnet, models.AlexNet_Weights)):
        name = weights.IMAGENET1K_V1.url.rpartition("/")[2]
        torch.save(network(weights=None).state_dict(), folder / "hub" / "checkpoints" / name)


def build_meshes(folder: Path) -> None:
    import trimesh

    folder.mkdir(parents=True)
    trimesh.creation.box((1.0, 0.6, 0.4)).export(folder / "a_brown_dog.glb")
    trimesh.creation.icosphere(subdivisions=2).export(folder / "a_red_ball.glb")


if __name__ == "__main__":
    main()
