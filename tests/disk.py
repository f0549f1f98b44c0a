"""A spy on the disk: what was synced before each rename, and whether the folder was synced after it.

It shows that the calls are made in the order that a power cut demands. That a disk keeps its promise cannot be tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Disk:
    """Renames under way: the place, the files without a sync before it, and whether its folder was synced after."""

    renamed: list[Path] = field(default_factory=list)
    unsynced: list[str] = field(default_factory=list)
    open_folders: dict[tuple[int, int], Path] = field(default_factory=dict)
    synced: set[tuple[int, int]] = field(default_factory=set)

    def is_safe(self) -> bool:
        return bool(self.renamed) and not self.unsynced and not self.open_folders


@contextmanager
def watched_disk() -> Iterator[Disk]:
    """Watch `fsync`, `rename` and `replace` of this process."""
    disk, fsync = Disk(), os.fsync

    def place(path: Path) -> tuple[int, int]:
        return path.stat().st_dev, path.stat().st_ino

    def watched_sync(handle: int) -> None:
        fsync(handle)
        entry = os.fstat(handle)
        disk.synced.add((entry.st_dev, entry.st_ino))
        disk.open_folders.pop((entry.st_dev, entry.st_ino), None)

    def watched(rename):
        def renaming(source, target, **kwargs):
            source, target = Path(source), Path(target)
            inside = [source, *source.rglob("*")] if source.is_dir() else [source]
            disk.unsynced += [str(path) for path in inside if place(path) not in disk.synced]
            rename(source, target, **kwargs)
            disk.renamed.append(target)
            disk.open_folders[place(target.parent)] = target.parent

        return renaming

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", watched_sync)
        patch.setattr(os, "rename", watched(os.rename))
        patch.setattr(os, "replace", watched(os.replace))
        yield disk
