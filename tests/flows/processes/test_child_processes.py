"""Real processes: one that fails, is killed or hangs harms no other, and none outlives the batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from flows.processes import child_processes
from flows.processes.child_processes import Children, Ended, Job


def script(name: str, code: str) -> Job:
    return Job(name=name, command=[sys.executable, "-c", code])


def run(folder: Path, jobs: list[Job], num_workers: int = 2) -> dict[str, Ended]:
    return {ended.name: ended for ended in Children(folder, os.environ).run(jobs, num_workers)}


def is_running(pid: int) -> bool:
    """Tell whether a process still does anything; what its parent has not waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path.read_text()


def test_death_of_one_leaves_the_others_alone(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        [
            script("good", "print('{}')"),
            script("bad", "import sys; print('note', file=sys.stderr); sys.exit('redream: no such mesh')"),
            script("killed", "import os; os.kill(os.getpid(), 9)"),
            script("broken", "import os; os.abort()"),
            script("silent", "raise SystemExit(3)"),
            script("late", "import time; time.sleep(1); print('[1]')"),
        ],
    )
    assert (ended["good"].code, ended["good"].output, ended["good"].reason) == (0, "{}\n", "")
    assert (ended["bad"].code, ended["bad"].reason) == (1, "no such mesh")
    assert "want of memory" in ended["killed"].reason
    assert ended["broken"].reason == "killed by SIGABRT"
    assert ended["silent"].reason == "exit code 3"
    assert ended["late"].output == "[1]\n"


def test_no_more_run_at_a_time_than_asked(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
place = Path({str(tmp_path)!r}) / f"{{os.getpid()}}.here"
place.touch(); time.sleep(0.3); print(len(list(place.parent.glob("*.here")))); place.unlink()
"""
    ended = run(tmp_path, [script(str(number), code) for number in range(5)], num_workers=2)
    assert max(int(one.output) for one in ended.values()) <= 2


def test_closing_stops_the_running_and_starts_no_other(tmp_path: Path) -> None:
    code = f"""
import os, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pids")!r}, "a").write(f"{{os.getpid()}} {{grandchild.pid}} ")
time.sleep(600)
"""
    jobs = [script("first", "pass"), script("second", code), script("third", code), script("fourth", code)]
    with closing(Children(tmp_path, os.environ).run(jobs, num_workers=2)) as ended:
        assert next(ended).name == "first"
        wait_for(tmp_path / "pids")
        time.sleep(1.0)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    time.sleep(0.5)
    assert pids
    assert not [pid for pid in pids if is_running(pid)]
    assert not (tmp_path / "fourth.log").exists()


def test_one_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_processes, "GRACE_SECONDS", 0.5)
    code = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""
    with closing(Children(tmp_path, os.environ).run([script("first", "pass"), script("deaf", code)], 2)) as ended:
        next(ended)
        pid = int(wait_for(tmp_path / "pid"))
    assert not is_running(pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")
def test_children_of_a_killed_parent_stop(tmp_path: Path) -> None:
    child = f"""
import os, signal, time
from flows.processes.child_processes import stop_with_parent
stop_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""
    parent = f"""
import os, sys
from pathlib import Path
from flows.processes.child_processes import Children, Job
list(Children(Path({str(tmp_path)!r}), os.environ).run([Job(name="x", command=[sys.executable, "-c", {child!r}])], 1))
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    pid = int(wait_for(tmp_path / "pid"))
    assert is_running(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)
