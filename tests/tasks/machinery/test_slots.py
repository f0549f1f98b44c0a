"""Laws of the slots: never more holders than slots, one per process, and free again when a holder dies."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tasks.machinery.slots import NUM_SLOTS, SLOTS_FOLDER, asked_slots, gpu_slot, slots_folder

HOLD = """
import sys, time
from pathlib import Path
from tasks.machinery.slots import gpu_slot
with gpu_slot(Path(sys.argv[1]), int(sys.argv[2])) as number:
    print(number, flush=True)
    time.sleep(600)
"""


class Full(Exception):
    """All slots are taken."""


def full() -> None:
    raise Full


def hold(out: Path, num_slots: int) -> tuple[subprocess.Popen[str], int]:
    """Take a slot in another process; it is held until that is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out), str(num_slots)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_slots_are_counted_across_processes_and_freed_by_kill(tmp_path: Path) -> None:
    first, number = hold(tmp_path, 2)
    second, other = hold(tmp_path, 2)
    assert {number, other} == {0, 1}
    with pytest.raises(Full), gpu_slot(tmp_path, 2, full):
        pass
    first.kill()
    first.wait()
    with gpu_slot(tmp_path, 2, full) as freed:
        assert freed == number
    second.kill()
    second.wait()


def test_stages_of_one_process_share_a_slot_until_the_last_leaves(tmp_path: Path) -> None:
    barrier, numbers = threading.Barrier(3, timeout=30), []

    def stage() -> None:
        with gpu_slot(tmp_path, 1, full) as number:
            numbers.append(number)
            barrier.wait()

    threads = [threading.Thread(target=stage) for _ in range(2)]
    for thread in threads:
        thread.start()
    barrier.wait()  # reached by all three only if both threads are inside
    for thread in threads:
        thread.join()
    assert numbers == [0, 0]
    process, _ = hold(tmp_path, 1)  # would wait for ever if it had not been given back
    process.kill()
    process.wait()


def test_machine_has_one_folder_of_slots_that_nobody_else_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLOTS_FOLDER, str(tmp_path / "given"))
    assert slots_folder() == tmp_path / "given"
    monkeypatch.delenv(SLOTS_FOLDER)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert slots_folder() == slots_folder()
    assert slots_folder().stat().st_mode & 0o777 == 0o700
    other = os.getuid() + 1
    (tmp_path / f"redream-slots-{other}").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(ValueError, match="belongs to another user"):
        slots_folder()


def test_processes_that_see_other_devices_count_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    process, _ = hold(tmp_path, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with gpu_slot(tmp_path, 1, full):
        pass
    process.kill()
    process.wait()


def test_containers_of_a_machine_count_together_by_a_folder_that_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SLOTS_FOLDER, str(tmp_path))
    process, _ = hold(tmp_path, 1)
    monkeypatch.setattr(platform, "node", lambda: "another-container")
    with pytest.raises(Full), gpu_slot(slots_folder(), 1, full):
        pass
    process.kill()
    process.wait()


def test_number_of_slots_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NUM_SLOTS, raising=False)
    assert asked_slots() is None
    monkeypatch.setenv(NUM_SLOTS, "3")
    assert asked_slots() == 3
    for text in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv(NUM_SLOTS, text)
        with pytest.raises(ValueError, match="at least 1"):
            asked_slots()
