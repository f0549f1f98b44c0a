"""What the keeper does to runs, against a real server; how processes die is in test_crashes.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Completed, Crashed, Pending, Running, Scheduled, State

from flows.command import doctor
from flows.service.addresses import BATCH_POOL, POOL, TAG
from flows.service.keeper import (
    HEARTBEAT,
    JUST_CANCELLED,
    RESUME_WITHIN,
    RESUMED,
    START,
    STOPS,
    create_automation,
    create_pools,
    expect_heartbeats,
    reconcile,
    refuse_unknown_parameters,
    say_alive,
)


@task
def stage() -> None:
    """Never run either."""


@flow(name="kept")
def kept() -> None:
    """Never run: only its record is needed."""


def with_run(
    state: State[Any],
    check: Callable[[PrefectClient, UUID], Awaitable[None]],
    is_deployed: bool = True,
    pool: str = POOL,
    tag: str = TAG,
) -> None:
    """Let `check` look at a run that is in a state, in one of the keeper's pools."""

    async def prepare() -> None:
        async with get_client() as client:
            await create_pools(client)
            flow_id = await client.create_flow(kept)
            deployment_id = await client.create_deployment(
                flow_id, name=f"kept-{pool}", work_pool_name=pool, tags=[tag]
            )
            if is_deployed:
                run = await client.create_flow_run_from_deployment(deployment_id)
            else:
                run = await client.create_flow_run(kept)
            await client.set_flow_run_state(run.id, state, force=True)
            try:
                await check(client, run.id)
            finally:
                await client.delete_flow_run(run.id)

    asyncio.run(prepare())


async def look(client: PrefectClient, run_id: UUID, after: timedelta, max_resumes: int = 2) -> str:
    """Let the keeper look some time after now, and return the state that the run is in then."""
    await reconcile(client, max_resumes, datetime.now(UTC) + after)
    state = (await client.read_flow_run(run_id)).state
    assert state is not None
    return str(state.name)


def test_crashed_run_is_scheduled_again_after_a_moment_and_a_set_number_of_times(prefect_server: None) -> None:
    async def check(client: PrefectClient, run_id: UUID) -> None:
        assert await look(client, run_id, timedelta(seconds=1)) == "Crashed"  # its worker may not know yet
        for _ in range(2):
            assert await look(client, run_id, timedelta(seconds=30)) == RESUMED
            await client.set_flow_run_state(run_id, Running(), force=True)
            await client.set_flow_run_state(run_id, Crashed(), force=True)
        assert await look(client, run_id, timedelta(seconds=30)) == "Crashed"
        run = await client.read_flow_run(run_id)
        states = await client.read_flow_run_states(run_id)
        assert [state.name for state in states].count(RESUMED) == 2
        assert run.state is not None and run.state.is_final()

    with_run(Crashed(), check)


def test_tasks_of_a_crashed_run_crash_with_it_and_its_finished_ones_stay(prefect_server: None) -> None:
    async def check(client: PrefectClient, run_id: UUID) -> None:
        under_way = await client.create_task_run(stage, run_id, "0", state=Running())
        finished = await client.create_task_run(stage, run_id, "1", state=Completed())
        assert await look(client, run_id, timedelta(seconds=30), max_resumes=0) == "Crashed"
        states = [(await client.read_task_run(task.id)).state for task in (under_way, finished)]
        assert [state.name for state in states if state is not None] == ["Crashed", "Completed"]

    with_run(Crashed(), check)


def test_objects_of_a_batch_that_was_cancelled_without_a_process_are_cancelled(prefect_server: None) -> None:
    async def check(client: PrefectClient, run_id: UUID) -> None:
        member = await client.create_flow_run(kept, tags=[f"batch:{run_id}"], state=Scheduled())
        assert await look(client, run_id, JUST_CANCELLED) == "Cancelled"
        assert (await client.read_flow_run(member.id)).state_name == "Scheduled"  # somebody tries it again
        assert await look(client, run_id, timedelta(seconds=1)) == "Cancelled"
        assert (await client.read_flow_run(member.id)).state_name == "Cancelled"

    with_run(Cancelled(), check, pool=BATCH_POOL)


def test_parameter_that_a_deployment_does_not_have_is_refused(prefect_server: None) -> None:
    async def check(client: PrefectClient, run_id: UUID) -> None:
        flow_id = await client.create_flow(kept)
        schema = {"type": "object", "properties": {"seed": {"type": "integer"}}}
        ours = await client.create_deployment(
            flow_id, name="ours", tags=[TAG], parameter_openapi_schema=schema, enforce_parameter_schema=True
        )
        await refuse_unknown_parameters(client)
        with pytest.raises(PrefectHTTPStatusError, match="sede"):
            await client.create_flow_run_from_deployment(ours, parameters={"sede": 1})
        assert await client.create_flow_run_from_deployment(ours, parameters={"seed": 1})

    with_run(Completed(), check)


