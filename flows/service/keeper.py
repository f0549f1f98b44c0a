"""What keeps a Prefect server in order for redream: `python -m flows.service.keeper`, one for each server.

It creates the work pools, the deployments and an automation, and then looks after runs whose process or machine died:

- A run that was `Running` and says nothing for two minutes is marked `Crashed` by the automation. By default it would
  stay `Running` for ever. The keeper's start and a server's outage begin these two minutes anew.
- A run that was handed to a worker and never started is marked `Crashed` as well.
- A crashed run is scheduled again, at most `--max-resumes` times; its finished stages are in the store, and it
  continues from its last checkpoint. The state `Resumed` in its history counts the attempts.
- Tasks that a crashed run had under way are marked `Crashed` with it.
- Objects of a batch that was cancelled while it had no process, between two attempts, are cancelled as well.

It says in Prefect's variable `redream-keeper` when it last looked, by which `redream doctor` knows that it lives.

It also lets the server refuse parameters that a deployment does not have, which prefect.yaml cannot ask for, within
seconds of each deployment.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.processes.environment import QUIET, check_prefect
from flows.service.addresses import BATCH_POOL, KEEPER_SEEN, POOL, TAG
from flows.service.worker import STOPPED
from redream.interpreter import ROOT, import_environment, python_command
from redream.messages import reason

if TYPE_CHECKING:
    from prefect.automations import Automation
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

DEPLOYMENTS = (Path(__file__).parent, Path(ROOT))  # where prefect.yaml is: of a wheel, and of the repository
UNDER_WAY = ("RUNNING", "CANCELLING")
HEARTBEAT = "prefect.flow-run.heartbeat"
AUTOMATION = "redream: runs that fell silent are crashed"
RESUMED = "Resumed"
SILENT = "No sign of life: its process or its machine died."
SILENCE = timedelta(seconds=120)  # four heartbeats; less marks healthy runs
START = timedelta(seconds=300)  # for a worker to start the process of a run, on a busy machine as well
RESUME_DELAY = timedelta(seconds=15)  # a worker that learns of the death meanwhile frees the run's place
JUST_CANCELLED = timedelta(seconds=60)  # after that, an object of a cancelled batch has been tried again by somebody
# What crashed before is nobody's business any more; what was stopped with its worker is promised to go on.
RESUME_WITHIN, CONTINUE_WITHIN = timedelta(days=1), timedelta(days=30)
STOPS = (STOPPED, "Execution was aborted by a termination signal.")  # Prefect's own words, in the run's process
RUNS_PER_PAGE = 200  # what the server gives at most
LOOK_EVERY_SECONDS = 5.0
SAY_EVERY_LOOKS = 6


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.service.keeper", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--max-resumes", type=int, default=3, help="attempts after crashes, for each run")
    asked = parser.parse_args()
    if not os.environ.get("PREFECT_API_URL"):
        parser.error("set PREFECT_API_URL to the server's address, such as http://127.0.0.1:4200/api")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends `prefect deploy` as well
    try:
        check_prefect(os.environ["PREFECT_API_URL"], "PREFECT_API_URL")
    except ValueError as error:
        parser.error(str(error))
    asyncio.run(keep(asked.max_resumes))


async def keep(max_resumes: int) -> None:
    from httpx import ConnectError, HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    async with get_client() as client:
        await create_pools(client)
        await create_automation()
        deploy()
        print("keeper: the pools and deployments are there", file=sys.stderr, flush=True)
        has_missed = True  # heartbeats, without a server or a rule
        for num_looks in itertools.count():
            try:
                if has_missed:
                    await expect_heartbeats(client)
                    has_missed = False
                if num_looks % SAY_EVERY_LOOKS == 0:
                    await say_alive()
                await refuse_unknown_parameters(client)  # also after a deployment by hand
                for line in await reconcile(client, max_resumes, datetime.now(UTC)):
                    print(f"keeper: {line}", file=sys.stderr, flush=True)
            except ObjectNotFound:  # a run that was deleted meanwhile
                pass
            except HTTPError as error:  # the server is away for a while; so are its runs
                has_missed = has_missed or isinstance(error, ConnectError)  # a slow answer is no outage
                print(f"keeper: Prefect does not answer ({reason(error)})", file=sys.stderr, flush=True)
            await asyncio.sleep(LOOK_EVERY_SECONDS)


async def say_alive() -> None:
    """Leave the time on the server, for `redream doctor`."""
    from prefect.variables import Variable

    await Variable.aset(KEEPER_SEEN, datetime.now(UTC).isoformat(timespec="seconds"), overwrite=True)


async def create_pools(client: PrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    for name in (POOL, BATCH_POOL):
        with suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))


def deploy() -> None:
    """Create or update every deployment of prefect.yaml."""
    folder = next(folder for folder in DEPLOYMENTS if (folder / "prefect.yaml").is_file())
    command = python_command("-m", "prefect", "--no-prompt", "deploy", "--all")
    environment = {**import_environment(os.environ), "PWD": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"prefect deploy --all failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")


async def refuse_unknown_parameters(client: PrefectClient) -> None:
    """Close the parameters' schema of every deployment of prefect.yaml, so that a misspelt name is no accepted one."""
    from prefect.client.schemas import filters
    from prefect.client.schemas.actions import DeploymentUpdate

    ours = filters.DeploymentFilter(tags=filters.DeploymentFilterTags(all_=[TAG]))
    for deployment in await client.read_deployments(deployment_filter=ours):
        schema = deployment.parameter_openapi_schema or {}
        if schema.get("additionalProperties") is not False:
            closed = DeploymentUpdate(parameter_openapi_schema={**schema, "additionalProperties": False})
            await client.update_deployment(deployment.id, closed)


