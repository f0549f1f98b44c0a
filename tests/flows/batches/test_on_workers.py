"""A deployed batch and a real server: an object that is refused, deleted, tried again or cancelled harms no other."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Completed, Crashed, Failed, Running, State

from flows.batches import on_workers
from flows.batches.on_workers import TRIED_AGAIN, Over, cancel_submitted, run_on_workers
from flows.requests.request import Request
from redream.presets import smoke

SCHEMA = {"type": "object", "properties": {"prompt": {"type": "string", "maxLength": 20}}}


@flow(name="generate")
def nothing(prompt: str) -> None:
    """Never run: no worker is there."""


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(nothing)
        client.create_deployment(
            flow_id, name="generate", enforce_parameter_schema=True, parameter_openapi_schema=SCHEMA
        )
        yield client


@pytest.fixture
def batch_id(monkeypatch: pytest.MonkeyPatch) -> str:
    """Stand in a batch's flow run, by Prefect's own variable for it."""
    batch_id = str(uuid.uuid4())
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", batch_id)
    monkeypatch.setattr(on_workers, "POLL_SECONDS", 0.05)
    return batch_id


def request(prompt: str) -> Request:
    return Request(
        prompt=prompt, preset="smoke", method="sds", seed=0, out=Path("out"), index="", assets=(), settings={},
        config=smoke(),
    )  # fmt: skip


def runs_of(client: SyncPrefectClient, batch_id: str) -> dict[str, FlowRun]:
    tagged = filters.FlowRunFilter(tags=filters.FlowRunFilterTags(all_=[f"batch:{batch_id}"]))
    return {run.parameters["prompt"]: run for run in client.read_flow_runs(flow_run_filter=tagged)}


def ends(client: SyncPrefectClient, batch_id: str, states: dict[str, State | None]) -> dict[str, Over]:
    """Ask for objects; once all are asked for, set their states, or delete those without one; return how each ended."""
    prompts = dict(enumerate(states))
    found: dict[str, Over] = {}
    ended = run_on_workers({number: request(text) for number, text in prompts.items()}, "batch", {}, 0, 0)
    refused = next(ended)  # the last one; by then the others have been asked for
    found[prompts[refused[0]]] = refused[1]
    for prompt, run in runs_of(client, batch_id).items():
        state = states[prompt]
        if state is None:
            client.delete_flow_run(run.id)
        else:
            client.set_flow_run_state(run.id, state, force=True)
    for number, over in ended:
        found[prompts[number]] = over
    return found


def test_each_object_ends_as_its_run_does(client: SyncPrefectClient, batch_id: str) -> None:
    states = {"done": Completed(), "bad": Failed(message="no field"), "gone": None, "refused" * 9: Running()}
    found = ends(client, batch_id, states)
    assert {prompt: over.state for prompt, over in found.items()} == {
        "done": "Completed", "bad": "Failed", "gone": "Deleted", "refused" * 9: "Refused",
    }  # fmt: skip
    assert found["bad"].message == "no field"
    assert "is too long" in found["refused" * 9].message


def test_an_attempt_after_the_first_finds_its_runs_and_tries_failed_ones_again(
    client: SyncPrefectClient, batch_id: str
) -> None:
    refused = "refused" * 9
    ends(client, batch_id, {"done": Completed(), "bad": Failed(), refused: Running()})
    before = runs_of(client, batch_id)
    again = run_on_workers({0: request("bad"), 1: request("done"), 2: request(refused)}, "batch", {}, 0, 0)
    assert next(again)[0] == 2
    after = runs_of(client, batch_id)
    assert {prompt: run.id for prompt, run in after.items()} == {prompt: run.id for prompt, run in before.items()}
    assert (after["bad"].state_name, after["done"].state_name) == (TRIED_AGAIN, "Completed")
    assert next(again) == (1, Over(flow_run_id=str(after["done"].id), state="Completed", message="Completed"))


def test_cancelling_a_batch_ends_all_that_could_go_on(client: SyncPrefectClient, batch_id: str) -> None:
    states = {"waits": None, "works": Running(), "died": Crashed(), "done": Completed()}
    asked = run_on_workers({i: request(text) for i, text in enumerate([*states, "refused" * 9])}, "b", {}, 0, 0)
    next(asked)
    for prompt, run in runs_of(client, batch_id).items():
        if (state := states[prompt]) is not None:
            client.set_flow_run_state(run.id, state, force=True)
    batch_run = client.create_flow_run(nothing, parameters={"prompt": "the batch"})
    cancel_submitted(nothing, batch_run.model_copy(update={"id": uuid.UUID(batch_id)}), Cancelling())
    names = {prompt: run.state_name for prompt, run in runs_of(client, batch_id).items()}
    assert names == {"waits": "Cancelled", "works": "Cancelling", "died": "Cancelled", "done": "Completed"}
