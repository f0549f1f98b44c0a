"""Real commands, really killed: nothing is lost, nothing half-written is used, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import get_client

from flows.service.addresses import TAG
from tasks.runs.records import finished_stage, list_runs, read_run
from tasks.tracking.tracker import default_tracking_uri
from tests.flows.conftest import World

PROMPT = "a grey box"
TIMEOUT = 1200


@pytest.fixture(scope="module")
def environment(prefect_server: None, mlflow_folder: Path) -> dict[str, str]:
    """The servers of the test session, for commands in processes of their own."""
    addresses = {"PREFECT_API_URL": str(get_client(sync_client=True).api_url).rstrip("/")}
    return {**os.environ, **addresses, "MLFLOW_TRACKING_URI": default_tracking_uri(mlflow_folder)}


@pytest.fixture
def started(environment: dict[str, str]) -> Iterator[Any]:
    """Start `redream` commands; what still runs at the end of a test is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.command", *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def asking(world: World, out: Path, *more: str) -> list[str]:
    """Return the arguments that make an object in the tiny world."""
    settings = [part for name, value in world.settings.items() for part in ("--set", f"{name}={value!r}")]
    return ["--preset", "smoke", "--index", world.index, "--out", str(out), "--json", *settings, *more]


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, messages = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, messages
    return json.loads(output)


def particles(out: Path, run_id: str) -> bytes:
    return finished_stage(out, read_run(out, run_id), "distill").path("particle_0.safetensors").read_bytes()


@pytest.mark.timeout(2 * TIMEOUT)
def test_killed_in_distill_and_repeated_gives_the_very_particles_in_minutes(
    world: World, tmp_path: Path, started: Any, environment: dict[str, str]
) -> None:
    long = ["--set", "distill.num_steps=200", "--set", "export.density_threshold=0.05"]  # noise thins what it shapes
    undisturbed = result(started("generate", PROMPT, *asking(world, tmp_path / "undisturbed", *long)))
    killed = started("generate", PROMPT, *asking(world, tmp_path / "out", *long))
    steps = tmp_path / "out" / "store" / "partial" / "distill"
    while not any(path.read_text().count("\n") > 20 for path in steps.glob("*/checkpoint/steps.jsonl")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (crashed,) = list_runs(tmp_path / "out")
    assert crashed["state"] == crashed["stages"]["distill"]["state"] == "crashed"
    resumed = result(started("rerun", crashed["run_id"], "--out", str(tmp_path / "out"), "--json"))
    assert resumed["stages"]["warm_up"] == "cached"
    assert resumed["stages"]["distill"] == "computed"
    assert particles(tmp_path / "out", resumed["run_id"]) == particles(tmp_path / "undisturbed", undisturbed["run_id"])
    tracked = MlflowClient(environment["MLFLOW_TRACKING_URI"]).get_run(crashed["mlflow"]["run_id"])
    assert tracked.info.status == "KILLED"


@pytest.mark.timeout(2 * TIMEOUT)
def test_two_commands_for_one_prompt_make_each_stage_once_in_minutes(
    world: World, tmp_path: Path, started: Any
) -> None:
    both = [started("generate", PROMPT, *asking(world, tmp_path)) for _ in range(2)]
    one, other = (result(process) for process in both)
    assert Path(one["mesh"]).read_bytes() == Path(other["mesh"]).read_bytes()
    for stage in one["stages"]:
        assert sorted((one["stages"][stage], other["stages"][stage])) == ["cached", "computed"]


@pytest.mark.timeout(2 * TIMEOUT)
def test_batch_makes_what_it_can_and_then_only_what_is_missing_in_minutes(
    world: World, tmp_path: Path, started: Any, environment: dict[str, str]
) -> None:
    prompts = [
        {"prompt": "a grey box"},
        {"prompt": "<script>alert(1)</script> -- $(touch /tmp/x)", "method": "sds"},
        {"prompt": "a grey ball", "settings": {"export.density_threshold": 1e9}},
        {"prompt": "a grey box"},
    ]
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in prompts))
    first = started("batch", str(file), *asking(world, out, "--workers", "2"))
    output, messages = first.communicate(timeout=TIMEOUT)
    assert first.returncode == 1, messages
    made = json.loads(output)
    assert [outcome["state"] for outcome in made["outcomes"]] == ["done", "done", "failed", "reused"]
    assert "the field is empty" in made["outcomes"][2]["reason"]
    assert made["outcomes"][3]["reason"] == "the same as line 1"
    page = Path(made["gallery"]).read_text()
    assert "<script" not in page
    assert page.count("data:image/jpeg") == 2
    assert "<svg" in page
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    record = read_run(out, made["run_id"])
    assert record["state"] == "failed"
    assert "gallery.html" in {entry.path for entry in client.list_artifacts(record["mlflow"]["run_id"])}
    members = [run for run in list_runs(out) if run["batch"] == made["run_id"]]
    assert sorted(member["state"] for member in members) == ["failed", "finished", "finished"]
    assert len({member["prefect"]["prefect.flow_run_id"] for member in members}) == 3
    prompts[2]["settings"] = {"export.density_threshold": 1.0}
    file.write_text("".join(json.dumps(entry) + "\n" for entry in prompts))
    again = result(started("batch", str(file), *asking(world, out)))
    assert [outcome["state"] for outcome in again["outcomes"]] == ["reused", "reused", "done", "reused"]


