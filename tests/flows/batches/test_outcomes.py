"""What a batch says of each object, by how its child or its run in Prefect ended."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.batches.making import command_of
from flows.batches.on_workers import Over
from flows.batches.outcomes import outcome_of_child, outcome_of_submitted, reused
from flows.processes.child_processes import Ended
from flows.requests.prompt_files import Member
from flows.requests.request import checked_request


@pytest.fixture(autouse=True)
def no_weights_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.requests.request.weights_path", lambda model: model)


@pytest.fixture
def member(tmp_path: Path) -> Member:
    settings = {"distill.num_steps": 7, "camera.fovy_deg": [41.0, 43.0], "evaluation.close_loop": True}
    return Member(line=4, request=checked_request("-- a 'red' cube", "smoke", "vsd", 5, tmp_path, settings=settings))


def save_run(out: Path, member: Member, run_id: str, batch: str = "the-batch", **changes: Any) -> None:
    record = {
        "run_id": run_id, "flow": "generate", "state": "finished", "batch": batch, "metrics": {"clip": 0.25},
        "request": member.request.parameters(), "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:05:35+00:00", "prefect": {"prefect.flow_run_id": f"prefect-{run_id}"}, "stages": {},
        "prompt": member.request.prompt, **changes,
    }  # fmt: skip
    (out / "runs" / run_id).mkdir(parents=True)
    (out / "runs" / run_id / "run.json").write_text(json.dumps(record))


def ended(code: int, output: str = "", messages: str = "") -> Ended:
    return Ended(name="0", code=code, output=output, messages=messages)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return SimpleNamespace(run_id="the-batch", out=str(tmp_path))


def test_a_child_that_ended_well_is_done_with_the_seconds_and_metrics_of_its_record(tmp_path, member, run) -> None:
    save_run(tmp_path, member, "one")
    outcome = outcome_of_child(member, ended(0, '{"run_id": "one"}'), run)
    assert (outcome.state, outcome.run_id, outcome.seconds, outcome.metrics) == ("done", "one", 90.0, {"clip": 0.25})
    assert (outcome.line, outcome.prompt, outcome.seed, outcome.method) == (4, "-- a 'red' cube", 5, "vsd")


@pytest.mark.parametrize("output", ["", "{}", '{"run_id": "absent"}', "no json"])
def test_a_child_without_a_record_has_failed(output: str, member, run) -> None:
    outcome = outcome_of_child(member, ended(0, output), run)
    assert outcome.state == "failed" and outcome.reason.startswith("its record cannot be read")


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (1, "failed"),
        (2, "failed"),
        (-9, "failed"),
        (130, "stopped"),
        (143, "stopped"),
        (-2, "stopped"),
        (-15, "stopped"),
    ],
)
def test_a_child_that_was_asked_to_end_has_stopped_and_any_other_failed(code: int, state: str, member, run) -> None:
    outcome = outcome_of_child(member, ended(code, messages="redream: no such thing\n"), run)
    assert outcome.state == state and outcome.run_id == "" and outcome.reason


def test_the_run_of_a_failed_child_is_its_batchs_last_of_the_same_request(tmp_path, member, run) -> None:
    save_run(tmp_path, member, "1-earlier", state="failed")
    save_run(tmp_path, member, "2-last", state="failed", started="2026-01-02T03:04:06+00:00")
    save_run(tmp_path, member, "3-of-another-batch", batch="another", state="failed")
    save_run(tmp_path, member, "4-of-another-seed", state="failed", request={**member.request.parameters(), "seed": 6})
    assert outcome_of_child(member, ended(1, messages="x"), run).run_id == "2-last"


@pytest.mark.parametrize(("prefect", "state"), [("Completed", "done"), ("Cancelled", "stopped"), ("Crashed", "failed")])
def test_a_submitted_run_is_what_prefect_and_its_record_say(prefect: str, state: str, tmp_path, member, run) -> None:
    save_run(tmp_path, member, "one", error="ValueError: the field is empty" if state == "failed" else "")
    save_run(tmp_path, member, "other")
    outcome = outcome_of_submitted(
        member, Over(flow_run_id="prefect-one", state=prefect, message="its message", seconds=12.0), run
    )
    assert (outcome.state, outcome.run_id) == (state, "one")
    reason = {"done": "", "stopped": "its message", "failed": "ValueError: the field is empty"}[state]
    assert outcome.reason == reason
    assert (outcome.seconds, outcome.metrics) == ((12.0, {"clip": 0.25}) if state == "done" else (0.0, {}))


def test_a_submitted_run_whose_files_are_elsewhere_is_done_and_says_so(member, run) -> None:
    outcome = outcome_of_submitted(member, Over(flow_run_id="prefect-one", state="Completed"), run)
    assert outcome.state == "done" and outcome.run_id == "" and "on this machine" in outcome.reason


def test_what_was_made_before_keeps_its_run_and_metrics(member) -> None:
    outcome = reused(member, "one", "made before", {"clip": 0.5})
    assert (outcome.state, outcome.run_id, outcome.reason) == ("reused", "one", "made before")
    assert (outcome.line, outcome.seed, outcome.metrics) == (4, 5, {"clip": 0.5})


def test_the_command_of_an_object_asks_for_the_very_request(tmp_path: Path, member: Member) -> None:
    (tmp_path / "mesh.glb").write_bytes(b"x")
    for request in (
        member.request,
        checked_request("a cube", "smoke", seed=0, out=tmp_path, assets=[str(tmp_path / "mesh.glb")]),
    ):
        command = command_of(request, "the-batch", tmp_path)
        options, prompt = command[: command.index("--")], command[command.index("--") + 1 :]
        assert prompt == [request.prompt]
        value = {name: options[place + 1] for place, name in enumerate(options) if name.startswith("--")}
        assert value["--batch"] == "the-batch" and value["--out"] == str(tmp_path)
        assert (value["--preset"], value["--method"], int(value["--seed"])) == (
            request.preset, request.method, request.seed,
        )  # fmt: skip
        assets = [options[place + 1] for place, name in enumerate(options) if name == "--asset"]
        assert assets == list(request.assets)
        given = [options[place + 1] for place, name in enumerate(options) if name == "--set"]
        assert given == [f"{name}={setting!r}" for name, setting in request.settings.items()]
