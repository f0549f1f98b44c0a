"""The fault matrix as one command: `python -m benchmarks.faults`, or `make faults`.

Every row is a fault of real processes, with real kills, at the preset `smoke` on the CPU. Rows are kept as they finish:
a matrix that was cut short goes on where it was, a whole one starts anew, and `--only` makes some rows again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faults import commands, delivered, deployed, first_starts
from benchmarks.faults.ground import Ground
from benchmarks.faults.rows import Row
from flows.requests.plan import NEEDS

FAULTS: dict[str, Callable[[Ground, str], Row]] = {
    **{f"kill-{stage}": partial(commands.killed_in_stage, stage=stage) for stage in NEEDS},
    "kill-checkpoint": commands.killed_at_checkpoint,
    "kill-delivery": delivered.killed_in_delivery,
    "kill-batch": delivered.killed_batch,
    "kill-own-server": commands.killed_with_own_server,
    "kill-worker-and-flow": deployed.worker_and_flow,
    "kill-every-attempt": deployed.dies_every_time,
    "stop-worker": deployed.worker_stopped,
    "stop-worker-at-once": deployed.worker_stopped_at_once,
    "kill-prefect-server": deployed.prefect_server,
    "power-cut": deployed.power_cut,
    "mlflow-dead": commands.mlflow_dead,
    "mlflow-hangs": commands.mlflow_hangs,
    "disk-full": commands.disk_full,
    "read-only-folder": commands.read_only,
    "truncated-outputs": commands.truncated,
    "two-at-once": commands.two_at_once,
    "kill-first-opening": first_starts.killed_openings,
    "eight-first-openings": first_starts.many_openings,
    "kill-first-command": first_starts.killed_first_commands,
}
HEAD = "| fault | what happened | resumed by | identical weights | orphans | verdict |\n|---|---|---|---|---|---|\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", action="append", choices=[*FAULTS], metavar="NAME", help="one row; may be repeated")
    parser.add_argument("--work", type=Path, default=Path("redream-out/faults"), help="folder for everything")
    parser.add_argument("--out", type=Path, help="write the table as Markdown, default WORK/faults.md")
    asked = parser.parse_args()
    work = asked.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "rows.json"
    rows = json.loads(kept.read_text()) if kept.is_file() else {}
    if asked.only is None and rows.keys() == FAULTS.keys():
        rows = {}
    ground = Ground(work)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`
    try:
        for fault in asked.only or [name for name in FAULTS if name not in rows]:
            rows[fault] = _made(ground, fault)
            print(_line(fault, rows[fault]), flush=True)
            kept.write_text(json.dumps(rows, indent=1))
            (asked.out or work / "faults.md").write_text(table(rows))
    finally:
        ground.close()
    print(f"\n{table(rows)}")
    sys.exit(any("red" in row["verdict"] for row in rows.values()))


def table(rows: dict[str, dict[str, str]]) -> str:
    """Return the rows as a Markdown table, in the order of the faults."""
    return HEAD + "".join(f"{_line(fault, rows[fault])}\n" for fault in FAULTS if fault in rows)


def _made(ground: Ground, fault: str) -> dict[str, str]:
    started = time.monotonic()
    try:
        row = FAULTS[fault](ground, fault)
    except Exception as error:  # the other rows are worth having
        row = Row(happened="", problems=[f"{type(error).__name__}: {error}"])
    return {**_cells(row), "seconds": f"{time.monotonic() - started:.0f}"}


def _cells(row: Row) -> dict[str, str]:
    shown = {
        "happened": row.happened,
        "resumed by": row.resumed_by,
        "identical weights": "" if row.skipped or not row.has_weights else "yes" if row.has_same_weights else "**no**",
        "orphans": "" if row.skipped else str(row.num_orphans),
        "verdict": row.verdict,
    }
    return {name: " ".join(text.replace("|", "/").split()) for name, text in shown.items()}


def _line(fault: str, row: dict[str, str]) -> str:
    return f"| {fault} | {' | '.join(text for name, text in row.items() if name != 'seconds')} |"


if __name__ == "__main__":
    main()
