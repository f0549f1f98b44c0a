"""What a batch leaves: the gallery, the table of outcomes, and what Prefect shows of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from httpx import HTTPError
from prefect.artifacts import (
    create_markdown_artifact,
    create_table_artifact,
)

from flows.batches.outcomes import Outcome
from redream.messages import reason
from redream.pages.gallery import GalleryItem, StageSpan, write_gallery
from redream.pages.text import visible_text
from tasks.machinery.progress import duration, say
from tasks.machinery.store import write_json
from tasks.results.gallery import gallery_markdown, run_item, stage_spans
from tasks.runs.records import read_run
from tasks.runs.run import Run, record_result
from tasks.tracking.tracker import run_address, uri_today


def deliver_batch(run: Run, title: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write the table and the gallery, and log both."""
    counts = {state: sum(o.state == state for o in outcomes) for state in ("done", "reused", "failed", "stopped")}
    summary = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    gallery = run.folder / "gallery.html"
    items, spans = _gallery(run, outcomes)
    write_gallery(gallery, title, summary, [item for item, _ in items], spans)
    result = {"run_id": run.run_id, "gallery": str(gallery), "outcomes": [asdict(outcome) for outcome in outcomes]}
    write_json(run.folder / "outcomes.json", result)
    figures = {f"batch/{state}": float(number) for state, number in counts.items()}
    record_result(run, figures, {}, [gallery, run.folder / "outcomes.json"])
    rows = [{**asdict(o), "prompt": visible_text(o.prompt), "metrics": _figures(o.metrics)} for o in outcomes]
    show(lambda: create_table_artifact(key="batch", table=rows, description=summary))
    markdown = gallery_markdown(items, summary, gallery)
    show(lambda: create_markdown_artifact(key="gallery", markdown=markdown, description=summary))
    return result


def show(show: Callable[[], Any]) -> Any:
    """Show something in Prefect; a server that is away costs the batch nothing."""
    try:
        return show()
    except HTTPError as error:
        say(f"Prefect does not show all of this batch ({reason(error)})")
        return None


def _gallery(run: Run, outcomes: Sequence[Outcome]) -> tuple[list[tuple[GalleryItem, str]], list[StageSpan]]:
    """Return what is shown of each object, with its address in MLflow where it has one, and when its stages ran."""
    items, spans = [], []
    out = Path(run.out)
    began = datetime.fromisoformat(read_run(out, run.run_id)["started"])
    for outcome in outcomes:
        record = read_run(out, outcome.run_id) if outcome.run_id else None
        if record is not None and outcome.state != "reused":
            spans += stage_spans(record, len({span.lane for span in spans}), began)
        is_here = record is not None and uri_today(record["mlflow"], out) == run.tracking.uri
        address = run_address(run.tracking, record["mlflow"]["run_id"]) if record is not None and is_here else ""
        took = f", {duration(outcome.seconds)}" if outcome.seconds else ""
        item = (
            GalleryItem(prompt=outcome.prompt, state=outcome.state) if record is None else run_item(out, record, "..")
        )
        words = f"{outcome.state}, {outcome.method}, seed {outcome.seed}{took}"
        items.append((replace(item, state=outcome.state, reason=outcome.reason, subtitle=words), address))
    return items, spans


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in sorted(metrics.items()))