def test_run_that_no_worker_started_is_crashed_but_not_before_a_worker_had_time(prefect_server: None) -> None:
    async def check(client: PrefectClient, run_id: UUID) -> None:
        assert await look(client, run_id, START / 2) == "Pending"
        assert await look(client, run_id, START, max_resumes=0) == "Crashed"

    with_run(Pending(), check)


def test_other_runs_are_left_alone(prefect_server: None) -> None:
    def stays(name: str, after: timedelta) -> Callable[[PrefectClient, UUID], Awaitable[None]]:
        async def check(client: PrefectClient, run_id: UUID) -> None:
            assert await look(client, run_id, after) == name

        return check

    hour = timedelta(hours=1)
    with_run(Running(), stays("Running", hour))  # whether it is silent, the automation knows
    with_run(Completed(), stays("Completed", hour))
    with_run(Crashed(), stays("Crashed", RESUME_WITHIN + hour))  # nobody's business any more
    with_run(Crashed(), stays("Crashed", hour), is_deployed=False)  # somebody's command, which ended
    with_run(Crashed(), stays("Crashed", hour), tag="another project")


@pytest.mark.parametrize("message", STOPS)
def test_run_that_was_stopped_goes_on_however_often_and_after_a_weekend(prefect_server: None, message: str) -> None:
    async def check(client: PrefectClient, run_id: UUID) -> None:
        for _ in range(4):
            assert await look(client, run_id, timedelta(days=3)) == RESUMED
            await client.set_flow_run_state(run_id, Running(), force=True)
            await client.set_flow_run_state(run_id, Crashed(message=message), force=True)

    with_run(Crashed(message=message), check)


def test_more_crashed_runs_than_the_server_tells_at_once_are_resumed(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(client: PrefectClient, run_id: UUID) -> None:
        first = await client.read_flow_run(run_id)
        assert first.deployment_id is not None
        others = [await client.create_flow_run_from_deployment(first.deployment_id) for _ in range(3)]
        for run in others:
            await client.set_flow_run_state(run.id, Crashed(), force=True)
        monkeypatch.setattr("flows.service.keeper.RUNS_PER_PAGE", 2)
        read = client.read_flow_runs
        monkeypatch.setattr(client, "read_flow_runs", partial(read, limit=2))
        assert await look(client, run_id, timedelta(seconds=30)) == RESUMED
        states = [(await client.read_flow_run(run.id)).state_name for run in others]
        for run in others:
            await client.delete_flow_run(run.id)
        assert states == [RESUMED] * 3

    with_run(Crashed(), check)


def test_second_keeper_adds_nothing(prefect_server: None) -> None:
    async def twice() -> tuple[int, int, int]:
        async with get_client() as client:
            for _ in range(2):
                await create_pools(client)
                await create_automation()
            pools = [pool.name for pool in await client.read_work_pools()]
            return pools.count(POOL), pools.count(BATCH_POOL), len(await client.read_automations())

    assert asyncio.run(twice()) == (1, 1, 1)


def test_runs_under_way_are_expected_to_give_a_sign_of_life(prefect_server: None) -> None:
    async def told(client: PrefectClient, run_id: UUID) -> list[dict[str, Any]]:
        wanted = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run_id}"]}}
        return (await client.request("POST", "/events/filter", json={"filter": wanted})).json()["events"]

    async def check(client: PrefectClient, run_id: UUID) -> None:
        ended = await client.create_flow_run(kept, state=Completed(), tags=[TAG])
        await expect_heartbeats(client)
        for _ in range(100):
            if events := await told(client, run_id):  # the server writes them down once a second or so
                break
            await asyncio.sleep(0.2)
        (event,) = events
        assert {resource["prefect.resource.id"] for resource in event["related"]} == {f"prefect.tag.{TAG}"}
        assert not await told(client, ended.id)
        await client.delete_flow_run(ended.id)

    with_run(Running(), check)


def test_doctor_knows_when_the_keeper_last_looked(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def api_url() -> str:
        async with get_client() as client:
            return str(client.api_url).rstrip("/")

    api = asyncio.run(api_url())
    asyncio.run(say_alive())
    assert doctor.check_keeper(api).state == "ok"
    monkeypatch.setattr(doctor, "KEEPER_SILENT_SECONDS", -1)
    silent = doctor.check_keeper(api)
    assert silent.state == "missing"
    assert "crashed runs are not resumed" in silent.found
    assert "flows.service.keeper" in silent.remedy
    monkeypatch.setattr(doctor, "KEEPER_SEEN", "of-no-keeper")
    assert "never seen" in doctor.check_keeper(api).found
