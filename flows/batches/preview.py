"""What a batch is about to make, and how long that may take by the runs that are here already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from flows.requests.prompt_files import Member
from redream.pages.text import visible_text
from tasks.runs.records import list_runs

NUM_SHOWN = 3


def first_members(members: Sequence[Member]) -> str:
    """Return the count and the first objects of a batch in one line."""
    first = ", ".join(
        f"{visible_text(member.request.prompt)!r} (seed {member.request.seed})" for member in members[:NUM_SHOWN]
    )
    return f"{len(members):,} objects: {first}" + (", …" if len(members) > NUM_SHOWN else "")


def expected_seconds(members: Sequence[Member], out: Path) -> float | None:
    """Return how long a batch may take one object after the other, by the median run of each preset and method.

    None where no run of one of them has finished here whose training was not reused from an earlier one.
    """
    took: dict[tuple[str, str], list[float]] = {}
    for record in list_runs(out):
        if record["flow"] == "generate" and record["state"] == "finished" and _has_trained(record):
            kind = (record["request"]["preset"], record["request"]["method"])
            started, ended = (datetime.fromisoformat(record[name]) for name in ("started", "ended"))
            took.setdefault(kind, []).append((ended - started).total_seconds())
    kinds = [(member.request.preset, member.request.method) for member in members]
    return sum(median(took[kind]) for kind in kinds) if set(kinds) <= took.keys() else None


def _has_trained(record: Mapping[str, Any]) -> bool:
    return record["stages"].get("distill", {}).get("state") == "computed"
