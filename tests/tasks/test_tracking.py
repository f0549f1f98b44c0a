"""MLflow as this project uses it: explicit runs, batches, and no harm to a stage when it goes away."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from tasks.tracking import Tracker, Tracking, default_tracking_uri, open_tracking


@pytest.fixture
def tracking(mlflow_folder: Path) -> Tracking:
    return open_tracking(default_tracking_uri(mlflow_folder), mlflow_folder / "mlartifacts")


def test_thousand_steps_arrive_in_order(tracking: Tracking) -> None:
    tracker = Tracker.start(tracking, "steps", {})
    for step in range(1100):
        tracker.log_metrics({"loss": float(step), "absent": None}, step)
    tracker.finish()
    history = MlflowClient(tracking.uri).get_metric_history(tracker.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1100))


def test_runs_in_threads_nest_in_the_parent_that_was_named(tracking: Tracking) -> None:
    parent = Tracker.start(tracking, "parent", {})
    children: list[Tracker] = []

    def start() -> None:
        children.append(
            Tracker.start(tracking, "child", {"kind": "x", "empty": ""}, note="**note**", parent=parent.run_id)
        )

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        tags = MlflowClient(tracking.uri).get_run(child.run_id).data.tags
        assert tags["mlflow.parentRunId"] == parent.run_id
        assert tags["mlflow.note.content"] == "**note**"
        assert "empty" not in tags


def test_artifacts_are_files_and_no_pickles(tracking: Tracking, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "lora.safetensors").write_bytes(b"x")
    (tmp_path / "page.html").write_text("<p>")
    tracker = Tracker.start(tracking, "artifacts", {})
    tracker.log_artifacts([tmp_path / "adapter", tmp_path / "page.html"])
    tracker.log_text("{}", "config.json")
    tracker.log_image(np.zeros((8, 8, 3), dtype=np.uint8), key="views", step=2)
    tracker.finish()
    client = MlflowClient(tracking.uri)
    names = {entry.path for entry in client.list_artifacts(tracker.run_id)}
    assert {"adapter", "page.html", "config.json"} <= names
    assert [entry.path for entry in client.list_artifacts(tracker.run_id, "adapter")] == ["adapter/lora.safetensors"]
    root = Path((client.get_run(tracker.run_id).info.artifact_uri or "").removeprefix("file://"))
    assert root.is_dir()
    assert not [path for path in root.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".ckpt")]


def test_many_and_long_parameters_are_kept(tracking: Tracking) -> None:
    tracker = Tracker.start(tracking, "params", {})
    tracker.log_params({f"section.field_{number}": number for number in range(250)} | {"long": "x" * 20_000})
    params = MlflowClient(tracking.uri).get_run(tracker.run_id).data.params
    assert len(params) == 251
    assert params["section.field_249"] == "249"


def test_server_that_goes_away_costs_one_warning_and_little_time(caplog: pytest.LogCaptureFixture) -> None:
    gone = Tracker(Tracking(uri="http://127.0.0.1:9", experiment_id="0"), "0" * 32)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="tasks.tracking"):
        for step in range(3):
            gone.log_metrics({"loss": 1.0}, step)
            gone.flush()
        gone.finish()
    assert len([record for record in caplog.records if record.name == "tasks.tracking"]) == 1
    assert time.monotonic() - started < 60


def test_opening_twice_gives_the_same_experiment(tracking: Tracking, mlflow_folder: Path) -> None:
    assert open_tracking(tracking.uri, mlflow_folder / "mlartifacts") == tracking
