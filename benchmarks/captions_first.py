"""How long an index of all of Objaverse takes from captions alone, with synthetic captions and meshes that nobody has.

Embeds a slice of captions as `index build --views none` does and says what 769,000 would take; with `--all` it builds
the whole index and makes its first search. The second tower has ViT-L/14's text tower's form and random weights.

    python -m benchmarks.captions_first [--slice 20000] [--large 400] [--all DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np

from index_build.build import assemble, embed_caption_shard, plan_build
from index_build.catalogs.catalog import Catalog
from index_build.views import RenderedViews
from redream.clip import Clip
from redream.records import Asset
from redream.retrieval.index import AssetIndex
from redream.retrieval.text_tower import TEXT_SETTINGS, TextTower, _clip_tokenizer, _shapes, open_text_tower
from redream.settings import RetrievalConfig

NUM_OBJECTS = 769_000
LARGE = {"width": 768, "heads": 12, "layers": 12, "embed_dim": 768}  # ViT-L/14's text tower
KINDS = ("chair", "table", "car", "truck", "robot", "lamp", "house", "tree", "dog", "sword", "ship", "plane", "guitar")
WORDS = ("red", "blue", "green", "wooden", "metal", "old", "small", "large", "ornate", "broken", "white", "rusty")
PARTS = (
    "with a long handle|on a stone base|with four legs|and a yellow roof|featuring two wheels|with a textured surface"
)


def caption(number: int, rng: np.random.Generator) -> str:
    """Return a caption of about the length of Cap3D's, which are 8 to 20 words."""
    words = " ".join(rng.choice(WORDS, rng.integers(1, 4)))
    parts = " ".join(rng.choice(PARTS.split("|"), rng.integers(1, 4)))
    return f"a {words} {rng.choice(KINDS)} {parts}, model {number}"


class RandomWeights:
    """Seeded tensors of a text tower's shapes."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        shapes = _shapes({**TEXT_SETTINGS, **LARGE}, LARGE["embed_dim"])
        self._tensors = {name: (0.02 * rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}

    def get_tensor(self, name: str) -> np.ndarray:
        return self._tensors[name]


def rate(tower: TextTower, captions: list[str]) -> float:
    """Return how many captions a second a tower embeds, sorted by length as a build has them."""
    captions = sorted(captions, key=len)
    started = time.monotonic()
    for start in range(0, len(captions), 512):
        tower.embed_texts(captions[start : start + 512])
    return len(captions) / (time.monotonic() - started)


def build_all(folder: Path, tower: TextTower, clip: Clip) -> None:
    """Build the whole index and search it once."""
    rng, started = np.random.default_rng(0), time.monotonic()
    assets = [
        Asset(
            asset_id=(uid := hashlib.sha256(str(number).encode()).hexdigest()[:32]),
            mesh_path=f"/objects/glbs/000-000/{uid}.glb",
            caption=caption(number, rng),
            source="synthetic",
            license="by",
        )
        for number in range(NUM_OBJECTS)
    ]
    catalog = Catalog(name="synthetic", root="/objects", assets=assets, dropped={}, digest=lambda asset: asset.asset_id)
    print(f"{NUM_OBJECTS:,} synthetic captions made: {time.monotonic() - started:.0f} s", flush=True)
    started = time.monotonic()
    plan = plan_build(catalog, clip, RetrievalConfig(), RenderedViews(12, clip.image_size), folder / "index", False)
    print(f"planned: {time.monotonic() - started:.0f} s", flush=True)
    for number in range(plan.num_shards):
        list(embed_caption_shard(plan, number, tower.embed_texts))
    print(f"embedded: {time.monotonic() - started:.0f} s", flush=True)
    assemble(plan)
    print(f"assembled: {time.monotonic() - started:.0f} s", flush=True)
    found = AssetIndex.open(folder / "index", tower).search("a red wooden chair", 100, 3)
    print(f"first search: {time.monotonic() - started:.0f} s: {[n.asset.caption for n in found.neighbors]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--slice", type=int, default=20_000, help="captions for the miniature's tower")
    parser.add_argument("--large", type=int, default=400, help="captions for a tower of ViT-L/14's size")
    parser.add_argument("--all", type=Path, help="build the index of all in this folder")
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    captions = [caption(number, rng) for number in range(max(arguments.slice, arguments.large))]
    small = open_text_tower("mini:clip-retrieval")
    assert small is not None
    tokenize = _clip_tokenizer(77)
    large = TextTower("mini:clip-retrieval", {"embed_dim": 768, "text_cfg": LARGE}, tokenize, RandomWeights())
    for name, tower, num in (("the miniature's", small, arguments.slice), ("ViT-L/14's size", large, arguments.large)):
        per_second = rate(tower.keep_weights(), captions[:num])
        minutes = NUM_OBJECTS / per_second / 60
        print(
            f"{name}: {per_second:,.1f} captions/s of {num:,}; {NUM_OBJECTS:,} would take {minutes:,.0f} min",
            flush=True,
        )
    tokens = np.mean([len(tokenize(text)) for text in captions[:1000]])
    width, layers = LARGE["width"], LARGE["layers"]
    flops = NUM_OBJECTS * tokens * layers * 24 * width**2
    print(f"{tokens:.1f} tokens a caption; {flops:.1e} operations in all, {flops / 100e12:.0f} s at 100 TFLOP/s")
    if arguments.all:
        with tempfile.TemporaryDirectory(dir=arguments.all) as folder:
            build_all(Path(folder), small, Clip("mini:clip-retrieval"))


if __name__ == "__main__":
    main()
