"""Retrieval from a folder of real assets: which prompts find the expected asset, and which find nothing that fits.

Run as `python -m benchmarks.retrieval_prompts --catalog DIR --captions CSV --prompts CSV [--views mean|each]`; the
prompts' file has the columns `prompt` and `expected_uids` (separated by semicolons). Prompts without an expected asset,
and those of `prompts_without_asset.csv`, which were written for the 38 assets of ../shared/data before any was
searched, should find weak matches or none. Every asset's own caption should find it first.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from index_build.build import build_index
from index_build.catalogs.opening import open_catalog
from index_build.views import RenderedViews
from redream.clip import Clip
from redream.presets import mini
from redream.retrieval.index import AssetIndex

UNFITTING = Path(__file__).with_name("prompts_without_asset.csv")


def measure(index: AssetIndex, prompts: list[dict[str, str]], unfitting: list[str]) -> dict[str, Any]:
    """Search every prompt; a random order puts one of `k` expected of `n` assets first with chance k / n."""
    known = {asset.asset_id for asset in index.assets}
    unfitting = [*unfitting]
    rows = []
    for prompt in prompts:
        expected = known & set(filter(None, prompt["expected_uids"].split(";")))
        if not expected:
            unfitting.append(prompt["prompt"])
            continue
        found = index.search(prompt["prompt"], len(known), 3).neighbors
        by_vectors = index.nearest(index._clip.embed_prompt(prompt["prompt"]), len(known), 3)
        hits = [neighbor.asset.asset_id in expected for neighbor in found]
        rows.append(
            {
                "prompt": prompt["prompt"],
                "found": [neighbor.asset.asset_id for neighbor in found],
                "first": hits[:1] == [True],
                "among_3": any(hits),
                "first_is_weak": bool(found) and found[0].is_weak,
                "first_by_vectors": by_vectors[0].asset.asset_id in expected,
                "at_random": len(expected) / len(known),
            }
        )
    missed = [
        prompt for prompt in unfitting if not all(n.is_weak for n in index.search(prompt, len(known), 3).neighbors)
    ]
    own = [index.search(asset.caption, len(known), 1).neighbors for asset in index.assets]
    is_own = [bool(n) and n[0].asset.asset_id == asset.asset_id for n, asset in zip(own, index.assets, strict=True)]
    names = ("first", "among_3", "first_is_weak", "first_by_vectors", "at_random")
    return {
        "num_prompts": len(rows),
        "num_assets": len(known),
        "num_refused": index.manifest.num_refused,
        **{name: float(np.mean([row[name] for row in rows])) for name in names},
        "own_caption_first": float(np.mean(is_own)),
        "num_unfitting": len(unfitting),
        "unfitting_weak_or_none": 1 - len(missed) / len(unfitting),
        "unfitting_missed": missed,
        "prompts": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--catalog", required=True)
    parser.add_argument("--captions")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--views", choices=("mean", "each"), default="mean", help="score by the mean view or the best")
    parser.add_argument("--clip", default=mini().retrieval.clip_model, help="model id")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    config = replace(mini().retrieval, views=arguments.views, clip_model=arguments.clip)
    with arguments.prompts.open(encoding="utf-8", newline="") as lines:
        prompts = list(csv.DictReader(lines))
    with UNFITTING.open(encoding="utf-8", newline="") as lines:
        unfitting = [row["prompt"] for row in csv.DictReader(lines)]
    clip = Clip(config.clip_model)
    with tempfile.TemporaryDirectory() as folder:
        catalog = open_catalog(arguments.catalog, arguments.captions, cache_dir=Path(folder) / "cache")
        views = RenderedViews(config.num_index_views, clip.image_size)
        for step in build_index(catalog, clip, config, views, Path(folder) / "index"):
            print(f"{step.done} of {step.total}: {step.asset_id}", flush=True)
        result = measure(AssetIndex.open(Path(folder) / "index", clip), prompts, unfitting)
    print(json.dumps({name: value for name, value in result.items() if name != "prompts"}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
