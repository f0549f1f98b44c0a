"""Which objects are there already: finished runs that the same request would repeat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.requests.request import Request
from redream.overrides import flatten
from tasks import adaptation, distillation, evaluation, exporting, indexing, orientation, rendering, retrieval
from tasks.machinery.searching import given_index
from tasks.results import delivery
from tasks.runs.records import list_runs, run_folder

VERSIONS = {
    "index": indexing.STAGE_VERSION, "retrieve": retrieval.STAGE_VERSION, "take_assets": retrieval.STAGE_VERSION,
    "align": orientation.STAGE_VERSION, "render": rendering.STAGE_VERSION, "warm_up": distillation.STAGE_VERSION,
    "adapt": adaptation.STAGE_VERSION, "distill": distillation.STAGE_VERSION,
    "evaluate": evaluation.STAGE_VERSION, "export": exporting.STAGE_VERSION,
}  # fmt: skip


def finished_runs(out: Path) -> dict[str, dict[str, Any]]:
    """Return the finished runs whose results are there, made by the code of today, by their requests."""
    return {request_identity(record["request"]): record for record in list_runs(out) if is_whole(out, record)}


def is_whole(out: Path, record: Mapping[str, Any]) -> bool:
    if record["flow"] != "generate" or record["state"] != "finished":
        return False
    return all((run_folder(out, record["run_id"]) / name).is_file() for name in delivery.DELIVERED) and all(
        entry.get("version") == VERSIONS.get(name) for name, entry in record["stages"].items()
    )


def is_same_today(record: Mapping[str, Any], asked: Request) -> bool:
    """Tell whether a finished run started from what the same request would start from now: by content, not by time."""
    if record["settings"] != json.loads(json.dumps(flatten(asked.config))):
        return False
    if asked.assets:
        key = retrieval.taken_key(asked.prompt, asked.assets, asked.config.mesh, asked.config.retrieval.up_axis)
    elif asked.index:
        key = retrieval.retrieved_key(asked.prompt, given_index(asked.index), asked.config.retrieval)
    else:
        return True
    return record["stages"].get(key.stage, {}).get("key") == key.digest


def request_identity(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)
