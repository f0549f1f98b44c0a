"""Retrieval from a folder of real assets: how often a prompt's expected asset comes first, and by how much by chance.

Run as `python -m benchmarks.retrieval_prompts --catalog DIR --captions CSV --prompts CSV [--views mean|each]`; the
prompts' file has the columns `prompt` and `expected_uids` (separated by semicolons; prompts without are left out).
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


def measure(index: AssetIndex, prompts: list[dict[str, str]]) -> dict[str, Any]:
    """Search every prompt; a random order puts one of `k` expected of `n` assets first with chance k / n."""
    known = {asset.asset_id for asset in index.assets}
    rows = []
    for prompt in prompts:
        expected = known & set(filter(None, prompt["expected_uids"].split(";")))
        if not expected:
            continue
        found = [n.asset.asset_id for n in index.search(prompt["prompt"], len(known), len(known)).neighbors]
        by_text = index.recall(index._clip.embed_prompt(prompt["prompt"]), 1)[0][0]
        rank = min(found.index(uid) for uid in expected) + 1
        text_first = index.assets[int(by_text)].asset_id in expected
        rows.append({"prompt": prompt["prompt"], "rank": rank, "text_first": text_first, "num": len(expected)})
    ranks = np.array([row["rank"] for row in rows])
    return {
        "num_prompts": len(rows),
        "num_assets": len(known),
        "num_refused": index.manifest.num_refused,
        "first": float(np.mean(ranks == 1)),
        "among_3": float(np.mean(ranks <= 3)),
        "first_by_text": float(np.mean([row["text_first"] for row in rows])),
        "first_at_random": float(np.mean([row["num"] / len(known) for row in rows])),
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
    clip = Clip(config.clip_model)
    with tempfile.TemporaryDirectory() as folder:
        catalog = open_catalog(arguments.catalog, arguments.captions, cache_dir=Path(folder) / "cache")
        views = RenderedViews(config.num_index_views, clip.image_size)
        for step in build_index(catalog, clip, config, views, Path(folder) / "index"):
            print(f"{step.done} of {step.total}: {step.asset_id}", flush=True)
        result = measure(AssetIndex.open(Path(folder) / "index", clip), prompts)
    print(json.dumps({name: value for name, value in result.items() if name != "prompts"}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
