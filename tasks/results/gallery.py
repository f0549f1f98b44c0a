"""What a batch, and the page of all runs, show of runs, from their records and outputs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from redream.pages.gallery import GalleryItem, StageSpan
from tasks.distillation import PREVIEW_AZIMUTHS, PREVIEWS
from tasks.evaluation import sheet_name
from tasks.results.page_content import LINKS
from tasks.runs.description import took
from tasks.runs.records import finished_stage, run_folder
from tasks.tracking.run_description import as_text, data_url

THUMBNAIL_SIZE = 192  # pixels
MAX_PICTURES = 60  # in an artifact of Prefect's, which is one text
TRAININGS = ("warm_up", "adapt", "distill")


def run_item(out: Path, record: Mapping[str, Any], place: str, label: Mapping[str, str] | None = None) -> GalleryItem:
    """Show a run that makes an object, as far as it has come.

    Args:
        place: the folder of the runs, relative to the page.
        label: what a person has noted of it: `note`, `favorite`.
    """
    folder, label = run_folder(out, record["run_id"]), label or {}
    request, began = record["request"], datetime.fromisoformat(record["started"])
    words = [record["state"], request["preset"], request["method"], f"seed {request['seed']}", took(record)]
    links = {name: file for name, file in LINKS.items() if (folder / file).is_file()}
    return GalleryItem(
        prompt=record["prompt"],
        state=record["state"],
        reason=str(record.get("error", "")) if record["state"] in ("failed", "crashed") else "",
        subtitle=f"{began:%Y-%m-%d %H:%M}, {', '.join(words)}",
        thumbnail=thumbnail(out, record),
        link=f"{place}/{record['run_id']}/page.html" if (folder / "page.html").is_file() else "",
        metrics=record["metrics"],
        links={name: f"{place}/{record['run_id']}/{file}" for name, file in links.items()},
        started=int(began.timestamp()),
        note=label.get("note", ""),
        is_favorite=label.get("favorite", "") == "true",
    )


def thumbnail(out: Path, record: Mapping[str, Any]) -> bytes:
    """Return the first view of a run's evaluation, or else of its last preview, as a JPEG, or nothing."""
    from PIL import Image

    folder = run_folder(out, record["run_id"])
    try:
        picture = finished_stage(out, record, "evaluate").path(sheet_name(0))
        size = record["settings"]["evaluation.image_size"]
    except ValueError:  # it has not come so far, or its output has been deleted since
        previews = sorted((folder / PREVIEWS).glob("*.png"))
        if not previews:
            return b""
        picture, size = previews[-1], 0
    with Image.open(picture) as image:
        size = size or image.width // PREVIEW_AZIMUTHS
        view = image.convert("RGB").crop((0, 0, size, size))
    view.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    view.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def gallery_markdown(items: Sequence[tuple[GalleryItem, str]], summary: str, gallery: Path) -> str:
    """Describe a batch for Prefect's page: each object's picture, figures, and address in MLflow, where it has one."""
    lines = [summary, "", f"Gallery: `{gallery}`", "", "| | object | figures |", "|---|---|---|"]
    for number, (item, address) in enumerate(items):
        picture = f"![]({data_url(item.thumbnail)})" if item.thumbnail and number < MAX_PICTURES else ""
        said = as_text(" ".join(f"{item.prompt}; {item.subtitle or item.state} {item.reason}".split()))
        figures = ", ".join(f"{name} {value:.3f}" for name, value in sorted(item.metrics.items()))
        lines.append(f"| {picture} | {said} {f'[MLflow]({address})' if address else ''} | {figures} |")
    return "\n".join(lines)


def stage_spans(record: Mapping[str, Any], lane: int, began: datetime) -> list[StageSpan]:
    """Return when each stage of a run was computed."""
    spans = []
    for name, entry in record["stages"].items():
        if entry["state"] == "cached" or "ended" not in entry:
            continue
        start, end = ((datetime.fromisoformat(entry[at]) - began).total_seconds() for at in ("started", "ended"))
        spans.append(StageSpan(lane=lane, stage=name, start=max(0.0, start), end=end, trains=name in TRAININGS))
    return spans
