"""Runs: `run.json` tells how each one ended, and MLflow says the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow.tracking import MlflowClient

from redream.overrides import flatten
from redream.presets import smoke
from tasks.machinery.progress import stop_requested
from tasks.machinery.store import stage_key
from tasks.runs.records import finished_stage, list_runs, read_run
from tasks.runs.run import PICTURE, Run, open_run, record_result, record_start, settle_crashed
from tasks.runs.stage import run_stage
from tasks.tracking.tracker import Tracker, default_tracking_uri, drain


@pytest.fixture(autouse=True)
def tracking_uri(mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = default_tracking_uri(mlflow_folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(autouse=True)
def no_stop_is_left() -> Iterator[None]:
    """Tests of one process share what tells stages to stop."""
    yield
    stop_requested.clear()


def one_run(out: Path, error: BaseException | None = None, prompt: str = "a red cube") -> Run:
    """Open a run with one stage, and end it, or break it with an error."""
    with open_run("test", prompt, 0, smoke(), {"prompt": prompt, "settings": {}}, out) as run:
        run_stage(run, stage_key("distill", 1, {}, {}), {}, lambda work: {"answer": 1})
        if error is not None:
            raise error
        (run.folder / "page.html").write_text("<p>page</p>")
        record_result(run, {"clip": 0.3}, {"neighbors": []}, [run.folder / "page.html"])
    return run


def test_finished_run_is_recorded_in_both_places(tmp_path: Path, tracking_uri: str) -> None:
    run = one_run(tmp_path)
    record = read_run(tmp_path, run.run_id)
    assert record["state"] == "finished"
    assert record["metrics"] == {"clip": 0.3}
    assert record["stages"]["distill"]["state"] == "computed"
    client = MlflowClient(tracking_uri)
    tracked = client.get_run(run.mlflow_run_id)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["clip"] == 0.3
    assert tracked.data.params["distill.num_steps"] == str(smoke().distill.num_steps)
    assert tracked.data.tags["redream.run_id"] == run.run_id
    assert "| distill | computed |" in tracked.data.tags["mlflow.note.content"]
    assert {"config.json", "run.json", "page.html"} <= {
        entry.path for entry in client.list_artifacts(run.mlflow_run_id)
    }


@pytest.mark.parametrize(
    ("error", "state", "status"),
    [(ValueError("bad"), "failed", "FAILED"), (KeyboardInterrupt(), "stopped", "KILLED")],
)
def test_broken_run_says_how_it_ended(
    tmp_path: Path, tracking_uri: str, error: BaseException, state: str, status: str
) -> None:
    with pytest.raises(type(error)):
        one_run(tmp_path, error)
    (record,) = list_runs(tmp_path)
    assert record["state"] == state
    assert record["error"].startswith(type(error).__name__)
    assert "Traceback" in (tmp_path / "runs" / record["run_id"] / "error.txt").read_text()
    assert MlflowClient(tracking_uri).get_run(record["mlflow"]["run_id"]).info.status == status


def test_stage_that_nobody_waits_for_any_more_ends_with_its_run(tmp_path: Path, tracking_uri: str) -> None:
    with pytest.raises(SystemExit), open_run("test", "a red cube", 0, smoke(), {"prompt": "x"}, tmp_path) as run:
        record_start(run, stage_key("distill", 1, {}, {}))
        stage = Tracker.start(run.tracking, "distill", {}, parent=run.mlflow_run_id)
        raise SystemExit(143)
    assert read_run(tmp_path, run.run_id)["stages"]["distill"]["state"] == "stopped"
    client = MlflowClient(tracking_uri)
    assert {client.get_run(run_id).info.status for run_id in (run.mlflow_run_id, stage.run_id)} == {"KILLED"}


def test_another_attempt_names_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "0" * 32)
    with pytest.raises(ZeroDivisionError):
        one_run(tmp_path, ZeroDivisionError())
    (first,) = list_runs(tmp_path)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "2")
    second = one_run(tmp_path)
    assert (first["rerun_of"], read_run(tmp_path, second.run_id)["rerun_of"]) == ("", first["run_id"])


def test_runs_of_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    names = {
        one_run(tmp_path, prompt=prompt).run_id for prompt in ("a red cube", "a red  cube!", "Ein Würfel", "立方体")
    }
    assert len(names) == 4
    assert {record["run_id"] for record in list_runs(tmp_path)} == names
    assert all(name.isascii() for name in names)


def test_run_that_made_an_object_shows_it_and_compares_it_whatever_became_of_other_runs(
    tmp_path: Path, tracking_uri: str
) -> None:
    def made(prompt: str) -> tuple[str, str]:
        with open_run("test", prompt, 0, smoke(), {"prompt": prompt}, tmp_path) as run:
            (run.folder / PICTURE).write_bytes(b"picture")
            record_result(run, {}, {}, [run.folder / PICTURE])
        return run.mlflow_run_id, MlflowClient(tracking_uri).get_run(run.mlflow_run_id).data.tags["mlflow.note.content"]

    first, note = made("a red cube")
    assert f"![{PICTURE}](get-artifact?run_uuid={first}&path={PICTURE})" in note
    assert "Compare" not in note
    for number, damage in enumerate(("{half", "[]", "{}", '{"flow": "test", "prompt": "a red cube", "mlflow": 1}')):
        (tmp_path / f"runs/damaged-{number}").mkdir()
        (tmp_path / f"runs/damaged-{number}/run.json").write_text(damage)
    made("a blue cube")
    second, note = made("a red cube")
    assert f"runs={quote(json.dumps([first, second]))}&" in note


def test_finished_stage_is_found_after_the_run_unless_it_was_deleted(tmp_path: Path) -> None:
    record = read_run(tmp_path, one_run(tmp_path).run_id)
    output = finished_stage(tmp_path, record, "distill")
    assert output.result == {"answer": 1}
    (output.path() / "manifest.json").unlink()
    with pytest.raises(ValueError, match="gone from"):
        finished_stage(tmp_path, record, "distill")
    with pytest.raises(ValueError, match="no finished stage 'export'"):
        finished_stage(tmp_path, record, "export")


DYING = """
import json, os, sys
from pathlib import Path
from redream.presets import smoke
from tasks.machinery.store import stage_key
from tasks.runs import run as runs
from tasks.runs.stage import run_stage

