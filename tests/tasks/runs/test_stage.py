"""Laws of a stage's task: reused, made once, resumed, and tracked in MLflow however it ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from prefect.client.schemas.objects import State

from redream.seeds import stage_seed
from tasks.machinery.progress import Stopped, stop_requested
from tasks.machinery.store import Output, stage_key
from tasks.runs.run import Run
from tasks.runs.stage import Work, is_passing, run_stage
from tasks.tracking.tracker import experiment_id


@dataclass(frozen=True)
class LossStep:
    step: int
    loss: float


def key(value: int = 1, stage: str = "count") -> Any:
    return stage_key(stage, 1, {"value": value}, {})


def write_value(work: Work) -> dict[str, int]:
    (work.folder / "value.txt").write_text("5")
    work.metrics["value"] = 5.0
    return {"value": 5}


def losses(begin: int, end: int) -> Iterator[LossStep]:
    return (LossStep(step, 1.0 / (step + 1)) for step in range(begin, end))


def follow_losses(begin: int, end: int, stop_after: int | None = None) -> Any:
    def produce(work: Work) -> dict[str, int]:
        for step in work.follow(losses(begin, end), end, lambda step: {"loss": step.loss}):
            if step.step == stop_after:
                raise RuntimeError("no power")
        return {"num_steps": end}

    return produce


def nested_runs(run: Run) -> dict[str, MlflowRun]:
    found = MlflowClient(run.tracking.uri).search_runs(
        [experiment_id(run.tracking)], f"tags.`mlflow.parentRunId` = '{run.mlflow_run_id}'"
    )
    return {nested.info.run_name or "": nested for nested in found}


def stages(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "run.json").read_text())["stages"]


def test_stage_is_computed_once_and_then_reused_in_a_cached_state(run: Run) -> None:
    first = run_stage(run, key(), {}, write_value)
    second: Any = run_stage(run, key(), {}, write_value)
    assert isinstance(first, Output)
    assert isinstance(second, State)
    assert second.name == "Cached"
    assert second.result() == first
    assert stages(run)["count"]["state"] == "cached"
    assert stages(run)["count"]["mlflow_run_id"] == first.mlflow_run_id


def test_other_key_is_computed(run: Run) -> None:
    assert isinstance(run_stage(run, key(1), {}, write_value), Output)
    assert isinstance(run_stage(run, key(2), {}, write_value), Output)


def test_every_stage_has_a_nested_run_with_its_parameters_and_figures(run: Run) -> None:
    output = run_stage(run, key(), {"size": 64, "name": "x" * 9000}, write_value)
    run_stage(run, key(), {}, write_value)
    found = nested_runs(run)
    assert set(found) == {"count", "count (cached)"}
    made = found["count"]
    assert made.info.run_id == output.mlflow_run_id
    assert made.info.status == "FINISHED"
    assert made.data.params["size"] == "64"
    assert made.data.metrics["count/value"] == 5.0
    cached = found["count (cached)"]
    assert cached.data.tags["redream.cached"] == "true"
    assert cached.data.tags["redream.produced_by"] == output.mlflow_run_id
    assert cached.data.tags["redream.key"] == output.key
    assert cached.data.metrics["count/value"] == 5.0


def test_failed_stage_publishes_nothing_and_says_why(run: Run) -> None:
    def fail(work: Work) -> dict[str, int]:
        (work.folder / "half.txt").write_text("half")
        raise FloatingPointError("loss is nan at step 3")

    with pytest.raises(FloatingPointError):
        run_stage(run, key(), {}, fail)
    assert run.store.find(key()) is None
    assert stages(run)["count"]["state"] == "failed"
    assert stages(run)["count"]["key"] == key().digest
    assert stages(run)["count"]["error"] == "FloatingPointError: loss is nan at step 3"
    assert nested_runs(run)["count"].info.status == "FAILED"
    output = run_stage(run, key(), {}, write_value)
    assert [path.name for path in output.path().iterdir()].count("half.txt") == 0


def test_concurrent_runs_of_one_key_compute_it_once(run: Run) -> None:
    calls, outputs = [], []

    def slow(work: Work) -> dict[str, int]:
        calls.append(1)
        time.sleep(0.5)
        return write_value(work)

    def get() -> None:
        got: Any = run_stage(run, key(), {}, slow)
        outputs.append(got.result() if isinstance(got, State) else got)

    threads = [threading.Thread(target=get) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert {output.digest for output in outputs} == {outputs[0].digest}


def test_steps_are_logged_with_their_numbers_and_kept_in_the_output(run: Run) -> None:
    output = run_stage(run, key(), {}, follow_losses(0, 5))
    history = MlflowClient(run.tracking.uri).get_metric_history(output.mlflow_run_id, "count/loss")
    assert [(metric.step, metric.value) for metric in history] == [(s.step, s.loss) for s in losses(0, 5)]
    lines = output.path("steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 4]


def test_resumed_loop_has_the_whole_curve_once(run: Run) -> None:
    """Killed after step 6 with a checkpoint of step 4: steps 4 to 6 come again, 0 to 3 do not."""
    with pytest.raises(RuntimeError):
        run_stage(run, key(), {}, follow_losses(0, 10, stop_after=6))
    output = run_stage(run, key(), {}, follow_losses(4, 10))
    lines = output.path("steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(10))
    history = MlflowClient(run.tracking.uri).get_metric_history(output.mlflow_run_id, "count/loss")
    assert [metric.step for metric in history] == list(range(10))


def test_loop_that_had_ended_before_the_kill_keeps_its_curve(run: Run) -> None:
    def end_without_publishing(work: Work) -> dict[str, int]:
        (work.checkpoint / "steps.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
        raise RuntimeError("no power")

    with pytest.raises(RuntimeError):
        run_stage(run, key(), {}, end_without_publishing)
    output = run_stage(run, key(), {}, follow_losses(0, 0))
    assert output.path("steps.jsonl").read_text() == '{"step": 0, "loss": 1.0}\n'


def test_stop_request_ends_a_loop_at_its_next_step(run: Run) -> None:
    def stop_early(work: Work) -> dict[str, int]:
        for step in work.follow(losses(0, 100), 100, lambda step: {"loss": step.loss}):
            if step.step == 3:
                stop_requested.set()
        return {}

    try:
        with pytest.raises(Stopped):
            run_stage(run, key(), {}, stop_early)
    finally:
        stop_requested.clear()
    assert nested_runs(run)["count"].info.status == "KILLED"
    assert stages(run)["count"]["state"] == "stopped"


def test_only_causes_that_may_pass_are_tried_again() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch names it."""

    class Failed:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self, raise_on_failure: bool) -> Exception:
            return self.error

    passing: Any = is_passing
    assert passing(None, None, Failed(OutOfMemoryError()))
    assert passing(None, None, Failed(ConnectionResetError()))
    assert not passing(None, None, Failed(ValueError("no mesh")))
    assert not passing(None, None, Failed(FloatingPointError("nan")))


def test_stages_draw_from_different_seeds_that_follow_the_run() -> None:
    seeds = {stage_seed(seed, stage) for seed in (0, 1) for stage in ("render", "adapt")}
    assert len(seeds) == 4
    assert stage_seed(0, "render") == stage_seed(0, "render")
