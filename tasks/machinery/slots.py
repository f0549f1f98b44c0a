"""A machine's GPUs as a counted resource: as many trainings at a time as there are slots, whoever starts them.

A slot is a lock on a file in one folder of the machine, so that all processes share the count, whatever they write to,
and the kernel frees the slot of a process that dies. Processes that see other devices (`CUDA_VISIBLE_DEVICES`) count
apart. The stages of one process share one slot: they are one run's, and were given one GPU.
"""

from __future__ import annotations

import os
import platform
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

NUM_SLOTS = "REDREAM_GPUS"  # environment variable: trainings at a time on this machine
SLOTS_FOLDER = "REDREAM_SLOTS"  # environment variable: where the locks are
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
def gpu_slot(folder: Path, num_slots: int, on_wait: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold one of the machine's slots and give its number; `on_wait` is called while others have them all."""
    with _guard:  # also while waiting: the process's other stages wait for the same slot
        held = _held.get(folder)
        if held is None:
            held = _held[folder] = _acquire(folder, num_slots, on_wait)
        held.users += 1
    try:
        yield held.number
    finally:
        with _guard:
            held.users -= 1
            if held.users == 0:
                held.lock.release()
                del _held[folder]


def _acquire(folder: Path, num_slots: int, on_wait: Callable[[], None]) -> _Held:
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    machine = "" if SLOTS_FOLDER in os.environ else platform.node()  # containers of one machine have names of their own
    group = re.sub(r"[^A-Za-z0-9-]", "-", f"{machine}-{devices}")[:100]
    while True:
        for number in range(num_slots):
            lock = FileLock(folder / f"{group}-{number}.lock", thread_local=False, mode=_lock_mode())
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            except PermissionError as error:
                raise ValueError(
                    f"the lock {lock.lock_file} cannot be opened ({error.strerror}); all who share {folder} must be "
                    f"able to write there: chmod 777 {folder} and chmod 666 its files"
                ) from error
            return _Held(lock, number, users=0)
        on_wait()
        time.sleep(POLL_SECONDS)


def _lock_mode() -> int:
    return 0o666 if os.environ.get(SLOTS_FOLDER) else 0o644


def slots_folder() -> Path:
    """Return the folder of this machine's locks: `REDREAM_SLOTS`, else one of the user's among the temporary files.

    Raises:
        ValueError: somebody else has made it.
    """
    given = os.environ.get(SLOTS_FOLDER)
    folder = Path(given) if given else Path(tempfile.gettempdir(), f"redream-slots-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True)
        if given:
            folder.chmod(0o777)  # the users of a machine share it; not sticky, where no other's lock can be opened
    except FileExistsError:
        pass
    except OSError as error:
        raise ValueError(f"{SLOTS_FOLDER} names {folder}, which cannot be created ({error.strerror})") from error
    if not given and folder.stat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to another user; set {SLOTS_FOLDER} to a folder of your own")
    return folder


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
