"""Runs: `run.json` tells how each one ended, and MLflow says the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from redream.config import flatten, smoke
from tasks.records import finished_stage, list_runs, read_run
from tasks.runs import Run, open_run, record_result
from tasks.stage import run_stage
from tasks.store import stage_key
from tasks.tracking import default_tracking_uri


@pytest.fixture(autouse=True)
def tracking_uri(mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = default_tracking_uri(mlflow_folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


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


def test_runs_of_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    names = {
        one_run(tmp_path, prompt=prompt).run_id for prompt in ("a red cube", "a red  cube!", "Ein Würfel", "立方体")
    }
    assert len(names) == 4
    assert {record["run_id"] for record in list_runs(tmp_path)} == names
    assert all(name.isascii() for name in names)


def test_finished_stage_is_found_after_the_run_unless_it_was_deleted(tmp_path: Path) -> None:
    record = read_run(tmp_path, one_run(tmp_path).run_id)
    output = finished_stage(tmp_path, record, "distill")
    assert output.result == {"answer": 1}
    (output.path() / "manifest.json").unlink()
    with pytest.raises(ValueError, match="gone from"):
        finished_stage(tmp_path, record, "distill")
    with pytest.raises(ValueError, match="no finished stage 'export'"):
        finished_stage(tmp_path, record, "export")


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
