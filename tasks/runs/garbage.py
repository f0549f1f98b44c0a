"""What the store holds that no run needs: outputs and unfinished work whose key no run's record names.

A run is kept as long as its folder lies in `runs/`; who deletes that folder gives its outputs up, unless other runs
share them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.runs.records import list_runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """A folder of the store that can go."""

    stage: str
    kind: str  # output, or unfinished: what a stage left that did not come to its end
    path: str
    num_bytes: int


def find_garbage(out: Path) -> list[Garbage]:
    """Return what can go, the largest first."""
    kept = {entry["key"] for record in list_runs(out) for entry in record["stages"].values()}
    store = out / "store"
    outputs = ((folder.parts[-3], "output", folder) for folder in store.glob("*/??/*"))
    unfinished = ((folder.parts[-2], "unfinished", folder) for folder in store.glob("partial/*/*"))
    found = [
        Garbage(stage=stage, kind=kind, path=str(folder), num_bytes=folder_size(folder))
        for stage, kind, folder in (*outputs, *unfinished)
        if folder.is_dir() and not folder.is_symlink() and folder.name not in kept
    ]
    return sorted(found, key=lambda garbage: -garbage.num_bytes)


def delete_garbage(out: Path, garbage: Sequence[Garbage]) -> list[Garbage]:
    """Delete what was found, and return what is gone; what another process has locked stays.

    Raises:
        ValueError: a run is under way, which may use what no record names yet.
    """
    if running := [record["run_id"] for record in list_runs(out) if record["state"] == "running"]:
        raise ValueError(f"run {running[0]} is under way and may use what would be deleted; wait for it, or stop it")
    return [each for each in garbage if delete_folder(out / "store", Path(each.path))]


def delete_folder(store: Path, folder: Path) -> bool:
    """Move a folder aside before it is deleted: so that it is complete or absent, as the store promises."""
    lock = FileLock(store / "locks" / f"{folder.name}.lock")
    lock_folder = Path(lock.lock_file).parent
    lock_folder.mkdir(exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        trash = store / f".deleted-{folder.name}"
        shutil.rmtree(trash, ignore_errors=True)
        os.rename(folder, trash)
        shutil.rmtree(trash)
    finally:
        lock.release()
    return True


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
