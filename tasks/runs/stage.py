"""What every stage's task does around its one call of the method: reuse, lock, track, publish.

`run_stage` looks into the store; if the output is there, the task ends in Prefect's state `Cached`. Otherwise it takes
the key's lock, opens a nested MLflow run, lets the stage work in a folder of its own, and publishes that folder.
Retries are decided here as well: only for causes that may pass.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from tasks.machinery.progress import duration, raise_if_stopped, say, track
from tasks.machinery.slots import device_name, device_slot, num_cores, slots_folder, use_own_gpu
from tasks.machinery.store import Output, StageKey, salted
from tasks.runs.run import Run, record_failure, record_stage, record_start
from tasks.tracking.tracker import Tracker

RETRIES = 2
RETRY_DELAYS = [10.0, 60.0]  # seconds
PASSING_CAUSES = ("OutOfMemoryError", "ConnectionError", "TimeoutError", "BlockingIOError")
STEPS_FILE = "steps.jsonl"

# Loading or extending a model changes torch for the whole process for a moment: accelerate makes every new parameter an
# empty one, peft draws from the global generator. And two threads that import what imports each other can meet a module
# half made. Stages that run beside each other take turns.
loading = threading.Lock()


class StepRecord(Protocol):
    """What a loop of the method yields."""

    @property
    def step(self) -> int: ...


Step = TypeVar("Step", bound=StepRecord)
Item = TypeVar("Item")


@dataclass
class Work:
    """A stage at work: its folder, its checkpoint, its MLflow run, and the device to compute on, as torch names it.

    `metrics` are its final figures, `facts` what else should be known of the attempt.
    """

    stage: str
    folder: Path
    checkpoint: Path
    tracker: Tracker
    device: str
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    def track(self, items: Iterable[Item], total: int | None, label: str = "") -> Iterator[Item]:
        """Show progress over plain items."""
        return track(items, label or self.stage, total)

    def follow(
        self, steps: Iterable[Step], total: int, figures: Callable[[Step], Mapping[str, float | None]]
    ) -> Iterator[Step]:
        """Pass the records of a loop on, show their progress, and log `figures` of each to MLflow and `steps.jsonl`.

        A resumed loop starts behind the steps in `steps.jsonl`: those go to MLflow first, for every attempt is a run of
        its own there. Steps that were recorded after the checkpoint come again and are dropped before.
        """
        path = self.checkpoint / STEPS_FILE
        remaining = iter(steps)
        first = next(remaining, None)
        earlier = _read_steps(path, before=first.step if first is not None else sys.maxsize)
        for entry in earlier:
            self.log_figures({name: value for name, value in entry.items() if name != "step"}, entry["step"])
        aside = path.with_suffix(".part")
        aside.write_text("".join(json.dumps(entry) + "\n" for entry in earlier))
        os.replace(aside, path)
        with open(path, "a") as file:
            for step in track(_chain(first, remaining), self.stage, total, len(earlier)):
                entry = {name: value for name, value in figures(step).items() if value is not None}
                file.write(json.dumps({"step": step.step, **entry}) + "\n")
                file.flush()
                self.log_figures(entry, step.step)
                yield step
        os.replace(path, self.folder / STEPS_FILE)

    def log_figures(self, figures: Mapping[str, float | None], step: int) -> None:
        self.tracker.log_metrics({f"{self.stage}/{name}": value for name, value in figures.items()}, step)


def run_stage(
    run: Run,
    key: StageKey,
    settings: Mapping[str, Any],
    produce: Callable[[Work], Mapping[str, Any]],
    needs: Literal["cores", "device", "training"] = "cores",
) -> Output:
    """Return a stage's output from the store, or let `produce` make it.

    Args:
        settings: parameters of the nested MLflow run, flat.
        produce: writes files into `work.folder` and returns what it found as JSON.
        needs: a `device` is one of the machine's GPUs, which the stage waits for, or else the CPU; on the CPU only a
            `training` waits for others.

    Returns:
        The output; where it was found in the store, in a Prefect state that says so; a future's `result()` unwraps it.
    """
    raise_if_stopped()
    if key.stage in run.salts:
        key = salted(key, run.salts[key.stage])
    found = run.store.find(key)
    if found is None:
        with run.store.lock(key, on_wait=raise_if_stopped):
            found = run.store.find(key)  # another run may have made it meanwhile
            if found is None:
                if needs == "cores":
                    use_own_gpu()
                    return _compute(run, key, settings, produce, "cpu")
                with _slot(run, key, trains=needs == "training") as device:
                    return _compute(run, key, settings, produce, device)
    _track_cached(run, key, found)
    say(f"{key.stage}: reused")
    return cast(Output, Completed(name="Cached", message=f"{key.stage} {key.digest}", data=found))


def is_passing(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Tell Prefect to try again only where the cause may pass, such as memory that another process held."""
    error = state.result(raise_on_failure=False)
    return any(kind.__name__ in PASSING_CAUSES for kind in type(error).__mro__)