@pytest.mark.timeout(3 * TIMEOUT)
def test_a_comparison_that_was_killed_ends_with_the_report_of_an_undisturbed_one_in_minutes(
    world: World, tmp_path: Path, started: Any
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a grey box\na grey ball\n")
    asked = [str(file), "--methods", "vsd,sds", "--seeds", "0,1", "--workers", "2"]
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    made = result(started("compare", *asked, *asking(world, whole)))
    process = started("compare", *asked, *asking(world, killed))
    while sum(run["flow"] == "generate" and run["state"] == "finished" for run in list_runs(killed)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.kill()
    process.communicate(timeout=TIMEOUT)
    again = result(started("compare", *asked, *asking(world, killed)))
    for name in ("report.html", "objects.csv", "comparison.json", "table.tex"):
        one, other = (Path(each["report"]).with_name(name).read_bytes() for each in (made, again))
        assert one == other, name
    assert set(made["means"]["clip_a"]) == {"vsd", "sds"}


@pytest.mark.timeout(2 * TIMEOUT)
def test_terminated_command_ends_at_its_next_step_in_minutes(world: World, tmp_path: Path, started: Any) -> None:
    endless = ["--set", "distill.num_steps=100000"]
    process = started("generate", PROMPT, *asking(world, tmp_path, *endless))
    while not any("distill" in run["stages"] for run in list_runs(tmp_path)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.terminate()
    _, messages = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143, messages
    (record,) = list_runs(tmp_path)
    assert record["state"] == record["stages"]["distill"]["state"] == "stopped"
    assert f"stopped; `redream rerun {record['run_id']}" in messages
    folder = tmp_path / "runs" / record["run_id"]
    assert "Stopped" in (folder / "page.html").read_text()
    assert (folder / "mesh.glb").read_bytes()[:4] == b"glTF"
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(UUID(record["prefect"]["prefect.flow_run_id"]))
    assert TAG in flow_run.tags  # the keeper's rule
    assert flow_run.state is not None and flow_run.state.name == "Stopped"


@pytest.mark.timeout(2 * TIMEOUT)
def test_batch_whose_object_somebody_stopped_has_failed_in_minutes(world: World, tmp_path: Path, started: Any) -> None:
    (tmp_path / "prompts.txt").write_text("a grey box\n")
    endless = ["--set", "distill.num_steps=100000"]
    batch = started("batch", str(tmp_path / "prompts.txt"), *asking(world, tmp_path / "out", *endless))
    while not (members := [run for run in list_runs(tmp_path / "out") if "distill" in run["stages"]]):
        assert batch.poll() is None, batch.communicate()
        time.sleep(0.2)
    os.kill(members[0]["process"]["pid"], signal.SIGTERM)
    output, messages = batch.communicate(timeout=TIMEOUT)
    assert batch.returncode == 1, messages
    (outcome,) = json.loads(output)["outcomes"]
    assert (outcome["state"], outcome["run_id"]) == ("stopped", members[0]["run_id"])


@pytest.mark.timeout(2 * TIMEOUT)
def test_interrupted_batch_leaves_no_process_behind_in_minutes(world: World, tmp_path: Path, started: Any) -> None:
    (tmp_path / "prompts.txt").write_text("a grey box\na grey ball\n")
    endless = ["--set", "distill.num_steps=100000"]  # none may finish in the time that it is given to stop
    batch = started("batch", str(tmp_path / "prompts.txt"), *asking(world, tmp_path / "out", *endless))
    while not any(run["stages"] for run in list_runs(tmp_path / "out") if run["flow"] == "generate"):
        assert batch.poll() is None, batch.communicate()
        time.sleep(0.2)
    pids = [run["process"]["pid"] for run in list_runs(tmp_path / "out") if run["flow"] == "generate"]
    batch.send_signal(signal.SIGINT)
    batch.communicate(timeout=TIMEOUT)
    assert batch.returncode == 130
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert {run["state"] for run in list_runs(tmp_path / "out")} <= {"stopped", "crashed"}
