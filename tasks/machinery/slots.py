"""A machine's GPUs as a counted resource: whatever computes on one holds its slot, whoever starts it.

A slot is a lock on a file in one folder of the machine, so that all processes share the count, whatever they write to,
and the kernel frees the slot of a process that dies. A GPU's slots are named by its UUID, by which processes that
number the GPUs differently, and containers that see one each, mean the same card. A process keeps the GPU of its first
slot until it ends: its CUDA context stays there, and so do the models that libraries keep. The stages of one process
share its slot, and the last to leave gives the memory back before the slot; on a GPU they train one after the other,
because two trainings would share one stream, need the memory of both and gain nothing.

Without a GPU only trainings are counted, one per two cores.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from redream.pages.text import visible_text
from tasks.machinery.devices import SMALL_GIB, Gpu, Lack, find_gpus, is_exclusive, require_device, why_not_runs
from tasks.machinery.progress import raise_if_stopped, say

NUM_SLOTS = "REDREAM_GPUS"  # environment variable: trainings at a time on this machine
SLOTS_FOLDER = "REDREAM_SLOTS"  # environment variable: where the locks are
POLL_SECONDS = 0.5
MAX_HOLDER_CHARS = 500

OnWait = Callable[[str], None]

before_leaving: list[Callable[[], None]] = []  # what gives back the GPU memory that outlives a stage


@dataclass
class _Process:
    """What this process holds: its GPU once it has one, and its slot while stages are in it."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    training: threading.Lock = field(default_factory=threading.Lock)
    gpu: Gpu | None = None
    broken: dict[str, Lack] = field(default_factory=dict)  # GPUs on which nothing runs, by UUID
    slot: FileLock | None = None
    users: int = 0


_process = _Process()


@contextmanager
def device_slot(
    folder: Path,
    needed: float = SMALL_GIB,
    trains: bool = True,
    on_wait: OnWait = lambda _: None,
    holder: str = "",
) -> Iterator[str]:
    """Hold the slot of a device and give its name for torch, `cpu` or `cuda:N`.

    Args:
        folder: of the machine's locks.
        needed: memory that the run takes of a GPU, GiB.
        trains: on a CPU only trainings take a slot.
        on_wait: called with each new reason to wait; what it raises ends the wait, as a request to stop does.
        holder: who holds the slot meanwhile, in words for those who wait for it.

    Raises:
        ValueError: no GPU will do, and neither would the CPU.
    """
    on_wait = _telling_once(on_wait)
    with _process.guard:  # also while waiting: the process's other stages wait for the same slot
        places = _places(needed, trains)
        if places and _process.users == 0:
            _process.slot, _process.gpu = _acquire(folder, places, needed, trains, on_wait)
            if _process.slot is not None:
                _name_holder(_process.slot, holder)
        gpu = _process.gpu
        has_slot = bool(places) and _process.slot is not None
        _process.users += has_slot
    try:
        with _own_turn(on_wait) if trains and gpu is not None else nullcontext():
            use_own_gpu()
            yield f"cuda:{gpu.index}" if gpu is not None else "cpu"
    except BaseException as error:
        if gpu is not None:
            _clear_frames(error)
        raise
    finally:
        if has_slot:
            _leave()


def use_own_gpu() -> None:
    """Make the process's GPU, if it has one, this thread's current one; OpenGL then draws on it too."""
    if _process.gpu is not None:
        import torch

        torch.cuda.set_device(_process.gpu.index)


