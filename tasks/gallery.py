"""What a batch shows of its runs: thumbnails, figures and spans of time, from their records and outputs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from redream.gallery import StageSpan
from tasks.evaluation import sheet_name
from tasks.records import finished_stage

THUMBNAIL_SIZE = 192  # pixels
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


def stage_spans(record: Mapping[str, Any], lane: int, began: datetime) -> list[StageSpan]:
    """Return when each stage of a run was computed."""
    spans = []
    for name, entry in record["stages"].items():
        if entry["state"] == "cached" or "ended" not in entry:
            continue
        start, end = ((datetime.fromisoformat(entry[at]) - began).total_seconds() for at in ("started", "ended"))
        spans.append(StageSpan(lane=lane, stage=name, start=max(0.0, start), end=end, trains=name in TRAININGS))
    return spans
