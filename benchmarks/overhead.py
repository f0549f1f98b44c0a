"""What the orchestration costs: `redream generate` against the same stages called directly, both in fresh processes.

The direct program is `redream/pipeline.py`: neither Prefect nor MLflow, store nor page, and without the sample views
and turntables that a run shows. `generate` runs three times: with a new database, with the same database and another
seed, and with nothing left to do.
The preset is `smoke`, for the difference does not depend on how long stages take. Run as
`python -m benchmarks.overhead`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a red owl"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--direct", nargs=2, metavar=("INDEX", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    if arguments.direct:
        run_directly(*map(Path, arguments.direct), arguments.preset)
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), arguments.preset)
    print("\n".join(f"{name:<24}{seconds:7.1f} s" for name, seconds in figures.items()))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(scratch: Path, preset: str) -> dict[str, float]:
    """Return seconds; the index is built before, and lies in the store of what is timed."""
    redream = [sys.executable, "-m", "flows.command"]
    built = [*redream, "index", "build", "--preset", preset, "--out", str(scratch / "index"), "--json"]
    place = json.loads(subprocess.run(built, check=True, capture_output=True, text=True).stdout)
    shutil.copytree(scratch / "index" / "store", scratch / "out" / "store")
    directly = [sys.executable, "-m", "benchmarks.overhead", "--preset", preset]
    directly += ["--direct", place["index_dir"]]

    def generate(seed: int) -> list[str]:
        options = ["--preset", preset, "--seed", str(seed), "--out", str(scratch / "out"), "--json"]
        return [*redream, "generate", PROMPT, *options]

    # The first call of each kind would also fill the disk's cache and compile kernels: a direct one goes ahead unseen.
    _seconds([*directly, str(scratch / "unseen")])
    figures = {"direct": _seconds([*directly, str(scratch / "direct")])}
    figures["new database"] = _seconds(generate(0))
    figures["same database"] = _seconds(generate(1))
    figures["nothing to do"] = _seconds(generate(1))
    return {
        **figures,
        "overhead, new database": figures["new database"] - figures["direct"],
        "overhead, same database": figures["same database"] - figures["direct"],
    }


def run_directly(index_dir: Path, folder: Path, preset: str) -> None:
    """Call every stage of a run once."""
    from redream.pipeline import generate
    from redream.presets import PRESETS

    folder.mkdir(parents=True)
    generate(PROMPT, PRESETS[preset](), index_dir, folder)


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
