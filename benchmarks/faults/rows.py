"""A row of the fault matrix, and what is checked after every fault."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks.faults.ground import MARK, Ground, end, finished_stages, half_written, orphans, weights
from flows.service.addresses import ask
from tasks.runs.records import finished_stage, list_runs, read_run
from tasks.runs.stage import STEPS_FILE
from tasks.tracking.tracker import EXPERIMENT

FIGURE = "distill/grad_norm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What a fault did; `problems` are the checks that it did not pass."""

    happened: str
    resumed_by: str = ""
    has_same_weights: bool = False
    has_weights: bool = True  # not where a fault comes before there are any
    num_orphans: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def verdict(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        return "green" if not self.problems else f"**red**: {'; '.join(self.problems)}"


def row_after(
    ground: Ground,
    fault: str,
    out: Path,
    happened: str,
    resumed_by: str,
    kept: set[str],
    problems: list[str],
    undisturbed: dict[str, Any] | None = None,
    mlflow: str | None = None,
) -> Row:
    """Look at what a fault has left, once the last run in a folder has been resumed.

    Args:
        kept: stages that were finished when the fault came, and must not have been made again.
        problems: what was found before.
        mlflow: address of the server that the runs were tracked by; empty for a database in a file.
    """
    expected = undisturbed or ground.undisturbed
    record = [record for record in list_runs(out) if record["flow"] == "generate"][-1]
    if record["state"] != "finished":
        return Row(happened=happened, resumed_by=resumed_by, problems=[*problems, f"the run {record['state']}"])
    is_same = weights(out, record["run_id"]) == weights(Path(expected["folder"]).parents[1], expected["run_id"])
    again = [stage for stage in kept if record["stages"][stage]["state"] != "cached"]
    alive = orphans(lambda environment: environment.get(MARK) == fault)
    found = {
        "other weights": not is_same,
        f"made again: {', '.join(sorted(again))}": bool(again),
        f"half-written: {', '.join(half_written(out))}": bool(half_written(out)),
        f"stages missing: {', '.join(expected['stages'].keys() - finished_stages(record))}": (
            finished_stages(record) != expected["stages"].keys()
        ),
        f"{len(alive)} orphans": bool(alive),
    }
    problems = [*problems, *(problem for problem, is_so in found.items() if is_so)]
    address = ground.served.addresses["MLFLOW_TRACKING_URI"] if mlflow is None else mlflow
    problems += tracking_problems(address, out, record["run_id"])
    return Row(
        happened=happened, resumed_by=resumed_by, has_same_weights=is_same, num_orphans=len(alive), problems=problems
    )


def resume(ground: Ground, fault: str, command: list[str], servers: dict[str, str] | None = None) -> list[str]:
    """Give the command that resumes a run; returns what is wrong where it does not."""
    ended = end(ground.start(fault, command, servers=servers))
    return [] if ended.code == 0 else [f"not resumed but ended with {ended.code}: {ended.last_line}"]


def problems_after_kill(fault: str, out: Path, record: dict[str, Any], stage: str = "") -> list[str]:
    """Return what is wrong right after a kill: a record that says something else, half an output, an orphan."""
    states = {"the run": record["state"], **({stage: record["stages"][stage]["state"]} if stage else {})}
    problems = [f"the record says {name} {state}" for name, state in states.items() if state != "crashed"]
    if wrong := half_written(out):
        problems.append(f"half-written after the kill: {', '.join(wrong)}")
    if alive := orphans(lambda environment: environment.get(MARK) == fault):
        problems.append(f"{len(alive)} orphans after the kill")
    return problems


def tracking_problems(mlflow: str, out: Path, run_id: str) -> list[str]:
    """Return what MLflow lacks: runs, their ends, or figures in their order."""
    waiting = list((out / "spool").glob("*-*/*.json"))
    problems = [f"{len(waiting)} events wait for MLflow"] if waiting else []
    if not mlflow:
        return problems
    for record in list_runs(out):
        found = runs_of(mlflow, record["run_id"])
        if not found:
            problems.append(f"MLflow has no run {record['run_id']}")
        still_open = [run["info"]["run_name"] for run in found if run["info"]["status"] == "RUNNING"]
        if still_open:
            problems.append(f"open in MLflow: {', '.join(still_open)}")
    states = [record["stages"].get("distill", {}).get("state", "cached") for record in list_runs(out)]
    is_made_here = any(state != "cached" for state in states)
    if is_made_here and figures_in_mlflow(mlflow, out, run_id) != figures_on_disk(out, run_id):
        problems.append("figures in MLflow are not those of the steps, in their order")
    return problems


def figures_on_disk(out: Path, run_id: str) -> list[tuple[int, float]]:
    lines = finished_stage(out, read_run(out, run_id), "distill").path(STEPS_FILE).read_text().splitlines()
    return [(entry["step"], entry[FIGURE.partition("/")[2]]) for entry in map(json.loads, lines)]


def figures_in_mlflow(mlflow: str, out: Path, run_id: str) -> list[tuple[int, float]]:
    """Return the figures of the distillation as they were delivered, by the attempt that made the output."""
    maker = finished_stage(out, read_run(out, run_id), "distill").mlflow_run_id
    made = [
        run["info"]["run_id"]
        for record in list_runs(out)
        for run in runs_of(mlflow, record["run_id"])
        if maker in (run["info"]["run_id"], _tags(run).get("redream.local_id"))
    ]
    if len(made) != 1:
        return []
    query = urlencode({"run_id": made[0], "metric_key": FIGURE})
    _, found = ask(f"{mlflow}/api/2.0/mlflow/metrics/get-history?{query}")
    return [(int(point.get("step", 0)), point["value"]) for point in found["metrics"]]


def runs_of(mlflow: str, run_id: str) -> list[dict[str, Any]]:
    """Return the parent and the nested runs of one of ours."""
    _, experiment = ask(f"{mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}")
    asked = {
        "experiment_ids": [experiment["experiment"]["experiment_id"]],
        "filter": f"tags.`redream.run_id` = '{run_id}'",
        "max_results": 1000,
    }
    return ask(f"{mlflow}/api/2.0/mlflow/runs/search", content=asked)[1].get("runs", [])


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _tags(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
