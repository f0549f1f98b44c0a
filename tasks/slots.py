"""A machine's GPUs as a counted resource: as many trainings at a time as there are slots, whoever starts them.

A slot is a lock on a file in the output folder, so that all processes on a machine share the count and the kernel frees
the slot of a process that dies. The stages of one process share one slot: they are one run's, and were given one GPU.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

NUM_SLOTS = "REDREAM_GPUS"  # environment variable: trainings at a time on this machine
POLL_SECONDS = 0.5


def choose_device() -> str:
    import torch  # seconds, and most who count slots need none of it

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class _Held:
    lock: FileLock
    number: int
    users: int


_guard = threading.Lock()
_held: dict[Path, _Held] = {}


@contextmanager
def gpu_slot(out: Path, num_slots: int, on_wait: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold one of the machine's slots and give its number; `on_wait` is called while others have them all."""
    with _guard:  # also while waiting: the process's other stages wait for the same slot
        held = _held.get(out)
        if held is None:
            held = _held[out] = _acquire(out / "slots", num_slots, on_wait)
        held.users += 1
    try:
        yield held.number
    finally:
        with _guard:
            held.users -= 1
            if held.users == 0:
                held.lock.release()
                del _held[out]


def _acquire(folder: Path, num_slots: int, on_wait: Callable[[], None]) -> _Held:
    folder.mkdir(parents=True, exist_ok=True)
    machine = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())
    while True:
        for number in range(num_slots):
            lock = FileLock(folder / f"{machine}-{number}.lock", thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return _Held(lock, number, users=0)
        on_wait()
        time.sleep(POLL_SECONDS)


def asked_slots() -> int | None:
    """Return the number of slots that the environment asks for.

    Raises:
        ValueError: it is no positive number.
    """
    text = os.environ.get(NUM_SLOTS, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{NUM_SLOTS} is {text!r}; it must be a number of GPUs, at least 1")
    return int(text)
