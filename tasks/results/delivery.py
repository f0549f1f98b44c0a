"""What a run ends with: the page, and the files that a person opens in the run's own folder, and the run's record.

It is no stage: it takes a moment, and every run has a page of its own, whatever it reused.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.evaluation import sheet_name
from tasks.exporting import MESH, TURNTABLE
from tasks.results.model_files import ATTRIBUTION, write_attribution
from tasks.results.page_content import found_neighbors, page_content, stage_outputs
from tasks.runs.run import PICTURE, Run, record_result
from tasks.tracking.tracker import Tracker

PAGE = "page.html"
DELIVERED = (PAGE, PICTURE, TURNTABLE, MESH, ATTRIBUTION)


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a run made, as the command shows it."""

    run_id: str
    prompt: str
    metrics: dict[str, float]
    neighbors: list[dict[str, Any]]
    page: str
    turntable: str
    mesh: str
    stages: dict[str, str]  # computed or cached
    mlflow_run_id: str


def deliver(run: Run) -> Made:
    """Copy what a person opens into the run's folder, and close the run's record with its metrics; then its page."""
    from redream.pages.page import write_page

    out = Path(run.out)
    outputs = stage_outputs(out, json.loads((run.folder / "run.json").read_text()))
    report, exported = outputs["evaluate"], outputs["export"]
    made = {name: exported.path(name) for name in (TURNTABLE, MESH)}
    for name, path in {PICTURE: report.path(sheet_name(0)), **made}.items():
        aside = run.folder / f".{name}"
        shutil.copyfile(path, aside)
        os.replace(aside, run.folder / name)
    neighbors = found_neighbors(outputs)
    record = json.loads((run.folder / "run.json").read_text())
    write_attribution(run.folder, record, neighbors)
    write_page(run.folder / PAGE, page_content(out, {**record, "state": "finished"}))
    files = [run.folder / name for name in DELIVERED]
    record = record_result(run, report.metrics, {"neighbors": neighbors}, files)
    return Made(
        run_id=run.run_id,
        prompt=run.prompt,
        metrics=report.metrics,
        neighbors=neighbors,
        page=str(run.folder / PAGE),
        turntable=str(run.folder / TURNTABLE),
        mesh=str(run.folder / MESH),
        mlflow_run_id=Tracker(run.tracking, run.mlflow_run_id).run_id,
        stages={name: entry["state"] for name, entry in record["stages"].items()},
    )
