"""Remake the miniature's weights: `python -m redream.mini.train [MODEL ...] --work FOLDER`.

Seeded and resumable: a killed training continues from its checkpoint in the work folder. The model card in
`redream/mini/weights` states the data, the time this takes and the quality that it reaches.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from redream.mini.dataset import load_renders, render_dataset
from redream.mini.training.clip import train_clip
from redream.mini.training.loop import TrainStep
from redream.mini.training.multi_view import train_multi_view
from redream.mini.training.perceptual import train_perceptual
from redream.mini.training.prior import train_prior
from redream.mini.view_sets import load_view_sets, render_view_sets
from redream.weights import MINI_WEIGHTS

NUM_STEPS = {
    "judge": 1_000,
    "clip-retrieval": 5_000,
    "clip-eval-a": 2_000,
    "clip-eval-b": 2_500,
    "perceptual-a": 1_000,
    "perceptual-b": 500,
    "prior": 4_100,
    "multi-view": 3_000,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m redream.mini.train", description=str(__doc__).partition("\n")[0])
    parser.add_argument("models", nargs="*", choices=[[], *NUM_STEPS], help="default: all")
    parser.add_argument("--work", type=Path, default=Path("mini-training"), help="renders and checkpoints")
    parser.add_argument("--out", type=Path, default=MINI_WEIGHTS, help="where the finished weights go")
    parser.add_argument("--steps", type=int, help="instead of each model's own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the prior's UNet; needs a C++ compiler")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    models = options.models or [*NUM_STEPS]
    if set(models) - {"multi-view"}:
        _show("renders", render_dataset(options.work / "renders"))
        renders = load_renders(options.work / "renders")
    for name in models:
        num_steps, out = options.steps or NUM_STEPS[name], options.out / name
        if name == "multi-view":
            _show("groups of views", render_view_sets(options.work / "views"))
            steps = train_multi_view(load_view_sets(options.work / "views"), num_steps, options.work, out)
        elif name == "prior":
            steps = train_prior(renders, num_steps, options.work, out, options.compile)
        elif name.startswith("clip"):
            steps = train_clip(name, renders, num_steps, options.work, out)
        else:
            steps = train_perceptual(name, renders, num_steps, options.work, out)
        _report(name, steps)
    return 0


def _show(what: str, shards: Iterator[tuple[int, int]]) -> None:
    for done, total in shards:
        print(f"{what}: {done} of {total} shards", flush=True)


def _report(name: str, steps: Iterator[TrainStep]) -> None:
    started, total, count = time.monotonic(), 0.0, 0
    for step in steps:
        total, count = total + step.loss, count + 1
        if step.step % 50 == 0 or step.step == step.num_steps:
            print(
                f"{name}: step {step.step} of {step.num_steps}, loss {total / count:.4f}, "
                f"{time.monotonic() - started:.0f} s, {step.seconds_left / 60:.1f} min left",
                flush=True,
            )
            total, count = 0.0, 0


if __name__ == "__main__":
    sys.exit(main())
