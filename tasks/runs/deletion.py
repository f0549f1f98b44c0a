"""What goes with a run: its folder, the store entries that no other run names, and its runs in MLflow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.runs.garbage import Garbage, delete_folder, folder_size
from tasks.runs.records import list_runs, run_folder
from tasks.tracking.tracker import delete_tracked, open_tracking, tracked_runs, uri_today


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """What deleting a run removes."""

    run_id: str
    folder: str
    folder_bytes: int
    store: tuple[Garbage, ...]
    mlflow_uri: str
    mlflow_runs: tuple[str, ...]
    artifact_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.folder_bytes + self.artifact_bytes + sum(entry.num_bytes for entry in self.store)


def plan_deletion(out: Path, record: Mapping[str, Any]) -> Deletion:
    """Find what goes with a run.

    Raises:
        ValueError: the run is under way.
    """
    run_id = record["run_id"]
    if record["state"] == "running":
        raise ValueError(f"run {run_id} is still under way; stop it first")
    kept = {entry["key"] for other in list_runs(out) if other["run_id"] != run_id for entry in other["stages"].values()}
    store = []
    for stage, entry in record["stages"].items():
        key = entry["key"]
        if key in kept:
            continue
        unfinished = out / "store" / "partial" / stage / key
        for kind, place in (("output", out / "store" / stage / key[:2] / key), ("unfinished", unfinished)):
            if place.is_dir() and not place.is_symlink():
                store.append(Garbage(stage=stage, kind=kind, path=str(place), num_bytes=folder_size(place)))
    uri = uri_today(record["mlflow"], out)
    tracked = tracked_runs(open_tracking(uri, out), record["mlflow"]["run_id"])
    folder = run_folder(out, run_id)
    return Deletion(
        run_id=run_id,
        folder=str(folder),
        folder_bytes=folder_size(folder),
        store=tuple(store),
        mlflow_uri=uri,
        mlflow_runs=tuple(tracked),
        artifact_bytes=sum(tracked.values()),
    )


def delete_run(out: Path, deletion: Deletion) -> list[str]:
    """Delete what was planned, the run's folder first; return the store entries that another process is using."""
    folder = Path(deletion.folder)
    trash = folder.with_name(f".deleted-{folder.name}")
    os.rename(folder, trash)  # whole or gone, also where this is interrupted
    delete_tracked(open_tracking(deletion.mlflow_uri, out), deletion.mlflow_runs)
    busy = [entry.path for entry in deletion.store if not delete_folder(out / "store", Path(entry.path))]
    shutil.rmtree(trash)
    return busy