def die(*_, **__):
    os.kill(os.getpid(), 9)

for line in sys.stdin:
    out, uri, is_early = json.loads(line)
    if os.fork() == 0:
        os.dup2(2, 1)  # what the run says is not the answer
        os.environ |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
        if is_early:
            runs.Tracker.create = die
        with runs.open_run("generate", "a red cube", 0, smoke(), {"prompt": "a red cube"}, Path(out)) as run:
            run_stage(run, stage_key("render", 1, {}, {}), {}, lambda work: {"answer": 1})
            run_stage(run, stage_key("distill", 1, {}, {}), {}, die)
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def die_in_a_run() -> Iterator[Callable[..., str]]:
    """Yield a function that opens a run in another process, kills that in its second stage and returns the run's id.

    Each dies in a fork of one process, since importing what a run needs takes seconds.
    """
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", DYING]
    with subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        asked, answered = process.stdin, process.stdout
        assert asked is not None and answered is not None

        def die(out: Path, uri: str = "", is_early: bool = False) -> str:
            print(json.dumps([str(out), uri, is_early]), file=asked, flush=True)
            assert answered.readline().strip() == "-9"
            (record,) = list_runs(out)
            return record["run_id"]

        yield die


def test_run_whose_process_was_killed_has_crashed(die_in_a_run, tmp_path: Path, tracking_uri: str) -> None:
    record = read_run(tmp_path, die_in_a_run(tmp_path, tracking_uri))
    assert record["state"] == "crashed"
    assert {name: entry["state"] for name, entry in record["stages"].items()} == {
        "render": "computed",
        "distill": "crashed",
    }
    client = MlflowClient(tracking_uri)
    assert settle_crashed(tmp_path) == [record["run_id"]]
    drain()
    assert client.get_run(record["mlflow"]["run_id"]).info.status == "KILLED"
    assert settle_crashed(tmp_path) == []
    assert read_run(tmp_path, record["run_id"])["state"] == "crashed"


