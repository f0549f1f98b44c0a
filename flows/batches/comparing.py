"""What a comparison leaves: its report as a page, CSV, JSON and LaTeX, here, in MLflow and in Prefect."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from prefect.artifacts import create_markdown_artifact

from flows.batches.outcomes import MISSING, Outcome
from flows.batches.reporting import show
from redream.metrics.comparison import Comparison, Row, compare
from redream.pages.comparison import ComparedObject, render_comparison
from redream.pages.comparison_tables import as_csv, as_json, as_latex, as_markdown
from tasks.evaluation import sheet_name
from tasks.runs.records import finished_stage, read_run
from tasks.runs.run import Run, record_result

MAX_VIEW_SIZE = 128  # pixels of a view in the report
SHEET_COLUMNS = 6  # of the evaluation's sheet
# A second face is the front of the views within 45 degrees of it, which are half of those from behind; with half of
# them, the judge may err in the others.
JANUS_SHARE = 0.25


def deliver_comparison(
    run: Run, title: str, facts: Mapping[str, str], columns: Sequence[str], outcomes: Mapping[str, Sequence[Outcome]]
) -> dict[str, Any]:
    """Compare the objects of every column and write the report; returns where it is and the means.

    Nothing in these files depends on when, or in how many attempts, the objects were made.
    """
    objects = [compared_object(Path(run.out), column, each) for column in columns for each in outcomes[column]]
    comparison = compare([each.row for each in objects], columns)
    num_failed = sum(comparison.num_failed.values())
    summary = f"{len(objects)} objects, {num_failed} of which could not be made"
    files = {
        "report.html": render_comparison(title, summary, facts, comparison, objects),
        "objects.csv": as_csv(comparison),
        "comparison.json": as_json(comparison, {"title": title, "facts": dict(facts)}),
        "table.tex": as_latex(comparison),
    }
    for name, text in files.items():
        (run.folder / name).write_text(text, encoding="utf-8", newline="\n")
    record_result(run, figures(comparison), {}, [run.folder / name for name in files])
    markdown = f"{summary}\n\n{as_markdown(comparison)}\nReport: `{run.folder / 'report.html'}`"
    show(lambda: create_markdown_artifact(key="comparison", markdown=markdown, description=title))
    means = {
        metric: {column: found.mean for column, found in by_column.items() if found.num_prompts}
        for metric, by_column in comparison.means.items()
    }
    return {"run_id": run.run_id, "report": str(run.folder / "report.html"), "means": means}


def compared_object(out: Path, column: str, outcome: Outcome) -> ComparedObject:
    """Return an object of the report, with its views where its evaluation is still there."""
    is_made = outcome.state not in MISSING and bool(outcome.metrics)
    metrics = dict(outcome.metrics) if is_made else {}
    if "wrong_front_share" in metrics:
        metrics["janus"] = float(metrics["wrong_front_share"] >= JANUS_SHARE)
    row = Row(column=column, prompt=outcome.prompt, seed=outcome.seed, metrics=metrics)
    sheet = view_sheet(out, read_run(out, outcome.run_id)) if is_made and outcome.run_id else b""
    return ComparedObject(row=row, sheet=sheet, reason="" if is_made else outcome.reason or outcome.state)


def view_sheet(out: Path, record: Mapping[str, Any]) -> bytes:
    """Return the views of a run's evaluation as a JPEG of six columns; empty where they have been deleted."""
    try:
        path = finished_stage(out, record, "evaluate").path(sheet_name(0))
    except ValueError:
        return b""
    with Image.open(path) as image:
        sheet = image.convert("RGB")
    sheet.thumbnail((SHEET_COLUMNS * MAX_VIEW_SIZE, 100 * MAX_VIEW_SIZE))
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def figures(comparison: Comparison) -> dict[str, float]:
    """Return the means and failures of every column, for MLflow."""
    found = {
        f"{column}/{metric}": interval.mean
        for metric, by_column in comparison.means.items()
        for column, interval in by_column.items()
        if interval.num_prompts
    }
    return found | {f"{column}/failed": float(number) for column, number in comparison.num_failed.items()}