def share_cores(num_stages: int) -> None:
    """Let this thread's stage use its share of the cores: threads beyond them would wait on each other, spinning."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:  # the user's word counts
        torch.set_num_threads(max(1, num_cores() // num_stages))


def primed(items: Iterator[Item]) -> Iterator[Item]:
    """Run a generator to its first item, which is kept for whoever iterates."""
    first = next(items)
    return itertools.chain([first], items)


@contextmanager
def _slot(run: Run, key: StageKey, trains: bool) -> Iterator[str]:
    """Wait for a device and let this thread use it."""

    def wait(reason: str) -> None:
        record_start(run, key, reason)
        say(f"{key.stage}: {reason}")

    holder = f"run {run.run_id} (in {run.out}, process {os.getpid()})"
    with device_slot(slots_folder(), run.gpu_gib, trains, wait, holder) as device:
        yield device


def _compute(
    run: Run,
    key: StageKey,
    settings: Mapping[str, Any],
    produce: Callable[[Work], Mapping[str, Any]],
    device: str,
) -> Output:
    tags = {"redream.run_id": run.run_id, "redream.stage": key.stage, "redream.key": key.digest, **run.prefect_tags}
    tracker = Tracker.start(run.tracking, key.stage, tags, parent=run.mlflow_run_id)
    tracker.log_params(settings)
    record_start(run, key)
    started = time.monotonic()
    try:
        folder, checkpoint = run.store.begin(key)
        work = Work(key.stage, folder, checkpoint, tracker, device)
        result = produce(work)
        tracker.flush()  # once the output counts, no later attempt logs its steps again
        seconds = time.monotonic() - started
        facts = {"device": device_name(device), **work.facts}
        origin = {"run_id": run.run_id, "prefect": run.prefect_tags}
        output = run.store.publish(key, result, work.metrics, seconds, tracker.run_id, {**origin, **facts})
    except BaseException as error:
        tracker.set_tags({"redream.error": f"{type(error).__name__}: {error}"[:4000]})
        tracker.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        record_failure(run, key, error)
        raise
    tracker.log_final({f"{key.stage}/seconds": seconds, **_prefixed(key.stage, work.metrics)})
    tracker.finish()
    record_stage(run, key, output, is_cached=False, facts=facts)
    say(f"{key.stage}: {duration(seconds)}")
    return output


def _track_cached(run: Run, key: StageKey, output: Output) -> None:
    """Leave a nested run that says where the output came from, with its final figures."""
    tags = {
        "redream.run_id": run.run_id,
        "redream.stage": output.stage,
        "redream.key": output.key,
        "redream.cached": "true",
        "redream.produced_by": output.mlflow_run_id,
        **run.prefect_tags,
    }
    note = f"Reused from the store; made by run `{output.mlflow_run_id}` in {duration(output.seconds)}."
    tracker = Tracker.start(run.tracking, f"{output.stage} (cached)", tags, note=note, parent=run.mlflow_run_id)
    tracker.log_final(_prefixed(output.stage, output.metrics))
    tracker.finish()
    record_stage(run, key, output, is_cached=True)


def _prefixed(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in metrics.items()}


def _read_steps(path: Path, before: int) -> list[dict[str, Any]]:
    """Return the recorded steps before one; a line that a kill cut short is none."""
    steps = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                break
            if entry["step"] < before:
                steps.append(entry)
    return steps


def _chain(first: Step | None, rest: Iterator[Step]) -> Iterator[Step]:
    if first is not None:
        yield first
        yield from rest
