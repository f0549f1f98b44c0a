"""What happens to runs when processes die or workers stop, with real processes and real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.service.addresses import TAG, ask
from flows.service.keeper import RESUMED, SILENCE, SILENT, silence_automation
from flows.service.worker import STOPPED
from tasks.runs.records import list_runs
from tests.flows.conftest import World
from tests.flows.services import Served, wait_until

ROOT = Path(__file__).parents[2]
CRASHED_WITHIN = 180  # seconds
PATIENCE = 600  # seconds, beside other work on few cores


def deploy_small_flow(served: Served, name: str, pool: str = "local") -> str:
    """Deploy a flow of small_flows.py and return how it is called."""
    _, made = ask(f"{served.api}/flows/", content={"name": name})
    deployment = {
        "name": pool,
        "flow_id": made["id"],
        "entrypoint": f"tests.flows.small_flows.{name}",
        "work_pool_name": pool,
        "tags": [TAG],
        "enforce_parameter_schema": False,  # it says none, and the keeper would close that
        "job_variables": {"env": {"PYTHONPATH": str(ROOT)}},
    }
    # A busy database answers with 503, after which Prefect's own client asks again as well.
    wait_until(lambda: ask(f"{served.api}/deployments/", content=deployment)[0] in (200, 201), 60)
    return f"{name}/{pool}"


def flow_processes(run_id: str) -> list[psutil.Process]:
    """Find the processes of a run on this machine: Prefect starts the flow's own from one that watches it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run_id:
                found.append(process)
    assert found, run_id
    return found


def moment(state: dict[str, Any]) -> float:
    return datetime.fromisoformat(state["timestamp"].replace("Z", "+00:00")).timestamp()


def test_silence_is_several_heartbeats_and_less_than_what_is_promised() -> None:
    heartbeat = 30
    assert 4 * heartbeat <= SILENCE.total_seconds() <= CRASHED_WITHIN - heartbeat
    trigger: Any = silence_automation().trigger
    assert trigger.within == SILENCE
    assert trigger.expect >= {"prefect.flow-run.heartbeat", "prefect.flow-run.Completed", "prefect.flow-run.Crashed"}


@pytest.mark.timeout(1800)
def test_killed_worker_and_flow_end_up_crashed_and_the_run_is_finished_in_minutes(
    served: Served, world: World, tmp_path: Path
) -> None:
    settings = {**world.settings, "distill.num_steps": 400, "export.density_threshold": 0.02}
    parameters = {"prompt": "a grey box", "preset": "smoke", "index": world.index, "settings": settings}
    parameters["out"] = str(tmp_path)
    _, run = served.create_run("generate/generate", parameters)
    wait_until(lambda: any("distill" in record["stages"] for record in list_runs(tmp_path)), PATIENCE)
    worker, flow = served.service("worker"), flow_processes(run["id"])
    killed = time.time()
    for process in (worker, *flow):
        process.kill()
    served.wait_for_state(run["id"], (RESUMED, "Pending", "Running", "Completed"), PATIENCE)
    wait_until(lambda: RESUMED in served.state_names(run["id"]), PATIENCE)
    crash = next(state for state in served.states(run["id"]) if state["name"] == "Crashed")
    assert crash["message"] == SILENT
    assert moment(crash) - killed < CRASHED_WITHIN
    served.wait_for_state(run["id"], "Completed", PATIENCE)
    first, second = list_runs(tmp_path)
    done = {name for name, entry in first["stages"].items() if entry["state"] == "computed"}
    assert done >= {"retrieve", "align", "render", "adapt"}
    assert all(second["stages"][name]["state"] == "cached" for name in done)
    assert second["state"] == "finished"
    assert served.run(run["id"])["run_count"] == 2


@pytest.mark.timeout(1800)
def test_run_that_always_dies_is_tried_a_set_number_of_times_in_minutes(served: Served, tmp_path: Path) -> None:
    _, run = served.create_run(deploy_small_flow(served, "dying"), {"folder": str(tmp_path)})
    wait_until(lambda: (tmp_path / "attempts").exists() and len(attempts(tmp_path)) == 3, PATIENCE)
    served.wait_for_state(run["id"], "Crashed", PATIENCE)
    time.sleep(40)  # more than the keeper waits before it tries again
    assert len(attempts(tmp_path)) == 3
    assert served.state_names(run["id"]).count(RESUMED) == 2  # as --max-resumes says
    assert served.run(run["id"])["state"]["name"] == "Crashed"


def attempts(folder: Path) -> list[str]:
    return (folder / "attempts").read_text().splitlines()


@pytest.fixture
def other_worker(served: Served, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of a pool of its own, as on another machine."""
    pool = f"other-{os.getpid()}-{time.monotonic_ns()}"
    environment = {**served.environment, "REDREAM_OUT": str(served.out), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    command = [sys.executable, "-m", "flows.service.worker", "--pool", pool, "--limit", "1", "--name", pool]
    process = subprocess.Popen(command, env=environment)
    wait_until(lambda: ask(f"{served.api}/work_pools/{pool}")[0] == 200, PATIENCE)
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def pool_of(worker: subprocess.Popen[bytes]) -> str:
    assert isinstance(worker.args, list)
    return str(worker.args[worker.args.index("--pool") + 1])


@pytest.mark.timeout(1800)
def test_worker_that_is_told_to_stop_finishes_its_run_and_takes_no_other_in_minutes(
    served: Served, other_worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    sleeping = deploy_small_flow(served, "sleeping", pool_of(other_worker))
    _, first = served.create_run(sleeping, {"folder": str(tmp_path), "seconds": 15})
    wait_until(lambda: (tmp_path / "started").exists(), PATIENCE)
    other_worker.send_signal(signal.SIGTERM)
    _, second = served.create_run(sleeping, {"folder": str(tmp_path), "seconds": 0})
    assert other_worker.wait(PATIENCE) == 0
    assert (tmp_path / "finished").exists()
    assert served.run(first["id"])["state"]["name"] == "Completed"
    assert served.run(second["id"])["state"]["type"] == "SCHEDULED"  # for whoever comes next


@pytest.mark.timeout(1800)
def test_worker_that_is_told_twice_ends_its_run_and_says_so_in_minutes(
    served: Served, other_worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    sleeping = deploy_small_flow(served, "sleeping", pool_of(other_worker))
    _, run = served.create_run(sleeping, {"folder": str(tmp_path), "seconds": 3600})
    wait_until(lambda: (tmp_path / "started").exists(), PATIENCE)
    flow = flow_processes(run["id"])
    other_worker.send_signal(signal.SIGTERM)
    time.sleep(2)
    other_worker.send_signal(signal.SIGTERM)
    assert other_worker.wait(PATIENCE) == 143
    assert not [process for process in flow if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    state = served.run(run["id"])["state"]
    assert state["name"] == "Crashed"
    assert state["message"] == STOPPED or "termination" in state["message"]
