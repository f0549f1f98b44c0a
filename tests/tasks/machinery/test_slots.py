"""Laws of the slots: never more holders than slots, one per process, one card for a process's life, memory given back.

The cards are faked (`tests/tasks/faked_cards.py`); slots, locks and the order of things are the real ones.
"""

from __future__ import annotations

import itertools
import os
import platform
import stat
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from tasks.machinery import slots
from tasks.machinery.devices import DEVICE, FULL_SIZE_GIB
from tasks.machinery.slots import (
    NUM_SLOTS,
    SLOTS_FOLDER,
    asked_slots,
    default_slots,
    device_slot,
    num_cores,
    slots_folder,
)
from tests.tasks.machinery.faked_cards import BUSY, Card, Machine, another_process, fake_cards

HOLD = """
import sys, time
from pathlib import Path
from tasks.machinery.slots import device_slot
with device_slot(Path(sys.argv[1])) as device:
    print(device, flush=True)
    time.sleep(600)
"""
# In the order of a run, and whether each trains.
STAGES = (
    ("index", False),
    ("align", False),
    ("warm_up", True),
    ("adapt", True),
    ("distill", True),
    ("evaluate", False),
)


class Full(Exception):
    """All slots are taken."""


def full(reason: str) -> None:
    raise Full(reason)


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Take a slot in another process, which has no GPU; it is held until that is killed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "cpu\n"
        yield process
        process.kill()


@contextmanager
def others_hold(folder: Path, *names: str) -> Iterator[None]:
    """Hold slots as other processes do."""
    locks = [FileLock(folder / f"{name}.lock") for name in names]
    for lock in locks:
        lock.acquire(timeout=0)
    yield
    for lock in locks:
        lock.release()


def is_held(folder: Path, name: str) -> bool:
    try:
        with FileLock(folder / f"{name}.lock", timeout=0):
            return False
    except Timeout:
        return True


def slots_of(machine: Machine) -> list[str]:
    return [f"{card.uuid}-0" for card in machine.cards]


def test_slots_are_counted_across_processes_and_freed_by_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NUM_SLOTS, "2")
    with holder(tmp_path) as first, holder(tmp_path):
        wanted = r"for a process, since \d\d:\d\d and 1 more to leave the cores; REDREAM_GPUS=3 allows 3"
        with pytest.raises(Full, match=wanted), device_slot(tmp_path, on_wait=full):
            pass
        first.kill()
        first.wait()
        with device_slot(tmp_path, on_wait=full) as device:
            assert device == "cpu"


def test_containers_of_a_machine_count_its_cores_together_by_a_folder_that_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SLOTS_FOLDER, str(tmp_path))
    monkeypatch.setenv(NUM_SLOTS, "1")
    with holder(tmp_path):
        monkeypatch.setattr(platform, "node", lambda: "another-container")
        with pytest.raises(Full), device_slot(slots_folder(), on_wait=full):
            pass


def test_stages_of_one_process_share_a_slot_until_the_last_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = fake_cards(monkeypatch, [Card()])
    barrier, found = threading.Barrier(3, timeout=30), []

    def stage() -> None:
        with device_slot(tmp_path, trains=False, on_wait=full) as device:
            found.append(device)
            barrier.wait()

    threads = [threading.Thread(target=stage) for _ in range(2)]
    for thread in threads:
        thread.start()
    barrier.wait()  # reached by all three only if both threads are inside
    for thread in threads:
        thread.join()
    assert found == ["cuda:0", "cuda:0"]
    assert not is_held(tmp_path, slots_of(machine)[0])


