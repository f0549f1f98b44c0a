"""How fast a CLIP of ViT-L/14's size embeds captions and renders here, and what Objaverse would take.

`python -m benchmarks.clip_speed --work DIR` makes the model with random weights in DIR where it is missing. It runs on
the GPU where there is one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.search_cold import make_clip
from redream.clip import Clip

NUM_OBJECTS, NUM_VIEWS = 769_000, 12  # captioned objects of Objaverse 1.0, and renders of each
NUM_TIMES = 3
CAPTION = "a small wooden chair with a red cushion and four curved legs"


def seconds_of(call: Callable[[], object]) -> float:
    """Return the median of some calls after a first one."""
    seconds = []
    for _ in range(1 + NUM_TIMES):
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[NUM_TIMES // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that the model lies in")
    folder = parser.parse_args().work / "vit-l-14-random"
    if not folder.is_dir():
        make_clip(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip = Clip(str(folder), device)
    num = 64 if device.type == "cuda" else 8
    images = torch.rand(num, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    per_image = seconds_of(lambda: clip.embed_images(images)) / num
    per_caption = seconds_of(lambda: clip.embed_text([CAPTION] * num)) / num
    hours = NUM_OBJECTS * (NUM_VIEWS * per_image + per_caption) / 3600
    print(
        f"{device}, {torch.get_num_threads()} threads: {1 / per_image:.2f} renders/s, {1 / per_caption:.2f} captions/s"
    )
    print(f"extrapolated: {NUM_OBJECTS:,} objects with {NUM_VIEWS} renders each in {hours:,.0f} hours")


if __name__ == "__main__":
    main()