def test_next_run_closes_the_one_that_crashed(die_in_a_run, tmp_path: Path, tracking_uri: str) -> None:
    crashed = read_run(tmp_path, die_in_a_run(tmp_path, tracking_uri))
    (tmp_path / "runs/damaged").mkdir()
    (tmp_path / "runs/damaged/run.json").write_text('{"state": "running"')
    one_run(tmp_path)
    assert MlflowClient(tracking_uri).get_run(crashed["mlflow"]["run_id"]).info.status == "KILLED"
    assert json.loads((tmp_path / "runs" / crashed["run_id"] / "run.json").read_text())["state"] == "crashed"


def test_run_that_crashed_before_its_folder_was_moved_is_in_nobody_s_way(
    die_in_a_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    crashed = die_in_a_run(tmp_path / "before", f"sqlite:///{tmp_path / 'before' / 'mlflow.db'}")
    (tmp_path / "before").rename(tmp_path / "after")
    one_run(tmp_path / "after")
    assert read_run(tmp_path / "after", crashed)["state"] == "crashed"
    assert not (tmp_path / "before" / "mlflow.db").exists()


def test_run_that_dies_before_mlflow_knows_it_has_a_record(die_in_a_run, tmp_path: Path, tracking_uri: str) -> None:
    crashed = read_run(tmp_path, die_in_a_run(tmp_path, tracking_uri, is_early=True))
    assert (crashed["state"], crashed["stages"]) == ("crashed", {})
    one_run(tmp_path)  # closes it, and finds nothing to close in MLflow


def test_stages_in_other_threads_hear_that_their_run_is_stopped_and_not_that_it_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        one_run(tmp_path, ValueError("bad"))
    assert not stop_requested.is_set()
    with pytest.raises(SystemExit):
        one_run(tmp_path, SystemExit(143))
    assert stop_requested.is_set()


def test_run_under_way_is_running_for_everybody(tmp_path: Path) -> None:
    with open_run("test", "a red cube", 0, smoke(), {"prompt": "a red cube"}, tmp_path) as run:
        assert read_run(tmp_path, run.run_id)["state"] == "running"
        command = [sys.executable, "-m", "flows.command", "runs", "--json", "--out", str(tmp_path)]
        (seen,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert seen["state"] == "running"
    assert read_run(tmp_path, run.run_id)["state"] == "finished"


def test_note_shows_a_prompt_as_it_is(tmp_path: Path, tracking_uri: str) -> None:
    run = one_run(tmp_path, prompt="a [cube](http://evil) <img src=x> **bold**")
    note = MlflowClient(tracking_uri).get_run(run.mlflow_run_id).data.tags["mlflow.note.content"]
    assert "[cube](http" not in note
    assert "<img" not in note.replace("\\<img", "")


def test_unknown_and_damaged_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run 'absent'"):
        read_run(tmp_path, "absent")
    run = one_run(tmp_path)
    (run.folder / "run.json").write_text('{"half')
    with pytest.raises(ValueError, match="damaged"):
        read_run(tmp_path, run.run_id)


def test_record_holds_every_setting_and_no_secret_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    text = (one_run(tmp_path).folder / "run.json").read_text()
    assert set(json.loads(text)["settings"]) == set(flatten(smoke()))
    assert "hunter2" not in text


def test_a_run_that_lives_stays_running_whoever_starts_beside_it(tmp_path: Path) -> None:
    with open_run("test", "a red cube", 0, smoke(), {}, tmp_path) as run:
        assert settle_crashed(tmp_path) == []
        with open_run("test", "a blue cube", 0, smoke(), {}, tmp_path) as other:
            states = {record["run_id"]: record["state"] for record in list_runs(tmp_path)}
            assert states == {run.run_id: "running", other.run_id: "running"}
    assert {record["state"] for record in list_runs(tmp_path)} == {"finished"}
