"""A deployed batch: its objects are runs that any worker takes, and end with it when it is cancelled."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from flows.service.addresses import POOL, ask, num_workers
from tasks.runs.records import list_runs, read_run
from tests.flows.conftest import World
from tests.flows.services import Served, wait_until

PATIENCE = 900
TIMEOUT = 1800


@pytest.fixture
def second_worker(served: Served, tmp_path: Path) -> Iterator[Path]:
    """A second worker of the pool, as on another machine; gives the file of its log."""
    command = [
        sys.executable,
        "-m",
        "flows.service.worker",
        "--pool",
        POOL,
        "--name",
        "second",
        "--out",
        str(tmp_path / "out"),
    ]
    environment = {**served.environment, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    wait_until(lambda: num_workers(served.api) == 2, PATIENCE)
    yield tmp_path / "log"
    process.terminate()
    assert process.wait(PATIENCE) == 0


def submit(served: Served, world: World, out: Path, prompts: list[dict[str, Any]]) -> str:
    out.mkdir(exist_ok=True)
    file = out / "prompts.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in prompts))
    parameters = {
        "prompts_file": str(file), "preset": "smoke", "method": "sds", "index": world.index,
        "settings": world.settings, "out": str(out),
    }  # fmt: skip
    status, run = served.create_run("batch/batch", parameters)
    assert status == 201, run
    return run["id"]


def objects(served: Served, batch_id: str) -> list[dict[str, Any]]:
    wanted = {"flow_runs": {"tags": {"all_": [f"batch:{batch_id}"]}}}
    return ask(f"{served.api}/flow_runs/filter", content=wanted)[1]


@pytest.mark.timeout(TIMEOUT)
def test_any_worker_makes_the_objects_of_a_batch_in_minutes(
    served: Served, world: World, tmp_path: Path, second_worker: Path
) -> None:
    out = tmp_path / "out"
    prompts: list[dict[str, Any]] = [{"prompt": f"a grey box {number}"} for number in range(3)]
    prompts.append({"prompt": "a grey ball", "settings": {"export.density_threshold": 1e9}})
    batch_id = submit(served, world, out, prompts)
    assert served.wait_for_state(batch_id, ("Completed", "Failed", "Crashed"), PATIENCE)["name"] == "Failed"
    made = objects(served, batch_id)
    assert sorted(run["state"]["name"] for run in made) == ["Completed"] * 3 + ["Failed"]
    taken = second_worker.read_text().count("submitting flow run")
    assert 0 < taken < len(prompts)
    (record,) = [record for record in list_runs(out) if record["flow"] == "batch"]
    outcomes = json.loads((out / "runs" / record["run_id"] / "outcomes.json").read_text())["outcomes"]
    assert [outcome["state"] for outcome in outcomes] == ["done"] * 3 + ["failed"]
    assert "the field is empty" in outcomes[3]["reason"]
    assert {read_run(out, outcome["run_id"])["batch"] for outcome in outcomes} == {record["run_id"]}
    check_links(served, batch_id, next(run for run in made if run["state"]["name"] == "Completed"), out)
    check_retry(served, next(run for run in made if run["state"]["name"] == "Failed"), out)
    again = submit_again(served, batch_id)
    assert served.wait_for_state(again, ("Completed", "Failed", "Crashed"), PATIENCE)["name"] == "Failed"
    assert len(objects(served, again)) == 1  # what is there is not made again


def records_of(run: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    return [record for record in list_runs(out) if record["prefect"].get("prefect.flow_run_id") == run["id"]]


def artifact(served: Served, run_id: str, key: str) -> str:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}}
    (found,) = ask(f"{served.api}/artifacts/filter", content=wanted)[1]
    return found["data"]


def check_links(served: Served, batch_id: str, run: dict[str, Any], out: Path) -> None:
    """Prefect's page of a run leads to MLflow's and back, and the batch shows pictures and leads to MLflow."""
    (record,) = records_of(run, out)
    in_mlflow = f"http://127.0.0.1:{served.mlflow_port}/#/experiments/"
    assert f"[The run in MLflow]({in_mlflow}" in artifact(served, run["id"], "result")
    gallery = artifact(served, batch_id, "gallery")
    assert gallery.count("data:image/jpeg;base64,") == 3
    assert re.search(rf"\[MLflow\]\({re.escape(in_mlflow)}\d+/runs/{record['mlflow']['run_id']}\)", gallery)
    note = MlflowClient(record["mlflow"]["uri"]).get_run(record["mlflow"]["run_id"]).data.tags["mlflow.note.content"]
    assert re.search(rf"\(http://127\.0\.0\.1:{served.port}/[a-z/-]+/{run['id']}\)", note)


def check_retry(served: Served, run: dict[str, Any], out: Path) -> None:
    """The Retry of Prefect's page makes what has not finished, and names the attempt before."""
    (first,) = records_of(run, out)
    asked = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    ask(f"{served.api}/flow_runs/{run['id']}/set_state", content=asked)
    wait_until(lambda: len(records_of(run, out)) == 2, PATIENCE)
    served.wait_for_state(run["id"], "Failed", PATIENCE)
    second = records_of(run, out)[1]
    assert second["rerun_of"] == first["run_id"]
    assert {name: entry["state"] for name, entry in second["stages"].items()} == {
        name: "failed" if name == "export" else "cached" for name in first["stages"]
    }


def submit_again(served: Served, batch_id: str) -> str:
    run = served.run(batch_id)
    return served.create_run("batch/batch", run["parameters"])[1]["id"]


@pytest.mark.timeout(TIMEOUT)
def test_objects_of_a_cancelled_batch_are_cancelled_in_minutes(served: Served, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch_id = submit(served, world, out, [{"prompt": f"a grey pipe {number}"} for number in range(4)])
    wait_until(
        lambda: any(record["flow"] == "generate" for record in list_runs(out)) if out.is_dir() else False, PATIENCE
    )
    asked = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
    ask(f"{served.api}/flow_runs/{batch_id}/set_state", content=asked)
    served.wait_for_state(batch_id, "Cancelled", PATIENCE)
    ends = {"Cancelled", "Completed"}
    wait_until(lambda: {run["state"]["name"] for run in objects(served, batch_id)} <= ends, PATIENCE)
    assert sum(run["state"]["name"] == "Cancelled" for run in objects(served, batch_id)) >= 2
