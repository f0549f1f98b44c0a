"""What a batch shows of its runs: thumbnails, figures and spans of time, from their records and outputs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from redream.pages.gallery import GalleryItem, StageSpan
from tasks.evaluation import sheet_name
from tasks.runs.records import finished_stage
from tasks.tracking.run_description import as_text, data_url

THUMBNAIL_SIZE = 192  # pixels
MAX_PICTURES = 60  # in an artifact of Prefect's, which is one text
TRAININGS = ("warm_up", "adapt", "distill")


def thumbnail(out: Path, record: Mapping[str, Any]) -> bytes:
    """Return the first view of a run's evaluation as a JPEG."""
    from PIL import Image

    sheet = finished_stage(out, record, "evaluate").path(sheet_name(0))
    size = record["settings"]["evaluation.image_size"]
    with Image.open(sheet) as image:
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
