"""Orientation in the miniature: how often the front is found within 30 degrees, over all assets of the catalog.

Every asset lies turned by a random yaw that only this benchmark reads. As in the paper's Table 3 a front that is not
found counts as a failure, and assets without a front are left out of that share; for them the right answer is "no clear
front". Run as `python -m benchmarks.orientation_miniature [--out FILE.json]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from index_build.catalogs.opening import read_catalog
from redream.clip import Clip
from redream.images import composite, to_images
from redream.meshes.assets import load_mesh, normalize_mesh
from redream.mini.catalog import write_catalog
from redream.orientation import find_front, ring_cameras
from redream.presets import mini
from redream.records import Asset
from redream.render.mesh import render_mesh
from redream.settings import OrientationConfig

WITHIN_DEG = 30.0
FLIPPED_BEYOND_DEG = 150.0
BACKGROUND = 1.0


def measure(
    assets: list[Asset], truth: dict[str, dict[str, Any]], clip: Clip, config: OrientationConfig
) -> dict[str, Any]:
    """Find every asset's front and compare with the truth, which only benchmarks read."""
    cameras = ring_cameras(config, clip.image_size)
    rows = []
    for i, asset in enumerate(assets):
        scene = normalize_mesh(load_mesh(asset.mesh_path))
        images = to_images(composite(render_mesh(scene, cameras), BACKGROUND))
        orientation = find_front(images, asset.caption, clip, config)
        true = truth[asset.asset_id]
        rows.append(
            {
                "asset_id": asset.asset_id,
                "caption": asset.caption,
                "category": true["category"],
                "has_front": true["has_front"],
                "has_clear_front": orientation.has_clear_front,
                "margin": orientation.margin,
                "error_deg": angle_between(orientation.azimuth_deg, true["yaw_deg"]),
            }
        )
        if (i + 1) % 64 == 0 or i + 1 == len(assets):
            print(f"oriented {i + 1} of {len(assets)} assets", flush=True)
    return {"clip_model": clip.identity, "min_margin": config.min_margin, **summarize(rows), "assets": rows}


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return shares of the assets with a front, and of those without."""
    fronts = [row for row in rows if row["has_front"]]
    found = [row for row in fronts if row["has_clear_front"]]
    frontless = [row for row in rows if not row["has_front"]]
    categories = defaultdict(list)
    for row in fronts:
        categories[row["category"]].append(_is_right(row))
    return {
        "num_with_front": len(fronts),
        "within_30_deg": _share(_is_right(row) for row in fronts),
        "flipped": _share(row["has_clear_front"] and row["error_deg"] > FLIPPED_BEYOND_DEG for row in fronts),
        "not_found": _share(not row["has_clear_front"] for row in fronts),
        "within_30_deg_where_found": _share(_is_right(row) for row in found),
        "median_error_deg_where_found": statistics.median(row["error_deg"] for row in found) if found else None,
        "num_without_front": len(frontless),
        "without_front_recognised": _share(not row["has_clear_front"] for row in frontless),
        "within_30_deg_by_category": {name: _share(right) for name, right in sorted(categories.items())},
    }


def angle_between(first_deg: float, second_deg: float) -> float:
    return abs((first_deg - second_deg + 180.0) % 360.0 - 180.0)


def _is_right(row: dict[str, Any]) -> bool:
    return row["has_clear_front"] and row["error_deg"] <= WITHIN_DEG


def _share(statements: Any) -> float | None:
    values = [bool(value) for value in statements]
    return statistics.mean(values) if values else None


def report(result: dict[str, Any]) -> str:
    def percent(name: str) -> str:
        return "      -" if result[name] is None else f"{result[name]:7.1%}"

    lines = [
        f"{result['num_with_front']} assets with a front, {result['clip_model']}",
        f"  within 30 degrees          {percent('within_30_deg')}   at random {2 * WITHIN_DEG / 360:.1%}, paper 86.7%",
        f"  flipped                    {percent('flipped')}   paper 6.7%",
        f"  front not found            {percent('not_found')}   paper 6.7%",
        f"  within 30 degrees if found {percent('within_30_deg_where_found')}",
        f"{result['num_without_front']} assets without a front",
        f"  recognised as such         {percent('without_front_recognised')}",
    ]
    weak = {name: share for name, share in result["within_30_deg_by_category"].items() if share < 0.9}
    lines += [f"  below 90%: {name} {share:.0%}" for name, share in sorted(weak.items(), key=lambda item: item[1])]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the catalog")
    parser.add_argument("--clip", default=mini().retrieval.clip_model, help="model id")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    preset = mini()
    clip = Clip(arguments.clip)
    with tempfile.TemporaryDirectory() as folder:
        write_catalog(folder, seed=arguments.seed)
        truth = json.loads((Path(folder) / "truth.json").read_text(encoding="utf-8"))
        result = measure(read_catalog(folder), truth, clip, preset.orientation)
    print(report(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
