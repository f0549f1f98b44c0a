"""What goes with a run, and what stays because another run uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from redream.presets import smoke
from tasks.machinery.store import stage_key
from tasks.runs.deletion import delete_run, plan_deletion
from tasks.runs.records import list_runs, read_run
from tasks.runs.run import Run, open_run, record_result
from tasks.runs.stage import Work, run_stage
from tasks.tracking.tracker import default_tracking_uri


def make(out: Path, *seeds: int) -> Run:
    """Make a run with a stage for each seed."""

    def produce(work: Work) -> dict[str, object]:
        (work.folder / "file").write_bytes(b"x" * 1000)
        return {}

    with open_run("test", "a red cube", 0, smoke(), {"prompt": "a red cube"}, out) as run:
        for number, seed in enumerate(seeds):
            run_stage(run, stage_key(("render", "distill")[number], 1, {"seed": seed}, {}), {}, produce)
        (run.folder / "page.html").write_bytes(b"y" * 500)
        record_result(run, {}, {}, [run.folder / "page.html"])
    return run


def test_run_goes_with_what_no_other_run_uses(
    tmp_path: Path, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = default_tracking_uri(mlflow_folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    kept, gone = make(tmp_path, 1), make(tmp_path, 1, 2)
    plan = plan_deletion(tmp_path, read_run(tmp_path, gone.run_id))
    assert [entry.stage for entry in plan.store] == ["distill"]  # both have the same render
    assert plan.num_bytes > 1500 and plan.artifact_bytes >= 500
    assert len(plan.mlflow_runs) == 3  # the run, and one for each stage
    artifacts = Path(MlflowClient(uri).get_run(gone.mlflow_run_id).info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "page.html").is_file()
    assert delete_run(tmp_path, plan) == []
    assert [record["run_id"] for record in list_runs(tmp_path)] == [kept.run_id]
    assert not gone.folder.exists() and not artifacts.exists()
    assert not (tmp_path / plan.store[0].path).exists() and len(list((tmp_path / "store" / "render").glob("*/*"))) == 1
    assert MlflowClient(uri).get_run(gone.mlflow_run_id).info.lifecycle_stage == "deleted"
    assert MlflowClient(uri).get_run(kept.mlflow_run_id).info.lifecycle_stage == "active"


def test_run_under_way_is_not_deleted(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="still under way"):
        plan_deletion(tmp_path, read_run(tmp_path, run.run_id))
