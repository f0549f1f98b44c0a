"""Records of runs, read: what the command shows without an orchestrator or a tracker.

<out>/runs/<run_id>/   one folder per run          <out>/mlflow.db, mlartifacts/   MLflow
<out>/store/           stage outputs, by content   <out>/.prefect/                 Prefect
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks.machinery.store import Output, read_output

ALIVE_LOCK = ".alive.lock"
UNFINISHED = ("failed", "stopped", "crashed")


def read_run(out: Path, run_id: str) -> dict[str, Any]:
    """Return a run's record.

    Raises:
        ValueError: there is no such run, or its record is unreadable.
    """
    path = run_folder(out, run_id) / "run.json"
    if run_id != path.parent.name or not path.is_file():  # a name, no path that leads elsewhere
        raise ValueError(f"no run {run_id!r} in {out}; `redream runs --out {out}` lists them")
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if record["state"] == "running" and not is_alive(path.parent):
        record = json.loads(path.read_text())  # it may have ended between the two looks
        record = as_crashed(record) if record["state"] == "running" else record
    return {**record, "folder": str(path.parent)}


def as_crashed(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run under way as that of one whose process has died."""
    stages = {
        name: {**entry, "state": "crashed"} if entry["state"] in ("running", "waiting") else entry
        for name, entry in record["stages"].items()
    }
    return {**record, "state": "crashed", "stages": stages}


def is_alive(folder: Path) -> bool:
    """Tell whether the process of a run still lives, by the lock that dies with it."""
    if not (folder / ALIVE_LOCK).is_file():
        return False
    try:
        with FileLock(folder / ALIVE_LOCK, timeout=0):
            return False
    except (Timeout, OSError):  # held; or in a folder that cannot be written, where nobody can tell
        return True


def finished_stage(out: Path, record: Mapping[str, Any], stage: str) -> Output:
    """Return the output of a run's stage.

    Raises:
        ValueError: the run has not finished that stage, or its output is gone from the store.
    """
    entry = record["stages"].get(stage, {})
    if entry.get("state") not in ("computed", "cached"):
        raise ValueError(
            f"run {record['run_id']} has no finished stage {stage!r}; run the same command again, and it "
            "continues from what it has"
        )
    output = read_output(out / entry["folder"])
    if output is None:
        raise ValueError(
            f"the output of stage {stage!r} of run {record['run_id']} is gone from {out / 'store'}; run the "
            "same command again"
        )
    return output


def list_runs(out: Path) -> list[dict[str, Any]]:
    """Return the records of all runs, the oldest first."""
    found = (path.parent.name for path in (out / "runs").glob("*/run.json"))
    return sorted((read_run(out, run_id) for run_id in found), key=lambda record: record["started"])


def run_folder(out: Path, run_id: str) -> Path:
    return out / "runs" / run_id