@pytest.mark.parametrize(("cards", "together"), [([Card()], 1), ([Card(), Card()], 1), ([], 2)])
def test_trainings_of_one_process_take_turns_on_a_gpu_and_not_on_a_cpu(
    cards: list[Card], together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cards(monkeypatch, cards)
    inside, most = [], []

    def training() -> None:
        with device_slot(tmp_path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.3)
            inside.pop()

    threads = [threading.Thread(target=training) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 2
    assert max(most) == together


def test_on_a_cpu_only_trainings_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, [])
    monkeypatch.setenv(NUM_SLOTS, "1")
    monkeypatch.setenv(SLOTS_FOLDER, str(tmp_path))
    with others_hold(tmp_path, "cpu--0"):
        with device_slot(tmp_path, trains=False, on_wait=full) as device:
            assert device == "cpu"
        with pytest.raises(Full), device_slot(tmp_path, trains=True, on_wait=full):
            pass


@pytest.mark.parametrize("num_cards", [1, 2, 4])
def test_each_stage_is_on_the_process_s_own_card_inside_its_slot_in_every_order_of_reuse(
    num_cards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stages are reused, and whatever cards others hold when the first one comes."""
    machine = fake_cards(monkeypatch, [Card() for _ in range(num_cards)])
    monkeypatch.setattr(slots, "gc", types.SimpleNamespace(collect=lambda: None))  # 0.1 s each; its own test is below
    names = slots_of(machine)
    reuses = itertools.product((False, True), repeat=len(STAGES))
    for number, are_reused in enumerate(reuses):
        another_process(monkeypatch)
        others = [names[i] for i in range(num_cards) if i != number % num_cards]
        own = None
        for (_, trains), is_reused in zip(STAGES, are_reused, strict=True):
            if is_reused:
                continue
            with others_hold(tmp_path, *(others if own is None else [])):  # later others have left: a choice to resist
                with device_slot(tmp_path, trains=trains, on_wait=full) as device:
                    assert device == (own or f"cuda:{number % num_cards}")
                    assert machine.current_device() == number % num_cards
                    assert is_held(tmp_path, names[number % num_cards])
                    weights = machine.load(device)
                    del weights
                own = device
                assert machine.reserved.total() == 0
                assert not is_held(tmp_path, names[number % num_cards])


def test_process_waits_for_its_own_card_although_another_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = fake_cards(monkeypatch, [Card(), Card()])
    with device_slot(tmp_path, on_wait=full) as device:
        assert device == "cuda:0"
    with others_hold(tmp_path, slots_of(machine)[0]):
        with pytest.raises(Full, match="leave a GPU"), device_slot(tmp_path, on_wait=full):
            pass
        another_process(monkeypatch)
        with device_slot(tmp_path, on_wait=full) as device:
            assert device == "cuda:1"


def test_memory_is_given_back_before_the_slot_also_by_a_stage_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = fake_cards(monkeypatch, [Card()])
    at_release: list[int] = []
    release = FileLock.release
    monkeypatch.setattr(FileLock, "release", lambda lock: (at_release.append(machine.reserved.total()), release(lock)))

    def stage(device: str) -> None:
        weights = machine.load(device)
        cycle: list[object] = [weights]
        cycle.append(cycle)  # as a model and its hooks are
        raise MemoryError("CUDA out of memory")

    with pytest.raises(MemoryError) as failure, device_slot(tmp_path, on_wait=full) as device:
        try:
            stage(device)
        except MemoryError as error:
            raise MemoryError("no room for the views") from error
    assert failure.value.__cause__ is not None
    assert at_release == [0]


def test_same_card_is_one_slot_however_processes_number_and_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CUDA_VISIBLE_DEVICES` as "1" and as "GPU-…", and containers with one GPU each, all of which call it `cuda:0`."""
    fake_cards(monkeypatch, [Card(uuid="a"), Card(uuid="b")])
    monkeypatch.setenv(DEVICE, "cuda:1")
    with device_slot(tmp_path, on_wait=full):
        assert is_held(tmp_path, "b-0")
    with others_hold(tmp_path, "b-0"):
        fake_cards(monkeypatch, [Card(uuid="b")])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
        monkeypatch.setattr(platform, "node", lambda: "another-container")
        with pytest.raises(Full), device_slot(tmp_path, on_wait=full):
            pass
        for other in ("a", "MIG-c"):
            fake_cards(monkeypatch, [Card(uuid=other)])
            with device_slot(tmp_path, on_wait=full) as device:
                assert device == "cuda:0"


def test_more_trainings_than_cards_are_spread_over_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = fake_cards(monkeypatch, [Card(), Card()])
    monkeypatch.setenv(NUM_SLOTS, "3")
    first, second = (card.uuid for card in machine.cards)
    with others_hold(tmp_path, f"{first}-0", f"{second}-0"), device_slot(tmp_path, on_wait=full) as device:
        assert device == "cuda:0"
        assert is_held(tmp_path, f"{first}-1")
    another_process(monkeypatch)
    with (
        others_hold(tmp_path, f"{first}-0", f"{second}-0", f"{first}-1"),
        pytest.raises(Full),
        device_slot(tmp_path, on_wait=full),
    ):
        pass


def test_a_run_that_fits_few_cards_takes_no_more_slots_of_them_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cards(monkeypatch, [Card("NVIDIA T400 4GB", 3.8, uuid="small"), Card(uuid="big")])
    monkeypatch.setenv(NUM_SLOTS, "2")
    with others_hold(tmp_path, "big-0"), pytest.raises(Full), device_slot(tmp_path, FULL_SIZE_GIB, on_wait=full):
        pass
    monkeypatch.setenv(NUM_SLOTS, "1")
    with device_slot(tmp_path, FULL_SIZE_GIB, on_wait=full):  # the one slot is the larger card's
        assert is_held(tmp_path, "big-0")


def test_a_stage_that_falls_back_to_the_cpu_and_does_not_train_takes_no_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cards(monkeypatch, [Card(trouble="CUDA error: no kernel image is available")])
    monkeypatch.setattr(slots, "cpu_slots", lambda: 1)
    monkeypatch.setenv(SLOTS_FOLDER, str(tmp_path))
    with others_hold(tmp_path, "cpu--0"), device_slot(tmp_path, trains=False, on_wait=full) as device:
        assert device == "cpu"


def test_card_on_which_nothing_runs_is_left_out_for_the_next_or_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_code = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors …"
    fake_cards(monkeypatch, [Card(trouble=no_code), Card()])
    with device_slot(tmp_path, on_wait=full) as device:
        assert device == "cuda:1"
    assert (
        "GPU 0, NVIDIA H100 80GB HBM3, is left out: nothing runs on it (CUDA error: no kernel"
        in capsys.readouterr().err
    )
    fake_cards(monkeypatch, [Card(trouble=no_code)])
    with device_slot(tmp_path, on_wait=full) as device:
        assert device == "cpu"
    fake_cards(monkeypatch, [Card(trouble=no_code)])
    with pytest.raises(ValueError, match="needs a GPU"), device_slot(tmp_path, FULL_SIZE_GIB, on_wait=full):
        pass


def test_card_that_another_process_has_for_itself_is_waited_for_if_no_other_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = fake_cards(monkeypatch, [Card(trouble=BUSY), Card()])
    with device_slot(tmp_path, on_wait=full) as device:
        assert device == "cuda:1"
    machine = fake_cards(monkeypatch, [Card(trouble=BUSY)])

    def other_ends(reason: str) -> None:
        assert "GPU 0, NVIDIA H100 80GB HBM3, which another process has for itself" in reason
        machine.cards[0].trouble = ""

    with device_slot(tmp_path, on_wait=other_ends) as device:
        assert device == "cuda:0"


def test_small_card_is_no_slot_of_a_large_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, [Card("NVIDIA T400 4GB", 3.8), Card()])
    with device_slot(tmp_path, FULL_SIZE_GIB, on_wait=full) as device:
        assert device == "cuda:1"


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


def test_number_of_slots_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NUM_SLOTS, raising=False)
    assert asked_slots() is None
    monkeypatch.setenv(NUM_SLOTS, "3")
    assert asked_slots() == 3
    for text in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv(NUM_SLOTS, text)
        with pytest.raises(ValueError, match="at least 1"):
            asked_slots()