def _places(needed: float, trains: bool) -> list[tuple[Gpu | None, str]]:
    """Return the slots that would do, each with its GPU and the name of its lock; none for what needs no slot.

    `REDREAM_GPUS` is counted over all GPUs, those with the most memory first: a run that fits few of them takes no more
    slots there than other runs do.
    """
    asked = asked_slots()
    gpus = require_device(needed, _process.broken).gpus
    if not gpus and not trains:
        return []
    if not gpus:
        machine = "" if SLOTS_FOLDER in os.environ else platform.node()  # containers have names of their own
        name = re.sub(r"[^A-Za-z0-9-]", "-", f"cpu-{machine}")[:100]
        return [(None, f"{name}-{number}") for number in range(asked or cpu_slots())]
    own = _process.gpu
    every = sorted(find_gpus(0.0, _process.broken).gpus, key=lambda gpu: -gpu.gib)
    numbers = range(asked or len(every))
    places = [(every[number % len(every)], number // len(every)) for number in numbers]
    fitting: list[tuple[Gpu | None, str]] = [
        (gpu, f"{gpu.uuid}-{turn}") for gpu, turn in places if gpu in gpus and (own is None or gpu.uuid == own.uuid)
    ]
    if not fitting:
        raise ValueError(f"this process keeps {own} until it ends, and this run needs another GPU: start it by itself")
    return fitting


def _acquire(
    folder: Path, places: list[tuple[Gpu | None, str]], needed: float, trains: bool, on_wait: OnWait
) -> tuple[FileLock | None, Gpu | None]:
    """Take the first free slot, once its GPU has run an operation; none where only the CPU is left and none is due."""
    while places:
        reason = _why_waiting(folder, places)
        for gpu, name in places:
            lock = FileLock(_lock_file(folder, name), thread_local=False, mode=_lock_mode())
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            except PermissionError as error:
                raise ValueError(
                    f"the lock {lock.lock_file} cannot be opened ({error.strerror}); all who share {folder} must be "
                    f"able to write there: chmod 777 {folder} and chmod 666 its files"
                ) from error
            trouble = why_not_runs(gpu) if gpu is not None and _process.gpu is None else ""
            if not trouble:
                return lock, gpu
            lock.release()
            assert gpu is not None
            if is_exclusive(trouble) or "out of memory" in trouble:
                reason = f"waiting for {gpu}, which another process has for itself ({trouble})"
                continue
            _process.broken[gpu.uuid] = Lack(found=f"{gpu}, is left out: nothing runs on it ({trouble})")
            places = _places(needed, trains)
            say(require_device(needed, _process.broken).line())
            break
        else:
            on_wait(reason)
            time.sleep(POLL_SECONDS)
    return None, None


def _why_waiting(folder: Path, places: list[tuple[Gpu | None, str]]) -> str:
    """Say who has the slots, and how more of them are allowed."""
    holders = []
    for _, name in places:
        with suppress(OSError):  # it may have left meanwhile
            holders.append(visible_text((folder / f"{name}.holder").read_text(errors="replace")[:MAX_HOLDER_CHARS]))
    who = holders[0] if holders else "other runs"
    who += f" and {len(holders) - 1} more" if len(holders) > 1 else ""
    more = f"{NUM_SLOTS}={len(places) + 1} allows {len(places) + 1} trainings at a time here"
    return f"waiting for {who} to leave {'a GPU' if places[0][0] else 'the cores'}; {more}"


def _name_holder(slot: FileLock, holder: str) -> None:
    """Write who has a slot next to its lock, for those who wait."""
    path = Path(slot.lock_file).with_suffix(".holder")
    with suppress(OSError):  # nobody must fail for the want of a name
        path.write_text(f"{holder or 'a process'}, since {datetime.now():%H:%M}", errors="replace")
        path.chmod(_lock_mode())


def _leave() -> None:
    """Leave the process's slot; the last stage to do so gives the GPU's memory back first."""
    with _process.guard:
        _process.users -= 1
        if _process.users > 0:
            return
        if _process.gpu is not None:
            import torch

            for give_back in before_leaving:
                give_back()
            gc.collect()
            with suppress(RuntimeError):  # of a GPU that has failed; the stage's own error says how
                torch.cuda.empty_cache()
        assert _process.slot is not None
        with suppress(OSError):
            Path(_process.slot.lock_file).with_suffix(".holder").unlink()
        _process.slot.release()
        _process.slot = None


def _clear_frames(error: BaseException) -> None:
    """Let go of the models that a failed stage has in the frames of its traceback."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__


def _telling_once(on_wait: OnWait) -> OnWait:
    told = ""

    def wait(reason: str) -> None:
        nonlocal told
        raise_if_stopped()
        if reason != told:
            told = reason
            on_wait(reason)

    return wait


@contextmanager
def _own_turn(on_wait: OnWait) -> Iterator[None]:
    while not _process.training.acquire(timeout=POLL_SECONDS):
        on_wait("waiting for this run's other training")
    try:
        yield
    finally:
        _process.training.release()


def device_name(device: str) -> str:
    """Name a device of `device_slot` for people."""
    return f"{_process.gpu} ({_process.gpu.uuid})" if device != "cpu" and _process.gpu is not None else "CPU"


def num_slots() -> int:
    """Return how many runs may train at a time on this machine."""
    return asked_slots() or default_slots()


def default_slots() -> int:
    """Return how many that are if the user does not say: one per GPU, or without any, one per two cores."""
    return len(find_gpus(SMALL_GIB).gpus) or cpu_slots()


def cpu_slots() -> int:
    return max(1, num_cores() // 2)


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lock_mode() -> int:
    return 0o666 if os.environ.get(SLOTS_FOLDER) else 0o644


def _lock_file(folder: Path, name: str) -> Path:
    """Return the path of a lock; where users share the folder, it is there with its final mode or not at all."""
    path = folder / f"{name}.lock"
    if os.environ.get(SLOTS_FOLDER) and not path.exists():
        with suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as aside:  # else as it comes
            os.fchmod(aside.fileno(), _lock_mode())
            os.link(aside.name, path)
    return path


def slots_folder() -> Path:
    """Return the folder of this machine's locks: `REDREAM_SLOTS`, else one of the user's among the temporary files.

    Raises:
        ValueError: somebody else has made it.
    """
    given = os.environ.get(SLOTS_FOLDER)
    folder = Path(given) if given else Path(tempfile.gettempdir(), f"redream-slots-{os.getuid()}")
    try:
        if given:
            _create_shared(folder)
        else:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{SLOTS_FOLDER} names {folder}, which cannot be created ({error.strerror})") from error
    if not given and folder.stat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to another user; set {SLOTS_FOLDER} to a folder of your own")
    return folder


def _create_shared(folder: Path) -> None:
    """Create a folder that all users of the machine may write, with that mode from its first moment on."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".slots-", dir=folder.parent))
    aside.chmod(0o777)  # not sticky: nobody could open another's lock
    try:
        aside.rename(folder)
    except OSError:
        aside.rmdir()
        if not folder.is_dir():  # else another process was faster
            raise


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
