"""Retrieval in the miniature: how often the right category is among the first three, over 60 paraphrased prompts.

The prompts of `prompts_retrieval.csv` were written apart from the captions that the CLIP was trained on: they use the
catalog's names for things and colours in sentences of their own. A third of the (category, color) pairs is missing from
the catalog, so only the category can be asked for. Run as `python -m benchmarks.retrieval_miniature [--out FILE.json]`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from index_build.build import build_index
from index_build.catalogs.opening import open_catalog
from index_build.views import RenderedViews
from redream.clip import Clip
from redream.mini.catalog import write_catalog
from redream.presets import mini
from redream.retrieval.index import AssetIndex
from redream.settings import RetrievalConfig

PROMPTS = Path(__file__).with_name("prompts_retrieval.csv")


def measure(index: AssetIndex, truth: dict[str, dict[str, Any]], config: RetrievalConfig, top_k: int) -> dict[str, Any]:
    """Search every prompt and compare with the truth, which only benchmarks read."""
    with PROMPTS.open(encoding="utf-8", newline="") as lines:
        prompts = list(csv.DictReader(lines))
    per_category = Counter(truth[asset.asset_id]["category"] for asset in index.assets)
    pairs = {(truth[asset.asset_id]["category"], truth[asset.asset_id]["color"]) for asset in index.assets}
    rows, seconds = [], []
    for prompt in prompts:
        start = time.perf_counter()
        neighbors = index.search(prompt["prompt"], config.num_recall, top_k).neighbors
        seconds.append(time.perf_counter() - start)
        found = [truth[neighbor.asset.asset_id] for neighbor in neighbors]
        wanted = (prompt["category"], prompt["color"])
        rows.append(
            {
                **prompt,
                "found": [f"{item['color']} {item['category']}" for item in found],
                "has_category": any(item["category"] == prompt["category"] for item in found),
                "is_first": found[0]["category"] == prompt["category"],
                "in_catalog": wanted in pairs,
                "has_pair": any((item["category"], item["color"]) == wanted for item in found),
                "at_random": at_random(len(index.assets), per_category[prompt["category"]], top_k),
            }
        )
    with_pair = [row["has_pair"] for row in rows if row["in_catalog"]]
    return {
        "num_prompts": len(rows),
        "num_assets": len(index.assets),
        "backend": index.backend,
        "clip_model": index.manifest.clip_model,
        "top_k": top_k,
        "category_among_top_k": statistics.mean(row["has_category"] for row in rows),
        "category_first": statistics.mean(row["is_first"] for row in rows),
        "category_among_top_k_at_random": statistics.mean(row["at_random"] for row in rows),
        "pair_among_top_k_where_in_catalog": statistics.mean(with_pair) if with_pair else None,
        "num_pairs_in_catalog": len(with_pair),
        "median_ms": 1000 * statistics.median(seconds),
        "prompts": rows,
    }


def at_random(num_assets: int, num_right: int, top_k: int) -> float:
    """Return the chance that `top_k` assets drawn without replacement hold one of the right ones."""
    return 1 - math.comb(num_assets - num_right, top_k) / math.comb(num_assets, top_k)


def open_miniature(
    folder: Path, clip: Clip, config: RetrievalConfig, seed: int
) -> tuple[AssetIndex, dict[str, dict[str, Any]]]:
    """Write the catalog of the miniature, index it and read its truth."""
    write_catalog(folder / "catalog", seed=seed)
    catalog = open_catalog(str(folder / "catalog"), cache_dir=folder / "cache")
    views = RenderedViews(config.num_index_views, clip.image_size)
    for step in build_index(catalog, clip, config, views, folder / "index"):
        if step.done % 64 == 0 or step.done == step.total:
            print(f"indexed {step.done} of {step.total} assets", flush=True)
    truth = json.loads((folder / "catalog" / "truth.json").read_text(encoding="utf-8"))
    return AssetIndex.open(folder / "index", clip), truth


def report(result: dict[str, Any]) -> str:
    lines = [
        f"{result['num_prompts']} prompts, {result['num_assets']} assets, {result['backend']}, {result['clip_model']}",
        f"  right category among top {result['top_k']}   {result['category_among_top_k']:7.1%}   at random "
        f"{result['category_among_top_k_at_random']:.1%}",
        f"  right category first         {result['category_first']:7.1%}",
    ]
    if result["pair_among_top_k_where_in_catalog"] is not None:
        lines.append(
            f"  right colour too             {result['pair_among_top_k_where_in_catalog']:7.1%}   of the "
            f"{result['num_pairs_in_catalog']} prompts whose colour the catalog has"
        )
    lines.append(f"  median time of a search      {result['median_ms']:5.1f} ms")
    lines += [
        f"  missed: {row['prompt']!r} -> {', '.join(row['found'])}"
        for row in result["prompts"]
        if not row["has_category"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the catalog")
    parser.add_argument("--views", choices=("mean", "each"), default="mean", help="score by the mean view or the best")
    parser.add_argument("--clip", default=mini().retrieval.clip_model, help="model id")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    config = replace(mini().retrieval, views=arguments.views)
    with tempfile.TemporaryDirectory() as folder:
        index, truth = open_miniature(Path(folder), Clip(arguments.clip), config, arguments.seed)
        result = measure(index, truth, config, arguments.top_k)
    print(report(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