def test_machine_trains_as_much_as_it_has_cards_or_pairs_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, [Card(), Card(), Card("Tesla K80", 11.2, (3, 7))])
    assert default_slots() == 2
    monkeypatch.setenv(DEVICE, "cpu")
    assert default_slots() == max(1, num_cores() // 2)


def test_a_folder_of_slots_that_users_share_and_its_locks_are_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SLOTS_FOLDER, str(tmp_path / "shared"))
    umask = os.umask(0o077)
    try:
        with device_slot(slots_folder()):
            (lock,) = (tmp_path / "shared").glob("*.lock")
            assert stat.S_IMODE(lock.stat().st_mode) == 0o666
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o777


def test_a_shared_folder_and_its_locks_are_never_there_with_another_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a second user nor a kill finds them before they are open to all."""
    monkeypatch.setenv(SLOTS_FOLDER, str(tmp_path / "shared"))
    seen: dict[Path, int] = {}

    def look(*_: object) -> None:
        for path in (tmp_path / "shared", tmp_path / "shared" / "cpu--0.lock"):
            if path.exists():
                seen.setdefault(path, stat.S_IMODE(path.stat().st_mode))

    umask = os.umask(0o077)
    sys.setprofile(look)
    try:
        with device_slot(slots_folder()):
            pass
    finally:
        sys.setprofile(None)
        os.umask(umask)
    assert [*seen.values()] == [0o777, 0o666]


def test_a_lock_of_another_user_is_named_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    with pytest.raises(ValueError, match="cannot be opened .Permission denied.; all who share"), device_slot(tmp_path):
        pass
