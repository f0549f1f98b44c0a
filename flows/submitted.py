"""The objects of a deployed batch, each as a run of the deployment `generate`: any free worker of the pool takes one.

So more machines are more workers and nothing else. A run that crashes is scheduled again by `flows/keeper.py`; here it
counts as crashed only once nobody does. A batch that is itself resumed finds the runs that it asked for before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from httpx import TransportError
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Cancelling

from flows.request import Request
from tasks.progress import raise_if_stopped
from tasks.slots import NUM_SLOTS

GENERATE = "generate/generate"
POLL_SECONDS = 2.0
GIVEN_UP = timedelta(seconds=60)  # the keeper resumes a crashed run after 15
RUNS_PER_QUESTION = 100  # the server answers with at most 200


def run_on_workers(
    requests: Mapping[int, Request], batch_id: str, place: Mapping[str, str], at_a_time: int, gpus: int
) -> Iterator[tuple[int, FlowRun]]:
    """Submit a run for each request and yield it with the request's number when it is over.

    Args:
        place: the parameter `out` of the runs, or nothing, where each worker's own holds.
        at_a_time: how many runs may wait for workers or be under way; 0 for all.
        gpus: trainings at a time on a machine; 0 for one per GPU.
    """
    variables = {"env": {NUM_SLOTS: str(gpus)}} if gpus else None
    waiting, under_way = list(requests.items()), dict[UUID, int]()
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(GENERATE)
        while waiting or under_way:
            raise_if_stopped()
            try:
                while waiting and (at_a_time == 0 or len(under_way) < at_a_time):
                    number, request = waiting[0]
                    submitted = client.create_flow_run_from_deployment(
                        deployment.id,
                        parameters={**request.parameters(), **place, "batch": batch_id},
                        tags=[_tag(this_run.id)],
                        idempotency_key=f"{this_run.id}/{number}",
                        job_variables=variables,
                    )
                    under_way[submitted.id] = number
                    del waiting[0]
                for run in _read(client, list(under_way)):
                    if _is_over(run, datetime.now(UTC)):
                        yield under_way.pop(run.id), run
            except TransportError:
                pass  # the server is away for a while; the runs go on
            time.sleep(POLL_SECONDS)


def cancel_submitted(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel what a cancelled batch has asked for: Prefect calls it."""
    with get_client(sync_client=True) as client:
        found = filters.FlowRunFilter(tags=filters.FlowRunFilterTags(all_=[_tag(flow_run.id)]))
        while runs := [run for run in client.read_flow_runs(flow_run_filter=found) if not _is_ending(run)]:
            for run in runs:
                has_begun = run.state is not None and (run.state.is_running() or run.state.is_pending())
                client.set_flow_run_state(run.id, Cancelling() if has_begun else Cancelled(), force=True)


def _read(client: SyncPrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    runs: list[FlowRun] = []
    for start in range(0, len(ids), RUNS_PER_QUESTION):
        some = filters.FlowRunFilterId(any_=list(ids[start : start + RUNS_PER_QUESTION]))
        runs += client.read_flow_runs(flow_run_filter=filters.FlowRunFilter(id=some))
    return runs


def _is_over(run: FlowRun, now: datetime) -> bool:
    if run.state is None or not run.state.is_final():
        return False
    return not run.state.is_crashed() or now - run.state.timestamp > GIVEN_UP


def _is_ending(run: FlowRun) -> bool:
    return run.state is not None and (run.state.is_final() or run.state.is_cancelling())


def _tag(batch_run_id: object) -> str:
    return f"batch:{batch_run_id}"
