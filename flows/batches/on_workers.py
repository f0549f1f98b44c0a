"""The objects of a deployed batch, each as a run of the deployment `generate`: any free worker of the pool takes one.

To use more machines, start more workers. The keeper reschedules crashed runs (`flows/service/keeper.py`); we report a
run as crashed only after it has stayed so for `GIVEN_UP`. A batch that is resumed itself, or retried in Prefect, finds
the runs that it asked for before.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from httpx import HTTPError, HTTPStatusError
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Cancelling, Scheduled

from flows.requests.request import Request
from redream.messages import reason
from tasks.machinery.progress import say
from tasks.machinery.slots import NUM_SLOTS

GENERATE = "generate/generate"
TRIED_AGAIN = "Retried"
OPEN = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CRASHED)
POLL_SECONDS, AWAY_SECONDS = 2.0, 10.0
GIVEN_UP = timedelta(seconds=60)  # the keeper resumes a crashed run after 15
MAX_PAGES = 100  # of 200 runs to cancel
RUNS_PER_QUESTION = 100  # the server answers with at most 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Over:
    """How a submitted run ended: its id in Prefect and its state there, a word of Prefect's, with what it says."""

    flow_run_id: str
    state: str
    message: str = ""
    seconds: float = 0.0


def run_on_workers(
    requests: Mapping[int, Request], batch_id: str, place: Mapping[str, str], at_a_time: int, gpus: int
) -> Iterator[tuple[int, Over]]:
    """Submit a run for each request and yield how it ended with the request's number.

    Args:
        place: the parameter `out` of the runs, or nothing, where each worker's own holds.
        at_a_time: how many runs may wait for workers or be under way; 0 for all.
        gpus: trainings at a time on each worker's machine; 0 for one per GPU.
    """
    waiting, under_way = list(requests.items()), dict[UUID, int]()
    with get_client(sync_client=True) as client:
        while waiting or under_way:
            try:
                while waiting and (at_a_time == 0 or len(under_way) < at_a_time):
                    number, request = waiting[0]
                    parameters = {**request.parameters(), **place, "batch": batch_id}
                    try:
                        under_way[_submit(client, request, parameters, gpus).id] = number
                    except HTTPStatusError as error:
                        if not error.response.is_client_error:
                            raise
                        yield number, Over(flow_run_id="", state="Refused", message=error.response.text[:1000])
                    del waiting[0]
                for over in _over(client, list(under_way)):
                    yield under_way.pop(UUID(over.flow_run_id)), over
            except HTTPError as error:  # the server is away for a while; the runs go on
                say(f"Prefect does not answer ({reason(error)}); the objects go on")
                time.sleep(AWAY_SECONDS)
            time.sleep(POLL_SECONDS * (1 + len(under_way) // RUNS_PER_QUESTION))  # a question each time, however many


def cancel_submitted(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel what a cancelled batch has asked for: Prefect calls it where the batch has a process."""
    cancel_objects(flow_run.id)


def cancel_objects(batch_run_id: UUID) -> None:
    """Cancel what a batch has asked for and what has not ended."""
    open_types = filters.FlowRunFilterStateType(any_=[*OPEN])
    found = filters.FlowRunFilter(
        tags=filters.FlowRunFilterTags(all_=[_tag(batch_run_id)]), state=filters.FlowRunFilterState(type=open_types)
    )
    with get_client(sync_client=True) as client:
        for _ in range(MAX_PAGES):
            runs = client.read_flow_runs(flow_run_filter=found)
            if not runs:
                return
            for run in runs:
                # The server makes this `Cancelled` at once where nothing has begun. A crashed run would be resumed.
                is_crashed = run.state is not None and run.state.is_crashed()
                with suppress(ObjectNotFound):  # deleted meanwhile
                    client.set_flow_run_state(run.id, Cancelled() if is_crashed else Cancelling(), force=is_crashed)


def _submit(client: SyncPrefectClient, request: Request, parameters: dict[str, Any], gpus: int) -> FlowRun:
    """Ask for a run, or find the one that an earlier attempt of this batch asked for; a failed one is tried again."""
    identity = hashlib.sha256(json.dumps(request.parameters(), sort_keys=True).encode()).hexdigest()
    run = client.create_flow_run_from_deployment(
        client.read_deployment_by_name(GENERATE).id,
        parameters=parameters,
        tags=[_tag(this_run.id)],
        idempotency_key=f"{this_run.id}/{identity}",
        job_variables={"env": {NUM_SLOTS: str(gpus)}} if gpus else None,
    )
    if run.state is not None and run.state.is_final() and not run.state.is_completed():
        client.set_flow_run_state(run.id, Scheduled(name=TRIED_AGAIN), force=True)
    return run


def _over(client: SyncPrefectClient, ids: Sequence[UUID]) -> Iterator[Over]:
    """Yield those runs that have ended or been deleted."""
    for start in range(0, len(ids), RUNS_PER_QUESTION):
        some = ids[start : start + RUNS_PER_QUESTION]
        asked = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=list(some)))
        found = {run.id: run for run in client.read_flow_runs(flow_run_filter=asked)}
        for run_id in some:
            run = found.get(run_id)
            if run is None:
                yield Over(flow_run_id=str(run_id), state="Deleted", message="its run in Prefect was deleted")
            elif run.state is not None and _is_over(run, datetime.now(UTC)):
                seconds = run.total_run_time.total_seconds()
                state = run.state.name or ""
                message = run.state.message or state
                yield Over(flow_run_id=str(run_id), state=state, message=message, seconds=seconds)


def _is_over(run: FlowRun, now: datetime) -> bool:
    if run.state is None or not run.state.is_final():
        return False
    return not run.state.is_crashed() or now - run.state.timestamp > GIVEN_UP


def _tag(batch_run_id: object) -> str:
    return f"batch:{batch_run_id}"
