"""Faults of runs that `redream serve` has started: of their process, their worker and the Prefect server."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.ground import PROMPT, SETTINGS, Ground, finished_stages, orphans, repeating, wait_until
from benchmarks.faults.rows import Row, resume, row_after
from flows.service.addresses import POOL
from flows.service.keeper import RESUMED
from tasks.runs.records import list_runs

CRASHED_WITHIN = 180.0  # seconds
RUN_ID = "PREFECT__FLOW_RUN_ID"
BY_ITSELF = "the keeper, without a command"
FINAL = ("Completed", "Failed", "Cancelled")


def worker_and_flow(ground: Ground, fault: str) -> Row:
    """Kill a worker together with its flow: nobody is left to say that the run has crashed."""
    out, run_id = _begun(ground, fault, "distill")
    worker = ground.served.service(POOL)
    kept = _kept(out)
    killed = time.time()
    for process in (worker, *_processes_of(run_id)):
        process.kill()
    _wait_for_end(ground, run_id)
    states = ground.served.states(run_id)
    silent = _moment(states, "Crashed") - killed
    problems = [] if silent < CRASHED_WITHIN else [f"crashed after {silent:.0f} s"]
    happened = f"Crashed {silent:.0f} s after the kill; {_history(states)}"
    return _row(ground, fault, out, run_id, happened, BY_ITSELF, kept, problems)


def dies_every_time(ground: Ground, fault: str) -> Row:
    """Kill the flow process of a run in each attempt, until nobody tries again."""
    out, run_id = _begun(ground, fault, "distill")
    kept = _kept(out)
    num_kills = 0
    while _is_tried(ground, run_id):
        num_kills += 1
        _kill_attempt(ground, out, run_id, num_kills)
    states = ground.served.states(run_id)
    problems = [] if num_kills == 2 else [f"{num_kills} attempts, not 2"]
    problems += [] if states[-1]["name"] == "Crashed" else [f"ended {states[-1]['name']}"]
    happened = f"killed {num_kills} times: {_history(states)}"
    problems += resume(ground, fault, repeating(out, list_runs(out)[-1]["run_id"]))
    return _row(ground, fault, out, run_id, happened, "`redream rerun RUN`", kept, problems)


def worker_stopped(ground: Ground, fault: str) -> Row:
    """Ask a worker to stop: it finishes its run."""
    out, run_id = _begun(ground, fault, "warm_up")
    worker = ground.served.service(POOL)
    worker.terminate()
    _wait_for_end(ground, run_id)
    worker.wait(60)
    states = ground.served.states(run_id)
    problems = [] if "Crashed" not in [state["name"] for state in states] else ["the run crashed"]
    happened = f"it finished its run and then ended; {_history(states)}"
    return _row(ground, fault, out, run_id, happened, "not needed", set(), problems)


def worker_stopped_at_once(ground: Ground, fault: str) -> Row:
    """Ask a worker twice to stop: it ends its run, and says so."""
    out, run_id = _begun(ground, fault, "distill")
    kept = _kept(out)
    worker = ground.served.service(POOL)
    worker.terminate()
    with suppress(psutil.TimeoutExpired):
        worker.wait(0.5)
    worker.terminate()
    _wait_for_end(ground, run_id)
    states = ground.served.states(run_id)
    happened = f"it ended its run and said so; {_history(states)}"
    return _row(ground, fault, out, run_id, happened, BY_ITSELF, kept, [])


def prefect_server(ground: Ground, fault: str) -> Row:
    """Kill the Prefect server in the middle of a run; `redream serve` starts it again."""
    out, run_id = _begun(ground, fault, "warm_up")
    server = ground.served.service("prefect")
    children = server.children(recursive=True)
    for process in [server, *children]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: list_runs(out)[-1]["state"] != "running")
    _wait_for_end(ground, run_id)
    states = ground.served.states(run_id)
    num_attempts = len(list_runs(out))
    happened = f"serve started it again, and the run went on: {num_attempts} attempt; {_history(states)}"
    problems = [] if num_attempts == 1 else [f"{num_attempts} attempts"]
    return _row(ground, fault, out, run_id, happened, "not needed", set(), problems)


def power_cut(ground: Ground, fault: str) -> Row:
    """Kill `redream serve` with its servers, its workers and their run, and start it again."""
    out, run_id = _begun(ground, fault, "distill")
    kept = _kept(out)
    killed = time.time()
    ground.served.kill()
    problems = ["a process of the run is still there"] if _is_running(run_id) else []
    ground.served.start()
    ready = time.time() - killed
    _wait_for_end(ground, run_id)
    states = ground.served.states(run_id)
    silent = _moment(states, "Crashed") - killed
    problems += [] if silent < CRASHED_WITHIN else [f"crashed after {silent:.0f} s"]
    happened = f"serve was ready again after {ready:.0f} s; Crashed {silent:.0f} s after the kill; {_history(states)}"
    return _row(ground, fault, out, run_id, happened, "`redream serve`", kept, problems)


def _begun(ground: Ground, fault: str, stage: str) -> tuple[Path, str]:
    """Start a deployed run and wait until it is in a stage; returns its folder and its id in Prefect."""
    out = ground.folder(fault)
    ground.fill(out, "warm_up")
    run_id = ground.served.create_run({"prompt": PROMPT, "preset": "smoke", "settings": SETTINGS, "out": str(out)})
    wait_until(lambda: any(stage in record["stages"] for record in list_runs(out)))
    return out, run_id


def _row(
    ground: Ground, fault: str, out: Path, run_id: str, happened: str, resumed_by: str, kept: set[str],
    problems: list[str],
) -> Row:  # fmt: skip
    if _is_running(run_id):
        problems = [*problems, "a process of the run is still there"]
    return row_after(ground, fault, out, happened, resumed_by, kept, problems)


def _is_running(run_id: str) -> bool:
    return bool(orphans(lambda environment: environment.get(RUN_ID) == run_id))


def _kept(out: Path) -> set[str]:
    return finished_stages(list_runs(out)[-1])


def _processes_of(run_id: str) -> list[psutil.Process]:
    """Find the processes of a run by their environment: the flow's own, and the one of Prefect that watches it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(RUN_ID) == run_id:
                found.append(process)
    return found


def _is_tried(ground: Ground, run_id: str) -> bool:
    """Tell whether a run is under way or soon will be: the keeper waits 15 s, and looks every 5 s."""
    with suppress(TimeoutError):
        wait_until(lambda: _names(ground, run_id)[-1:] not in ([], ["Crashed"]), 40)
        return True
    return False


def _kill_attempt(ground: Ground, out: Path, run_id: str, number: int) -> None:
    wait_until(lambda: len(list_runs(out)) == number and "distill" in list_runs(out)[-1]["stages"])
    psutil.Process(list_runs(out)[-1]["process"]["pid"]).kill()
    wait_until(lambda: _names(ground, run_id).count("Crashed") == number)


def _wait_for_end(ground: Ground, run_id: str) -> None:
    wait_until(lambda: bool(set(FINAL) & set(_names(ground, run_id))))


def _names(ground: Ground, run_id: str) -> list[str]:
    return [state["name"] for state in ground.served.states(run_id)]


def _history(states: list[dict[str, Any]]) -> str:
    names = [state["name"] for state in states]
    shown = [name for name in names if name in ("Crashed", RESUMED, *FINAL)]
    return " → ".join(shown)


def _moment(states: list[dict[str, Any]], name: str) -> float:
    state = next(state for state in states if state["name"] == name)
    return datetime.fromisoformat(state["timestamp"].replace("Z", "+00:00")).timestamp()
