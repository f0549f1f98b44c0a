"""The page of a run under way: there from the first stage on, and written again while it grows.

A thread looks at the run's record and at what its stages have left, so that no stage knows of the page. The page loads
itself again from its file; no server is involved.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from redream.messages import reason
from redream.settings import RunConfig
from tasks.exporting import MESH
from tasks.machinery.progress import duration, say, stop_requested
from tasks.results.delivery import PAGE
from tasks.results.model_files import write_mesh
from tasks.results.page_content import Expected, page_content, stage_outputs, steps_of
from tasks.runs.description import reason_of
from tasks.runs.records import list_runs
from tasks.runs.run import Run, ending_of
from tasks.tracking.tracker import Tracker

EVERY_SECONDS = 3.0
RELOAD_SECONDS = 5
STAGES_PATIENCE = 120.0  # seconds that stages have to save what they have when the run is stopped
KEPT_RESOLUTION = 96  # cells per axis of the mesh of a run that ends early: seconds on any machine

logger = logging.getLogger(__name__)


@contextmanager
def growing_page(run: Run, config: RunConfig, stages: Sequence[str]) -> Iterator[None]:
    """Keep the page of a run up to date while the body runs; if that fails or is stopped, keep what is there.

    Args:
        stages: that the run will go through.
    """
    ended = threading.Event()
    clock = Clock(run, config, stages)
    thread = threading.Thread(target=_grow, args=(run, clock, ended), name="page", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            stop_requested.set()  # for the stages in other threads, also where Prefect took the signal for itself
        ended.set()
        thread.join()
        keep_what_is_there(run, config, error)
        raise
    ended.set()
    thread.join()


def keep_what_is_there(run: Run, config: RunConfig, error: BaseException) -> None:
    """Write the page of a run that ends early, with a mesh if there is a field, and say how it can go on."""
    state = ending_of(error)
    if state == "stopped":
        _wait_for_stages(run)
    out, record = Path(run.out), _record(run)
    record = {**record, "state": state, "error": reason(error)}
    outputs = stage_outputs(out, record)
    files = [run.folder / PAGE]
    if "export" not in outputs and {"warm_up", "distill"} & record["stages"].keys():
        try:
            write_mesh(out, run.run_id, _coarse(config), run.folder / MESH)
            files.append(run.folder / MESH)
        except ValueError as why:
            say(f"no mesh: {why}")
    _write(run, record, Expected())
    if state == "stopped":
        error.add_note(reason_of(out, record))  # the command's last word
    say(f"page: {run.folder / PAGE}")
    Tracker(run.tracking, run.mlflow_run_id).log_artifacts(files)


class Clock:
    """How long a run may still take: by the pace of its steps, and for stages to come by earlier runs of its kind."""

    def __init__(self, run: Run, config: RunConfig, stages: Sequence[str]) -> None:
        self._run, self._stages = run, tuple(stages)
        distill = config.distill
        begin = distill.warm_up_steps if distill.method == "redream" else 0
        self._totals = {
            "warm_up": distill.warm_up_steps,
            "adapt": 1 + config.adaptation.num_steps,
            "distill": distill.num_steps - begin,
        }
        self._first: dict[str, tuple[float, int]] = {}  # when a stage was first seen, and how many steps it had
        self._usual: dict[str, float] | None = None

    def expected(self, record: Mapping[str, Any]) -> Expected:
        remarks, left, is_known = {}, 0.0, True
        out = Path(self._run.out)
        begun = [number for number, stage in enumerate(self._stages) if stage in record["stages"]]
        ahead = self._stages[max(begun, default=-1) + 1 :]
        stages = (*record["stages"], *ahead)  # what was left out, for want of a fitting asset, does not come
        for stage in stages:
            entry = record["stages"].get(stage, {"state": "to come"})
            if entry["state"] in ("computed", "cached"):
                continue
            seconds = self._usual_seconds(record).get(stage)
            if entry["state"] == "running" and stage in self._totals:
                done = len(steps_of(out, record, stage, {}))
                remarks[stage] = f"step {done} of {self._totals[stage]}"
                began, before = self._first.setdefault(stage, (time.monotonic(), done))
                if done > before:
                    seconds = (self._totals[stage] - done) * (time.monotonic() - began) / (done - before)
            left, is_known = left + (seconds or 0.0), is_known and seconds is not None
        about = "about" if is_known else "at least"
        remaining = f"{about} {duration(left)} left" if left else ""
        return Expected(stages=stages, remarks=remarks, remaining=remaining, reload_seconds=RELOAD_SECONDS)

    def _usual_seconds(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return what each stage took in earlier runs of the same preset and method."""
        if self._usual is None:
            kind, took = [record["request"][name] for name in ("preset", "method")], dict[str, list[float]]()
            try:
                runs = list_runs(Path(self._run.out))
            except ValueError:  # one of them is damaged, which must not concern this one
                runs = []
            for other in runs:
                if other["flow"] != "generate" or [other["request"][name] for name in ("preset", "method")] != kind:
                    continue
                for stage, entry in other["stages"].items():
                    if "seconds" in entry:
                        took.setdefault(stage, []).append(entry["seconds"])
            self._usual = {stage: median(seconds) for stage, seconds in took.items()}
        return self._usual


def _grow(run: Run, clock: Clock, ended: threading.Event) -> None:
    while True:
        try:
            record = _record(run)
            _write(run, record, clock.expected(record))
        except (OSError, ValueError, KeyError) as error:  # such as an output that is being published
            logger.debug("the page of %s waits: %s", run.run_id, error)
        if ended.wait(EVERY_SECONDS):
            return


def _write(run: Run, record: Mapping[str, Any], expected: Expected) -> None:
    from redream.pages.page import write_page

    write_page(run.folder / PAGE, page_content(Path(run.out), record, expected))


def _record(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "run.json").read_text())


def _wait_for_stages(run: Run) -> None:
    """Wait until the stages in other threads have saved what they have."""
    deadline = time.monotonic() + STAGES_PATIENCE
    while time.monotonic() < deadline:
        if not any(entry["state"] in ("running", "waiting") for entry in _record(run)["stages"].values()):
            return
        time.sleep(0.1)


def _coarse(config: RunConfig) -> RunConfig:
    from redream.overrides import with_overrides

    return with_overrides(config, {"export.mesh_resolution": min(config.export.mesh_resolution, KEPT_RESOLUTION)})
