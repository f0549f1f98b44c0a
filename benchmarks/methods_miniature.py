"""Six prompts by three methods in the miniature: CLIP scores, A-LPIPS and wrong-side fronts of sds, vsd and redream.

Each run is one `redream generate`, so a repeated call reuses whatever is finished: a killed benchmark continues. The
prompts are left out of the catalog and were drawn by a seed, not chosen. Run as
`python -m benchmarks.methods_miniature [--runs FOLDER] [--out FILE.json]`.
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

from redream.mini.catalog import CATEGORIES, catalog_pairs

METHODS = ("sds", "vsd", "redream")
NUM_PROMPTS = 6
HIGHER_IS_BETTER = ("clip_score",)


def prompts() -> list[str]:
    """Draw prompts of things with a front that are not in the catalog."""
    pairs = [pair for pair in catalog_pairs()[1] if CATEGORIES[pair[0]].has_front]
    chosen = np.random.default_rng(6).permutation(len(pairs))[:NUM_PROMPTS]
    return [f"{'an' if pairs[i][1][0] in 'aeiou' else 'a'} {pairs[i][1]} {pairs[i][0]}" for i in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("redream-out"), help="the runs' --out folder")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    rows = []
    for prompt in prompts():
        for method in METHODS:
            command = [
                sys.executable,
                "-m",
                "flows.cli",
                "generate",
                prompt,
                "--preset",
                "mini",
                "--method",
                method,
                "--out",
                str(arguments.runs),
                "--json",
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures: dict[str, Any] = json.loads(done.stdout)["metrics"]
            rows.append({"prompt": prompt, "method": method, **figures})
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the mean of every figure by method, and which method is best."""
    names = [name for name in rows[0] if name not in ("prompt", "method")]
    lines = ["| figure | " + " | ".join(METHODS) + " | best |", "|---" * (len(METHODS) + 2) + "|"]
    for name in names:
        values = {m: mean(row[name] for row in rows if row["method"] == m) for m in METHODS}
        pick = max if name.startswith(HIGHER_IS_BETTER) else min
        best = pick(values, key=lambda method: values[method])
        lines.append(f"| {name} | " + " | ".join(f"{values[m]:.4f}" for m in METHODS) + f" | {best} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
