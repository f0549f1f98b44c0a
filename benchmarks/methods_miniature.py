"""Six prompts by three methods in the miniature: CLIP scores, A-LPIPS and wrong-side fronts of sds, vsd and redream.

Each run is one `redream generate`, so a repeated call reuses whatever is finished: a killed benchmark continues. The
prompts are left out of the catalog and were drawn by a seed, not chosen. The column `asset` is the retrieved asset
nearest to the prompt, rendered and measured in the same way: how a solid object with one front scores, which neither
A-LPIPS nor the share of wrong fronts tell from a featureless ball's score. Run as
`python -m benchmarks.methods_miniature [--runs FOLDER] [--out FILE.json] [--pictures FOLDER]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image

from redream.cameras import camera_angles, orbit
from redream.clip import Clip
from redream.images import composite, to_images
from redream.meshes.assets import load_mesh, normalize_mesh, turn_mesh
from redream.metrics.a_lpips import ALpips
from redream.metrics.perceptual import PerceptualNet
from redream.metrics.report import evaluate_views
from redream.mini.catalog import CATEGORIES, catalog_pairs
from redream.presets import mini
from redream.render.mesh import render_mesh
from tasks.runs.records import finished_stage, read_run

METHODS = ("sds", "vsd", "redream")
ASSET = "asset"
NUM_PROMPTS = 6
TURNTABLE_SIZE = 64  # pixels; nobody watches them
HIGHER_IS_BETTER = ("clip_",)
GAP = 16  # pixels between pictures
SHEET_COLUMNS = 6  # of the evaluation's sheet of twelve views


def prompts(number: int = NUM_PROMPTS, seed: int = 6) -> list[str]:
    """Draw prompts of things with a front that are not in the catalog."""
    pairs = [pair for pair in catalog_pairs()[1] if CATEGORIES[pair[0]].has_front]
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:number]
    return [f"{'an' if pairs[i][1][0] in 'aeiou' else 'a'} {pairs[i][1]} {pairs[i][0]}" for i in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("redream-out"), help="the runs' --out folder")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--pictures", type=Path, help="write orbits of the results as PNG")
    arguments = parser.parse_args()
    rows, orbits = [], {}
    for prompt in prompts():
        for method in METHODS:
            command = [
                sys.executable,
                "-m",
                "flows.command",
                "generate",
                prompt,
                "--preset",
                "mini",
                "--method",
                method,
                "--set",
                f"export.turntable_size={TURNTABLE_SIZE}",
                "--out",
                str(arguments.runs),
                "--json",
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            made: dict[str, Any] = json.loads(done.stdout)
            rows.append({"prompt": prompt, "method": method, **made["metrics"]})
            orbits[prompt, method] = orbit_picture(arguments.runs, made["run_id"])
            print(json.dumps(rows[-1]), flush=True)
        nearest = made["neighbors"][0]  # of redream, the last of the methods
        rows.append({"prompt": prompt, "method": ASSET, **asset_figures(prompt, nearest)})
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if arguments.pictures:
        save_pictures(arguments.pictures, orbits)


def asset_figures(prompt: str, neighbor: dict[str, Any]) -> dict[str, float]:
    """Measure a retrieved asset, turned to its front, as the evaluation measures a result."""
    config = mini()
    views = config.evaluation
    scene = normalize_mesh(load_mesh(neighbor["asset"]["mesh_path"], config.mesh), config.render.object_radius)
    camera = orbit(views.num_views, views.elevation_deg, views.camera_distance, views.fovy_deg, views.image_size)
    rgb = composite(render_mesh(turn_mesh(scene, -neighbor["azimuth_offset_deg"]), camera), views.background)
    report = evaluate_views(
        prompt,
        to_images(rgb),
        {model: Clip(model) for model in views.clip_models},
        [ALpips(backbone) for backbone in views.lpips_backbones],
        views.close_loop,
        (PerceptualNet.load(views.judge), camera_angles(camera)[0]),
    )
    return report.summary()


def orbit_picture(out: Path, run_id: str) -> Image.Image:
    """Return six views around the first particle of a run, side by side."""
    sheet = Image.open(finished_stage(out, read_run(out, run_id), "evaluate").path("orbit_0.png"))
    size = sheet.width // SHEET_COLUMNS
    row = Image.new("RGB", (sheet.width, size))
    for column in range(SHEET_COLUMNS):
        y, x = divmod(2 * column, SHEET_COLUMNS)  # every second of its twelve views
        row.paste(sheet.crop((x * size, y * size, (x + 1) * size, (y + 1) * size)), (column * size, 0))
    return row


def save_pictures(folder: Path, orbits: dict[tuple[str, str], Image.Image]) -> None:
    """Write the results of redream, a prompt a row, and the first prompts by all methods from left to right."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = [[orbits[prompt, "redream"]] for prompt in prompts()]
    _sheet(ours).save(folder / "redream.png")
    _sheet([[orbits[prompt, method] for method in METHODS] for prompt in prompts()[:3]]).save(folder / "methods.png")


def _sheet(rows: list[list[Image.Image]]) -> Image.Image:
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (len(rows[0]) * (width + GAP) - GAP, len(rows) * height), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + GAP), y * height))
    return sheet


def table(rows: list[dict[str, Any]]) -> str:
    """Return the mean of every figure by method, and which method is best."""
    names = [name for name in rows[0] if name not in ("prompt", "method")]
    columns = (*METHODS, ASSET)
    lines = ["| figure | " + " | ".join(columns) + " | best method |", "|---" * (len(columns) + 2) + "|"]
    for name in names:
        values = {m: mean(row[name] for row in rows if row["method"] == m) for m in columns}
        pick = max if name.startswith(HIGHER_IS_BETTER) else min
        best = pick(METHODS, key=lambda method: values[method])
        lines.append(f"| {name} | " + " | ".join(f"{values[m]:.4f}" for m in columns) + f" | {best} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