async def create_automation() -> None:
    from prefect.automations import Automation

    wanted = silence_automation()
    try:
        there = await Automation.aread(name=AUTOMATION)
    except ValueError:
        await wanted.acreate()
        return
    there.trigger, there.actions, there.enabled = wanted.trigger, wanted.actions, True
    await there.aupdate()


def silence_automation() -> Automation:
    """Return Prefect's rule that a run without heartbeats for `SILENCE` has crashed."""
    from prefect.automations import Automation, EventTrigger, Posture
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState

    ends = ("Completed", "Failed", "Cancelled", "Crashed")
    return Automation(
        name=AUTOMATION,
        description="Its process or its machine died. python -m flows.service.keeper schedules it again.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ends)},
            for_each={"prefect.resource.id"},
            match={"prefect.resource.id": "prefect.flow-run.*"},  # pyright: ignore[reportArgumentType]
            match_related={"prefect.resource.id": f"prefect.tag.{TAG}"},  # pyright: ignore[reportArgumentType]
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=SILENT, force=False)],
    )


async def expect_heartbeats(client: PrefectClient) -> None:
    """Send a heartbeat in the name of every run under way, from which on the rule waits for the run's own.

    The rule forgets whom it has heard of when it is updated, or when the server was away for long: a run that died by
    then would be `Running` for ever. A run that has ended meanwhile stays as it ended.
    """
    from prefect.client.schemas import filters
    from prefect.events import Event, Resource
    from prefect.events.related import tags_as_related_resources

    under_way = filters.FlowRunFilter(
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=list(UNDER_WAY))),  # pyright: ignore
        tags=filters.FlowRunFilterTags(all_=[TAG]),
    )

    def resource(run: FlowRun) -> Resource:
        return Resource({"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name})

    events = [
        Event(event=HEARTBEAT, resource=resource(run), related=tags_as_related_resources([TAG]))
        for run in await _all_runs(client, flow_run_filter=under_way)
    ]
    if events:
        await client.request("POST", "/events", json=[event.model_dump(mode="json") for event in events])


async def reconcile(client: PrefectClient, max_resumes: int, now: datetime) -> list[str]:
    """Mark runs that never started as crashed, and schedule crashed runs again; returns what was done."""
    done = []
    for run in await _runs_in(client, "PENDING", now):
        if _age(run, now) >= START:
            await _set_state(client, run, "CRASHED", "Crashed", "No worker started it.")
            done.append(f"{run.name}: no worker started it")
    for run in await _runs_in(client, "CANCELLED", now, [BATCH_POOL]):
        if _age(run, now) < JUST_CANCELLED:
            from flows.batches.on_workers import cancel_objects

            await asyncio.to_thread(cancel_objects, run.id)
    crashed = [run for run in await _runs_in(client, "CRASHED", now) if RESUME_DELAY <= _age(run, now) < _limit(run)]
    await _end_tasks(client, crashed)
    for run in crashed:
        states = sorted(await client.read_flow_run_states(run.id), key=lambda state: state.timestamp)
        after_crash = (later for before, later in pairwise(states) if before.message not in STOPS)
        num_resumed = sum(state.name == RESUMED for state in after_crash)  # a worker that is stopped is no crash
        if num_resumed < max_resumes:
            attempt = f"attempt {num_resumed + 1} of {max_resumes} after a crash"
            await _set_state(client, run, "SCHEDULED", RESUMED, attempt)
            done.append(f"{run.name}: {attempt}")
    return done


async def _end_tasks(client: PrefectClient, crashed: list[FlowRun]) -> None:
    """Mark the tasks as crashed that runs had under way when they did: nobody else will."""
    from prefect.client.schemas import filters
    from prefect.states import Crashed

    if not crashed:
        return
    runs = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[run.id for run in crashed]))
    under_way = filters.TaskRunFilterStateType(any_=["PENDING", "RUNNING"])  # pyright: ignore[reportArgumentType]
    tasks = filters.TaskRunFilter(state=filters.TaskRunFilterState(type=under_way))
    for task in await client.read_task_runs(flow_run_filter=runs, task_run_filter=tasks):
        await client.set_task_run_state(task.id, Crashed(message="Its run crashed."), force=True)


