"""What a rerun would make anew, and what it refuses before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.requests.plan import checked_rerun, first_unfinished, stages_of
from flows.requests.request import checked_request


def save_run(out: Path, run_id: str = "a-run", **changes: Any) -> None:
    request = checked_request("a red cube", "smoke", out=out).parameters()
    record = {
        "run_id": run_id, "flow": "generate", "state": "failed", "prompt": "a red cube", "request": request,
        "stages": {"retrieve": {"state": "cached"}, "align": {"state": "failed"}}, "salts": {}, **changes,
    }  # fmt: skip
    (out / "runs" / run_id).mkdir(parents=True)
    (out / "runs" / run_id / "run.json").write_text(json.dumps(record))


@pytest.fixture(autouse=True)
def no_weights_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.requests.request.weights_path", lambda model: model)


def test_failed_run_is_taken_up_without_making_anything_anew(tmp_path: Path) -> None:
    save_run(tmp_path)
    asked = checked_rerun("a-run", "", {}, tmp_path)
    assert asked.redone == ()
    assert first_unfinished(asked.parent) == "align"


def test_stage_is_made_anew_with_what_depends_on_it(tmp_path: Path) -> None:
    save_run(tmp_path, state="finished")
    assert checked_rerun("a-run", "adapt", {}, tmp_path).redone == ("adapt", "distill", "evaluate", "export")
    assert checked_rerun("a-run", "adapt", {"distill.num_steps": 9}, tmp_path).request.config.distill.num_steps == 9


def test_rerun_keeps_the_settings_of_its_run_and_new_values_win(tmp_path: Path) -> None:
    settings = {"distill.num_steps": 7, "distill.warm_up_steps": 3}
    asked = checked_request("a red cube", "smoke", "redream", 5, tmp_path, settings=settings).parameters()
    save_run(tmp_path, request=asked)
    again = checked_rerun("a-run", "", {"distill.num_steps": 9, "render.num_views": 11}, tmp_path).request
    expected = {"distill.num_steps": 9, "distill.warm_up_steps": 3, "render.num_views": 11}
    assert dict(again.settings) == expected
    config = again.config
    assert (config.distill.num_steps, config.distill.warm_up_steps, config.render.num_views) == (9, 3, 11)
    assert (again.prompt, again.preset, again.method, again.seed) == ("a red cube", "smoke", "redream", 5)


@pytest.mark.parametrize(
    ("record", "from_stage", "settings", "words"),
    [
        ({"state": "finished"}, "", {}, "has finished; name what to make anew"),
        ({}, "take_assets", {}, "no such stage; its stages are index, retrieve"),
        ({}, "bake", {}, "no such stage"),
        ({}, "", {"distill.speed": 1}, "unknown setting"),
        ({"flow": "evaluate"}, "", {}, "give that command again"),
    ],
)
def test_rerun_that_makes_no_sense_is_refused(
    tmp_path: Path, record: dict[str, Any], from_stage: str, settings: dict[str, Any], words: str
) -> None:
    save_run(tmp_path, **record)
    with pytest.raises(ValueError, match=words):
        checked_rerun("a-run", from_stage, settings, tmp_path)


@pytest.mark.parametrize("name", ["absent", "../runs/a-run", "", ".", "a-run/"])
def test_name_of_no_run_is_refused(tmp_path: Path, name: str) -> None:
    save_run(tmp_path)
    with pytest.raises(ValueError, match="no run"):
        checked_rerun(name, "", {}, tmp_path)


def test_stages_follow_the_request(tmp_path: Path) -> None:
    (tmp_path / "mesh.glb").write_bytes(b"x")
    asked = checked_request("a cube", "smoke", out=tmp_path)
    assert stages_of(asked)[:3] == ["index", "retrieve", "align"]
    assert stages_of(checked_request("a cube", "smoke", "sds", out=tmp_path)) == ["distill", "evaluate", "export"]
    own = checked_request("a cube", "smoke", out=tmp_path, assets=[str(tmp_path / "mesh.glb")])
    assert stages_of(own)[0] == "take_assets"
    plain = checked_request("a cube", "smoke", out=tmp_path, settings={"distill.use_adapter": False})
    assert "adapt" not in stages_of(plain)
