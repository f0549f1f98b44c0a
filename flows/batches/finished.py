"""Which objects are there already: finished runs that the same request would repeat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks import adaptation, distillation, evaluation, exporting, indexing, orientation, rendering, retrieval
from tasks.results import delivery
from tasks.runs.records import list_runs, run_folder

VERSIONS = {
    "index": indexing.STAGE_VERSION, "retrieve": retrieval.STAGE_VERSION, "take_assets": retrieval.STAGE_VERSION,
    "align": orientation.STAGE_VERSION, "render": rendering.STAGE_VERSION, "warm_up": distillation.STAGE_VERSION,
    "adapt": adaptation.STAGE_VERSION, "distill": distillation.STAGE_VERSION,
    "evaluate": evaluation.STAGE_VERSION, "export": exporting.STAGE_VERSION,
}  # fmt: skip


def finished_runs(out: Path) -> dict[str, dict[str, Any]]:
    """Return the finished runs whose results are there and would come out the same today, by their requests."""
    return {request_identity(record["request"]): record for record in list_runs(out) if is_whole(out, record)}


def is_whole(out: Path, record: Mapping[str, Any]) -> bool:
    if record["flow"] != "generate" or record["state"] != "finished":
        return False
    named = [Path(asset) for asset in record["request"]["assets"]]
    if record["request"]["index"]:
        named.append(Path(record["request"]["index"]) / "manifest.json")
    started = datetime.fromisoformat(record["started"]).timestamp()
    return (
        all((run_folder(out, record["run_id"]) / name).is_file() for name in delivery.DELIVERED)
        and all(entry.get("version") == VERSIONS.get(name) for name, entry in record["stages"].items())
        and all(path.is_file() and path.stat().st_mtime < started for path in named)
    )


def request_identity(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)
