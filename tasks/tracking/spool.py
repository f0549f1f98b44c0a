"""What waits for a tracker, on disk: an outbox per process, so that a dead server or a killed process loses nothing.

<out>/spool/<time>-<id>/00000001.json   an event; its number is its place in the order
                        00000001/       the files that belong to it, linked, so that moving an output harms nothing
                        .lock           held by the owner; free once that has died, and then anyone may deliver
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"


class Outbox:
    """The events of one process, in order. Nothing lies on disk while nothing waits."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._guard = threading.Condition()
        self._waiting: deque[Path] = deque()
        self._folder: Path | None = None
        self._lock: FileLock | None = None
        self._count = 0

    def put(self, event: Mapping[str, Any], attached: Path | None = None) -> None:
        """Append an event, with a link to a file or folder that it needs."""
        with self._guard:
            folder = self._open()
            self._count += 1
            path = folder / f"{self._count:08d}.json"
            if attached is not None:
                _link(attached, path.with_suffix("") / attached.name)
                event = {**event, "attached": attached.name}
            aside = path.with_suffix(".part")
            aside.write_text(json.dumps(event))
            os.replace(aside, path)
            self._waiting.append(path)
            self._guard.notify_all()

    def first(self) -> Path:
        """Return the oldest event that waits; blocks while there is none."""
        with self._guard:
            self._guard.wait_for(lambda: bool(self._waiting))
            return self._waiting[0]

    def done(self, path: Path) -> None:
        """Drop the oldest event; with the last one goes the folder."""
        remove(path)
        with self._guard:
            assert self._waiting[0] == path
            self._waiting.popleft()
            if not self._waiting and self._folder is not None and self._lock is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._lock.release()
                self._folder = self._lock = None
            self._guard.notify_all()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def _open(self) -> Path:
        if self._folder is None:
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
            fresh = self._root / f"new.{name.replace('-', '.')}"  # nobody takes it for an outbox before it is locked
            fresh.mkdir(parents=True)
            lock = FileLock(fresh / LOCK, thread_local=False)
            lock.acquire()
            fresh.rename(self._root / name)
            self._folder, self._lock = self._root / name, lock
        return self._folder


def leftovers(root: Path) -> Iterator[Path]:
    """Yield the events that dead processes left, in order, with their outbox locked; remove outboxes gone empty."""
    for folder in sorted(path for path in root.glob("*-*") if path.is_dir()):
        lock = FileLock(folder / LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # its owner lives, or has just removed it
            continue
        try:
            yield from sorted(folder.glob("*.json"))
            if not any(folder.glob("*.json")):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.release()


def read_event(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def attachment(path: Path, event: Mapping[str, Any]) -> Path:
    """Return the file or folder that belongs to an event."""
    return path.with_suffix("") / Path(event["attached"]).name


def remove(path: Path) -> None:
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir()
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: Path | str, target: Path | str) -> None:
    with suppress(OSError):  # another file system, or one without links
        os.link(source, target)
        return
    shutil.copyfile(source, target)
