"""Make the objects of a batch: in children of this process or, where the batch is deployed, on the workers of the pool.

Each has a process of its own with its own flow run and MLflow run, so that none can harm another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect.artifacts import (
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.runtime import deployment

from flows.batches.finished import finished_runs, is_same_today, request_identity
from flows.batches.on_workers import run_on_workers
from flows.batches.outcomes import Outcome, Outcomes, outcome_of_child, outcome_of_submitted, reused
from flows.batches.reporting import show
from flows.processes.child_processes import Children, Job
from flows.requests.prompt_files import Member
from flows.requests.request import Request
from redream.interpreter import python_command
from redream.pages.text import visible_text
from tasks.machinery.progress import say, track
from tasks.machinery.slots import NUM_SLOTS, num_slots
from tasks.runs.run import Run

EXTRA_WORKERS = 1  # beyond one per GPU: it retrieves and renders while the others compute


def make_missing(
    run: Run,
    members: Sequence[Member],
    workers: int,
    gpus: int,
    place: Mapping[str, str],
    outcomes: dict[int, Outcome],
) -> None:
    """Make what is missing, some at a time, and note in `outcomes` what becomes of each, by its number."""
    there = finished_runs(Path(run.out))
    missing: dict[str, int] = {}  # by request: a prompt that comes twice is made once
    for number, member in enumerate(members):
        identity = request_identity(member.request.parameters())
        record = there.get(identity)
        if record is not None and is_same_today(record, member.request):
            outcomes[number] = reused(member, record["run_id"], "made before", record["metrics"])
        elif identity in missing:
            first = members[missing[identity]]
            outcomes[number] = reused(member, "", f"the same as line {first.line}", {})
        else:
            missing[identity] = number
    if outcomes:
        say(f"{len(outcomes)} of {len(members)} objects are there already")
    asked = {number: members[number] for number in missing.values()}
    ended = run_there(run, asked, place, workers, gpus) if deployment.id else run_here(run, asked, workers, gpus)
    description = f"{len(asked)} objects to make"
    shown = show(lambda: create_progress_artifact(progress=0.0, key="batch-progress", description=description))
    with closing(ended):  # what is under way ends with it, also where the loop breaks off
        for num_ended, (number, outcome) in enumerate(track(ended, "batch", len(asked)), start=1):
            outcomes[number] = outcome
            say(f"{outcome.state}: {visible_text(outcome.prompt)} (seed {outcome.seed}) {visible_text(outcome.reason)}")
            progress = 100.0 * num_ended / len(asked)
            if shown is not None:
                show(partial(update_progress_artifact, cast(UUID, shown), progress=progress))


def run_here(run: Run, asked: Mapping[int, Member], workers: int, gpus: int) -> Outcomes:
    """Make objects in children of this process."""
    logs = run.folder / "members"
    logs.mkdir()
    # One server for all: several on one database would wait for each other.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT__")}
    environment["PREFECT_API_URL"] = str(get_client(sync_client=True).api_url).rstrip("/")
    if gpus:
        environment[NUM_SLOTS] = str(gpus)
    jobs = [
        Job(name=str(number), command=command_of(member.request, run.run_id, Path(run.out)))
        for number, member in asked.items()
    ]
    num_workers = workers or (gpus or num_slots()) + EXTRA_WORKERS
    with closing(Children(logs, environment).run(jobs, num_workers)) as ended:
        for child in ended:
            number = int(child.name)
            yield number, outcome_of_child(asked[number], child, run)


def run_there(run: Run, asked: Mapping[int, Member], place: Mapping[str, str], workers: int, gpus: int) -> Outcomes:
    """Let the workers of the pool make objects."""
    requests = {number: member.request for number, member in asked.items()}
    for number, ended in run_on_workers(requests, run.run_id, place, workers, gpus):
        yield number, outcome_of_submitted(asked[number], ended, run)


def command_of(request: Request, batch_id: str, out: Path) -> list[str]:
    """Return the command that makes one object; its arguments are a list that no shell reads."""
    command = [
        *python_command("-m", "flows.command", "generate", "--json", "--batch", batch_id, "--out", str(out)),
        "--preset", request.preset, "--method", request.method, "--seed", str(request.seed),
    ]  # fmt: skip
    if request.index:
        command += ["--index", request.index]
    for asset in request.assets:
        command += ["--asset", asset]
    for name, value in request.settings.items():
        command += ["--set", f"{name}={value!r}"]
    return [*command, "--", request.prompt]
