"""Which stages a request goes through, what each needs of the others, and so what a rerun makes anew.

Nothing heavy is imported: the command checks a rerun before it starts anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.requests.request import Request, checked_out, checked_request
from tasks.runs.records import UNFINISHED, read_run

# In the order of the flow.
NEEDS: dict[str, tuple[str, ...]] = {
    "index": (),
    "retrieve": ("index",),
    "take_assets": (),
    "align": ("retrieve", "take_assets"),
    "render": ("retrieve", "take_assets", "align"),
    "warm_up": ("render",),
    "adapt": ("render",),
    "distill": ("render", "warm_up", "adapt"),
    "evaluate": ("distill",),
    "export": ("retrieve", "take_assets", "align", "distill"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rerun:
    """A checked rerun: the run it repeats, what it asks for, and the stages made anew whatever the store has."""

    parent: dict[str, Any]
    request: Request
    redone: tuple[str, ...]


def checked_rerun(run_id: str, from_stage: str, settings: Mapping[str, Any], out: str | Path) -> Rerun:
    """Accept a rerun, or raise a `ValueError` that says what is wrong and what to do."""
    folder = checked_out(out)
    parent = read_run(folder, run_id)
    if parent["flow"] != "generate":
        raise ValueError(f"run {run_id} is no object but of the flow {parent['flow']!r}; give that command again")
    asked = parent["request"]
    request = checked_request(**{**asked, "settings": {**asked["settings"], **settings}}, out=folder)
    stages = stages_of(request)
    if from_stage and from_stage not in stages:
        raise ValueError(f"--from {from_stage!r}: run {run_id} has no such stage; its stages are {', '.join(stages)}")
    if parent["state"] == "running":
        raise ValueError(f"run {run_id} is still under way; wait for it, or stop it first")
    if parent["state"] == "finished" and not from_stage and not settings:
        raise ValueError(f"run {run_id} has finished; name what to make anew with --from STAGE, or change a --set")
    return Rerun(
        parent=parent,
        request=request,
        redone=tuple(stage for stage in dependents(from_stage) if stage in stages) if from_stage else (),
    )


def stages_of(request: Request) -> list[str]:
    """Return the stages that a request goes through."""
    left_out = set()
    if request.method != "redream":
        left_out = NEEDS.keys() - {"distill", "evaluate", "export"}
    elif request.assets:
        left_out = {"index", "retrieve"}
    else:
        left_out = {"take_assets", "index"} if request.index else {"take_assets"}
    if not request.config.distill.use_adapter:
        left_out |= {"adapt"}
    return [stage for stage in NEEDS if stage not in left_out]


def dependents(stage: str) -> list[str]:
    """Return a stage and all that depend on it."""
    found = [stage]
    for name, needs in NEEDS.items():
        if set(needs) & set(found):
            found.append(name)
    return found


def first_unfinished(record: Mapping[str, Any]) -> str:
    """Return the first stage of a run that failed, stopped or crashed; empty where none did."""
    states = {name: entry["state"] for name, entry in record.get("stages", {}).items()}
    return next((name for name in NEEDS if states.get(name) in UNFINISHED), "")
