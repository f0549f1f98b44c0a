"""What runs log under a folder stays in it wherever it is today; a deleted experiment comes back and delays nobody."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tasks.tracking.relocation import EXPERIMENT
from tasks.tracking.tracker import Tracker, default_tracking_uri, experiment_id, is_own, open_tracking, uri_today

ODD_NAMES = ["plain", "a%20b", "100%", "a?b", "a#b", "a & b;c", "ü 'x\" 日本", "a@b:c+d,e=f", "[x] {y} $z ~ !"]


@pytest.fixture(autouse=True)
def no_other_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def log(out: Path, name: str) -> str:
    """Log a text of its own name as a run; returns MLflow's id."""
    out.mkdir(exist_ok=True)
    tracker = Tracker.start(open_tracking(default_tracking_uri(out), out), name, {})
    tracker.log_text(name, "name.txt")
    tracker.finish()
    tracker.drain()
    return tracker.run_id


def logged(out: Path) -> set[str]:
    """Return the texts in a folder's artifacts."""
    return {path.read_text() for path in (out / "mlartifacts").rglob("name.txt")}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_runs_of_a_folder_with_any_name_are_in_it_and_nothing_is_outside(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    run_id = log(out, "first")
    assert logged(out) == {"first"}
    client = MlflowClient(default_tracking_uri(out))
    assert [entry.path for entry in client.list_artifacts(run_id)] == ["name.txt"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("carry", [shutil.move, shutil.copytree])
def test_artifacts_of_a_folder_that_was_moved_or_copied_are_in_its_new_place(carry: object, tmp_path: Path) -> None:
    assert callable(carry)
    first = log(tmp_path / "was", "first")
    carry(tmp_path / "was", tmp_path / "is")
    shutil.copytree(tmp_path / "is" / "mlartifacts", tmp_path / "before")
    second = log(tmp_path / "is", "second")
    assert logged(tmp_path / "is") == {"first", "second"}
    client = MlflowClient(default_tracking_uri(tmp_path / "is"))
    for run_id in (first, second):
        uri = client.get_run(run_id).info.artifact_uri or ""
        assert uri.startswith((tmp_path / "is" / "mlartifacts").as_uri())
    if (tmp_path / "was").exists():  # what it was copied from stays as it was
        assert logged(tmp_path / "was") == {"first"}


def test_a_record_that_names_the_former_database_leads_to_the_present_one(tmp_path: Path) -> None:
    (tmp_path / "is").mkdir()
    (tmp_path / "is" / "mlflow.db").touch()
    was = default_tracking_uri(tmp_path / "was")
    assert uri_today({"uri": was, "is_own": True}, tmp_path / "is") == default_tracking_uri(tmp_path / "is")
    assert uri_today({"uri": was}, tmp_path / "is") == default_tracking_uri(tmp_path / "is")  # an older record
    assert uri_today({"uri": "http://127.0.0.1:5000", "is_own": False}, tmp_path / "is") == "http://127.0.0.1:5000"


def test_a_database_of_the_users_own_is_never_taken_for_the_folders(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mlflow.db").touch()
    users = open_tracking(default_tracking_uri(tmp_path), tmp_path)
    tracked = {"uri": users.uri, "is_own": is_own(users, tmp_path / "out")}
    assert uri_today(tracked, tmp_path / "out") == default_tracking_uri(tmp_path)
    assert is_own(users, tmp_path)


def test_a_deleted_experiment_is_restored_by_the_next_command(tmp_path: Path) -> None:
    first = log(tmp_path, "first")
    tracking = open_tracking(default_tracking_uri(tmp_path), tmp_path)
    client = MlflowClient(tracking.uri)
    client.delete_experiment(experiment_id(tracking))
    started = time.monotonic()
    second = log(tmp_path, "second")
    assert time.monotonic() - started < 60.0
    assert client.get_experiment_by_name(EXPERIMENT).lifecycle_stage == "active"  # type: ignore[union-attr]
    assert {client.get_run(run_id).info.lifecycle_stage for run_id in (first, second)} == {"active"}


def test_an_experiment_deleted_during_a_run_is_restored_and_nothing_is_lost(tmp_path: Path) -> None:
    tracking = open_tracking(default_tracking_uri(tmp_path), tmp_path)
    parent = Tracker.start(tracking, "parent", {})
    client = MlflowClient(tracking.uri)
    client.delete_experiment(experiment_id(tracking))
    started = time.monotonic()
    child = Tracker.start(tracking, "child", {}, parent=parent.run_id)
    child.log_final({"figure": 1.0})
    for tracker in (child, parent):
        tracker.finish()
    parent.drain()
    assert time.monotonic() - started < 60.0
    assert client.get_run(child.run_id).data.metrics == {"figure": 1.0}
