"""MLflow as this project uses it: explicit runs, batches, and no harm to a stage when it goes away."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from tasks.tracking.run_description import comparison
from tasks.tracking.spool import Outbox
from tasks.tracking.tracker import (
    START_PATIENCE,
    Tracker,
    Tracking,
    _Courier,
    default_tracking_uri,
    deliver_leftovers,
    experiment_id,
    open_tracking,
)


@pytest.fixture
def tracking(mlflow_folder: Path) -> Tracking:
    return open_tracking(default_tracking_uri(mlflow_folder), mlflow_folder)


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
        child.finish()
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
    tracker.finish()
    params = MlflowClient(tracking.uri).get_run(tracker.run_id).data.params
    assert len(params) == 251
    assert params["section.field_249"] == "249"


@pytest.fixture(params=["closed port", "never answers"])
def dead_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address where nobody listens, or where somebody listens and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "never answers":
            server.listen(100)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def log_stage(tracking: Tracking, folder: Path) -> float:
    """Track a stage as tasks do and return how long that took."""
    (folder / "file.txt").write_text("content")
    started = time.monotonic()
    parent = Tracker.start(tracking, "a red cube", {})
    stage = Tracker.start(tracking, "distill", {"kind": "x"}, parent=parent.run_id)
    stage.log_params({"size": 5})
    for step in range(1100):
        stage.log_metrics({"loss": float(step)}, step)
    stage.log_image(np.zeros((8, 8, 3), dtype=np.uint8), key="views", step=2)
    stage.log_artifacts([folder / "file.txt"])
    stage.log_text("{}", "config.json")
    stage.finish("FAILED")
    parent.set_tags({"note": comparison([parent.run_id], "1")})
    parent.finish()
    return time.monotonic() - started


def test_dead_server_delays_a_stage_by_five_seconds_at_most_and_gets_everything_later(
    dead_server: str, mlflow_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = open_tracking(dead_server, tmp_path)
    assert log_stage(away, tmp_path) < 5.0
    assert log_stage(away, tmp_path) < 5.0
    waiting = sorted((tmp_path / "spool").glob("*/*.json"))
    assert waiting
    (tmp_path / "file.txt").unlink()  # what was logged is kept, whatever becomes of the output
    # The process ends: its outbox is free, and another one delivers.
    (tmp_path / "spool").rename(tmp_path / "left")
    (tmp_path / "later" / "spool").mkdir(parents=True)
    for folder in sorted((tmp_path / "left").iterdir()):
        shutil.copytree(folder, tmp_path / "later" / "spool" / folder.name)
    later = open_tracking(default_tracking_uri(mlflow_folder), tmp_path / "later")
    client, experiment = MlflowClient(later.uri), experiment_id(later)
    before = {run.info.run_id for run in client.search_runs([experiment])}
    assert deliver_leftovers(later) == (len(waiting), 0)
    runs = [run for run in client.search_runs([experiment]) if run.info.run_id not in before]
    stages = [run for run in runs if run.info.run_name == "distill"]
    parents = {run.info.run_id for run in runs if run.info.run_name == "a red cube"}
    assert len(stages) == len(parents) == 2
    assert {run.data.tags["note"] for run in runs if run.info.run_id in parents} == {
        comparison([id_], "1") for id_ in parents
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in stages} == parents
    for run in stages:
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [metric.step for metric in history] == list(range(1100))
        assert (run.info.status, run.data.params["size"]) == ("FAILED", "5")
        names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
        assert {"file.txt", "config.json", "images"} <= names
    assert deliver_leftovers(later) == (0, 0)


def test_outbox_of_a_killed_process_is_delivered_by_another(mlflow_folder: Path, tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from tasks.tracking.tracker import Tracker, open_tracking
tracker = Tracker.start(open_tracking("http://127.0.0.1:9", Path({str(tmp_path)!r})), "killed", {{}})
tracker.log_final({{"loss": 1.5}})
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    tracking = open_tracking(default_tracking_uri(mlflow_folder), tmp_path)
    delivered, waiting = deliver_leftovers(tracking)
    assert (delivered, waiting) == (2, 0)
    found = MlflowClient(tracking.uri).search_runs([experiment_id(tracking)], "attributes.run_name = 'killed'")
    assert [run.data.metrics["loss"] for run in found] == [1.5]
    assert not list((tmp_path / "spool").iterdir())


def test_figures_of_a_run_wait_for_the_server_that_knows_it(
    mlflow_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, other = (open_tracking(f"sqlite:///{tmp_path}/{name}.db", tmp_path) for name in ("known", "other"))
    tracker = Tracker.start(known, "half delivered", {})
    local_id = MlflowClient(known.uri).get_run(tracker.run_id).data.tags["redream.local_id"]
    metrics = {"kind": "metrics", "run": local_id, "time": 2, "metrics": [["loss", 1.5, 5, 0]]}
    tags = {"kind": "tags", "run": tracker.run_id, "time": 2, "tags": {"late": "yes"}}
    for name, event in {"0-first": metrics, "0-second": tags}.items():
        (tmp_path / "spool" / name).mkdir(parents=True)
        (tmp_path / "spool" / name / "00000001.json").write_text(json.dumps(event))
    assert deliver_leftovers(other) == (0, 2)
    assert "has no run" in caplog.text
    assert deliver_leftovers(known) == (2, 0)
    data = MlflowClient(known.uri).get_run(tracker.run_id).data
    assert (data.metrics["loss"], data.tags["late"]) == (1.5, "yes")


def test_stage_does_not_wait_for_all_that_others_have_left(tmp_path: Path) -> None:
    courier = _Courier(open_tracking("http://127.0.0.1:9", tmp_path))
    has_ended = threading.Event()

    def deliver_for_long() -> None:
        for _ in range(200):
            if has_ended.wait(0.05):
                break
            courier._progress()

    busy = threading.Thread(target=deliver_for_long)
    busy.start()
    started = time.monotonic()
    courier.wait_for("local:new")
    seconds = time.monotonic() - started
    has_ended.set()
    busy.join()
    assert START_PATIENCE <= seconds < START_PATIENCE + 1


def test_event_that_was_delivered_before_the_kill_is_not_doubled(tracking: Tracking, tmp_path: Path) -> None:
    box = Outbox(tmp_path / "spool")
    create = {"kind": "create", "run": "local:twice", "time": 1, "name": "twice", "parent": "",
              "tags": {"redream.local_id": "local:twice"}}  # fmt: skip
    metrics = {
        "kind": "metrics",
        "run": "local:twice",
        "time": 2,
        "metrics": [["loss", 1.0, 5, 0], ["loss", 2.0, 6, 1]],
    }
    for _ in range(2):
        box.put(create)
        box.put(metrics)
    later = open_tracking(tracking.uri, tmp_path / "later")
    shutil.copytree(tmp_path / "spool", tmp_path / "later" / "spool")
    assert deliver_leftovers(later) == (4, 0)
    client = MlflowClient(tracking.uri)
    (run,) = client.search_runs([experiment_id(tracking)], "attributes.run_name = 'twice'")
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [0, 1]


def test_event_that_mlflow_refuses_holds_up_no_other(tracking: Tracking, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="tasks.tracking.tracker"):
        deleted = Tracker(tracking, "0" * 32)
        deleted.log_final({"loss": 1.0})
        tracker = Tracker.start(tracking, "next", {})
        tracker.log_final({"loss": 2.0})
        tracker.finish()
    assert MlflowClient(tracking.uri).get_run(tracker.run_id).data.metrics["loss"] == 2.0
    assert "refused" in caplog.text


def test_crashed_run_is_closed_with_what_is_nested_in_it(tracking: Tracking) -> None:
    parent = Tracker.start(tracking, "parent", {})
    ended = Tracker.start(tracking, "ended", {}, parent=parent.run_id)
    ended.finish()
    under_way = Tracker.start(tracking, "under way", {}, parent=parent.run_id)
    parent.close_open()
    parent.drain()
    client = MlflowClient(tracking.uri)
    states = [client.get_run(tracker.run_id).info.status for tracker in (parent, ended, under_way)]
    assert states == ["KILLED", "FINISHED", "KILLED"]


def test_what_a_dead_process_could_not_open_in_time_is_closed_as_well(mlflow_folder: Path, tmp_path: Path) -> None:
    tracking = open_tracking(default_tracking_uri(mlflow_folder), tmp_path)
    parent = Tracker.start(tracking, "died", {})
    box = tmp_path / "spool" / "0-dead"
    box.mkdir(parents=True)
    tags = {"redream.local_id": "local:late"}
    create = {"kind": "create", "run": "local:late", "time": 1, "name": "late", "parent": parent.run_id, "tags": tags}
    (box / "00000001.json").write_text(json.dumps(create))
    parent.close_open()
    parent.drain()
    client = MlflowClient(tracking.uri)
    (late,) = client.search_runs([experiment_id(tracking)], "attributes.run_name = 'late'")
    assert late.info.status == "KILLED"


def test_opening_twice_gives_the_same_experiment(tracking: Tracking, mlflow_folder: Path) -> None:
    assert open_tracking(tracking.uri, mlflow_folder) == tracking
    assert experiment_id(tracking) == experiment_id(tracking)
