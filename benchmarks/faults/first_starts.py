"""Faults of the first start in a folder: kills while the databases are created, and many starts at once.

What a command does first with its folder takes a second and the imports before it ten, so the openings are forks of
this process, which has imported everything. Whole commands are killed as well, at fewer moments.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import statistics
import sys
import time
import traceback
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - else each fork would import it
import sqlalchemy.dialects.sqlite  # noqa: F401

from benchmarks.faults.ground import Ground, asking, end
from benchmarks.faults.rows import Row
from flows.processes.environment import prepare_prefect
from tasks.machinery.slots import SLOTS_FOLDER, slots_folder
from tasks.runs.records import list_runs
from tasks.tracking.databases import MLFLOW_USERS, prepare_database, sqlite_url
from tasks.tracking.relocation import EXPERIMENT
from tasks.tracking.tracker import open_tracking

MOMENTS = 200  # of each signal
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STARTS, ROUNDS = 8, 20
COMMANDS = 10
AGAIN = "the same command"


def killed_openings(ground: Ground, fault: str) -> Row:
    """Kill an opening of an empty folder at moments from its first to its last, by every signal."""
    folder = ground.folder(fault)
    seconds = _opening_seconds(folder)
    problems = Counter[str]()
    num_killed = 0
    for signal_number in SIGNALS:
        for number in range(MOMENTS):
            out = folder / f"{signal_number.name}-{number}"
            pid = _fork(out)
            time.sleep(seconds * number / MOMENTS)
            with suppress(ProcessLookupError):
                os.kill(pid, signal_number)
            num_killed += _ended(pid) != 0
            problems.update(_problems(out, [_ended(_fork(out))]))
            shutil.rmtree(out, ignore_errors=True)
    happened = f"{len(SIGNALS) * MOMENTS} openings of {seconds:.2f} s each signalled, {num_killed} of them killed"
    return _row(happened, problems)


def many_openings(ground: Ground, fault: str) -> Row:
    """Open an empty folder by eight processes at once."""
    folder = ground.folder(fault)
    problems = Counter[str]()
    started = time.monotonic()
    for number in range(ROUNDS):
        out = folder / str(number)
        pids = [_fork(out) for _ in range(STARTS)]
        problems.update(_problems(out, [_ended(pid) for pid in pids]))
        shutil.rmtree(out, ignore_errors=True)
    took = (time.monotonic() - started) / ROUNDS
    return _row(f"{STARTS} openings at once, {ROUNDS} times, {took:.1f} s each time", problems)


def killed_first_commands(ground: Ground, fault: str) -> Row:
    """Kill whole commands in a folder without databases, and give each again."""
    problems = Counter[str]()
    out = ground.folder(fault) / "undisturbed"
    ground.fill(out, "export")
    started = time.monotonic()
    process = ground.start(fault, asking(out), servers={})
    while not list_runs(out) and process.poll() is None:
        time.sleep(0.1)
    seconds = time.monotonic() - started
    if (ended := end(process)).code != 0:
        problems[f"undisturbed it ended with {ended.code}: {ended.last_line}"] += 1
    for number in range(COMMANDS):
        out = ground.work / fault / str(number)
        ground.fill(out, "export")
        process = ground.start(fault, asking(out), servers={})
        time.sleep(seconds * (number + 1) / COMMANDS)
        process.send_signal(SIGNALS[number % len(SIGNALS)])
        end(process)
        if (ended := end(ground.start(fault, asking(out), servers={}))).code != 0:
            problems[f"again it ended with {ended.code}: {ended.last_line}"] += 1
    return _row(
        f"{COMMANDS} commands killed within their first {seconds:.0f} s, each by one of three signals", problems
    )


def open_folder(out: Path) -> None:
    """Do what commands do first: create the databases, find the experiment, and the folder of the slots."""
    out.mkdir(parents=True, exist_ok=True)
    prepare_prefect({"PREFECT_HOME": str(out / ".prefect")})
    prepare_database(out / ".mlflow-auth.db", MLFLOW_USERS)
    open_tracking(sqlite_url(out / "mlflow.db"), out)
    os.environ[SLOTS_FOLDER] = str(out / "slots")
    slots_folder()


def _fork(out: Path) -> int:
    """Open a folder in a process of its own; returns its id."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child has its own handlers
    if pid := os.fork():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return pid
    code = 1
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as commands do
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        open_folder(out)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _opening_seconds(folder: Path) -> float:
    """Return how long an opening takes that nobody disturbs."""
    took = []
    for number in range(3):
        started = time.monotonic()
        assert _ended(_fork(folder / f"undisturbed-{number}")) == 0
        took.append(time.monotonic() - started)
    return statistics.median(took)


def _problems(out: Path, codes: list[int]) -> list[str]:
    """Return what is wrong with a folder after openings that should have succeeded."""
    problems = [f"an opening ended with {code}" for code in codes if code != 0]
    if problems:
        return problems
    for name in ("mlflow.db", ".mlflow-auth.db", ".prefect/prefect.db"):
        with closing(sqlite3.connect(out / name)) as database:
            (state,) = database.execute("PRAGMA integrity_check").fetchone()
            problems += [] if state == "ok" else [f"{name}: {state}"]
            if name == "mlflow.db":
                found = database.execute("SELECT count(*) FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
                problems += [] if found == (1,) else [f"{found[0]} experiments"]
    return problems


def _row(happened: str, problems: Counter[str]) -> Row:
    found = [f"{count} times: {problem}" for problem, count in problems.items()]
    return Row(happened=happened, resumed_by=AGAIN, has_weights=False, problems=found)