async def _runs_in(
    client: PrefectClient, state: str, now: datetime, pools: Sequence[str] = (POOL, BATCH_POOL)
) -> list[FlowRun]:
    """Return our deployed runs in a state, of those that began to be in it lately."""
    from prefect.client.schemas import filters

    has_ended = state != "PENDING"
    found = filters.FlowRunFilter(
        deployment_id=filters.FlowRunFilterDeploymentId(is_null_=False),
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=[state])),  # pyright: ignore
        tags=filters.FlowRunFilterTags(all_=[TAG]),
        end_time=filters.FlowRunFilterEndTime(after_=now - CONTINUE_WITHIN) if has_ended else None,  # pyright: ignore
    )
    pool = filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=list(pools)))
    return await _all_runs(client, flow_run_filter=found, work_pool_filter=pool)


async def _all_runs(client: PrefectClient, **wanted: Any) -> list[FlowRun]:
    """Return the runs that filters let through, page by page."""
    runs: list[FlowRun] = []
    while True:
        page = await client.read_flow_runs(**wanted, offset=len(runs))
        runs += page
        if len(page) < RUNS_PER_PAGE:
            return runs


def _limit(run: FlowRun) -> timedelta:
    """Return how long ago a run may have ended to be made to go on."""
    is_stopped = run.state is not None and run.state.message in STOPS
    return CONTINUE_WITHIN if is_stopped else RESUME_WITHIN


def _age(run: FlowRun, now: datetime) -> timedelta:
    return now - run.state.timestamp if run.state is not None else timedelta()


async def _set_state(client: PrefectClient, run: FlowRun, type_: str, name: str, message: str) -> None:
    from prefect.states import Crashed, Scheduled

    state = Scheduled(name=name, message=message) if type_ == "SCHEDULED" else Crashed(name=name, message=message)
    await client.set_flow_run_state(run.id, state, force=True)


if __name__ == "__main__":
    main()
