"""What prefect.yaml promises: every deployment says what it takes, and bad values are refused before a run exists."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect.utilities.callables import parameter_schema

from flows.requests.parameters import SETTINGS
from flows.service.addresses import ask
from redream.overrides import flatten, with_overrides
from redream.presets import PRESETS
from redream.settings import RunConfig
from tests.flows.services import Served, wait_until

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def flow_of(deployment: dict[str, Any]) -> Any:
    module, _, name = deployment["entrypoint"].rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_deployment_says_what_it_takes_and_where_it_runs(deployment: dict[str, Any]) -> None:
    schema = parameter_schema(flow_of(deployment)).model_dump()["properties"]
    for name, parameter in schema.items():
        assert parameter["description"], name
        limits = {"enum", "minimum", "maxLength", "maxItems", "propertyNames"} & set(parameter)
        assert limits or parameter["type"] == "boolean", f"{name} takes anything"
    assert deployment.get("parameters", {}).keys() <= schema.keys()
    assert deployment["description"]
    assert "redream" in deployment["tags"]
    assert {"name", "work_queue_name"} <= deployment["work_pool"].keys()


def test_form_offers_the_presets_and_settings_that_exist() -> None:
    generate = next(entry for entry in DEPLOYMENTS if entry["name"] == "generate")
    schema = parameter_schema(flow_of(generate)).model_dump()["properties"]
    assert schema["preset"]["enum"] == list(PRESETS)
    offered = schema["settings"]["propertyNames"]["enum"]
    assert "distill.method" not in offered  # a parameter of its own
    sections = {name.partition(".")[0] for name in flatten(RunConfig())}
    assert {name.partition(".")[0] for name in offered} == sections
    assert offered == sorted(SETTINGS)
    for name in offered:
        with pytest.raises(ValueError) as refused:
            with_overrides(RunConfig(), {name: object()})
        assert "unknown" not in str(refused.value)


def schema_of_settings() -> Draft202012Validator:
    generate = next(entry for entry in DEPLOYMENTS if entry["name"] == "generate")
    return Draft202012Validator(parameter_schema(flow_of(generate)).model_dump()["properties"]["settings"])


@pytest.mark.parametrize("preset", PRESETS)
def test_form_takes_every_setting_of_a_preset(preset: str) -> None:
    settings = json.loads(json.dumps(flatten(PRESETS[preset]())))
    del settings["distill.method"]
    schema_of_settings().validate(settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_form_refuses_what_the_run_would_refuse(name: str) -> None:
    schema, limits = schema_of_settings(), SETTINGS[name]
    beyond = [limits[key] - 1 for key in ("minimum", "exclusiveMinimum") if key in limits]
    beyond += [limits[key] + 1 for key in ("maximum", "exclusiveMaximum") if key in limits]
    for value in [{}, True if limits.get("type") != "boolean" else "true", *beyond]:
        assert not schema.is_valid({name: value}), value
        with pytest.raises(ValueError, match=name):
            with_overrides(RunConfig(), {name: value})


def test_fresh_clone_deploys_all_in_minutes(served: Served, tmp_path: Path) -> None:
    """`prefect --no-prompt deploy --all` with nothing but what git tracks."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("redream/mini/weights", "tests/")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command, cwd=tmp_path, env=served.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for deployment in DEPLOYMENTS:
        status, there = ask(f"{served.api}/deployments/name/{flow_of(deployment).name}/{deployment['name']}")
        assert status == 200
        assert there["entrypoint"] == deployment["entrypoint"]
        assert there["tags"] == deployment["tags"]
        assert there["work_pool_name"] == deployment["work_pool"]["name"]
        limit = (there["global_concurrency_limit"] or {}).get("limit")
        assert limit == deployment.get("concurrency_limit", {}).get("limit")
        wait_until(partial(is_closed, served, there["id"]), 60)  # the keeper's doing, against unknown parameters


def is_closed(served: Served, deployment_id: str) -> bool:
    schema = ask(f"{served.api}/deployments/{deployment_id}")[1]["parameter_openapi_schema"]
    return schema.get("additionalProperties") is False


@pytest.mark.parametrize(
    ("deployment", "parameters"),
    [
        ("generate/generate", {}),
        ("generate/generate", {"prompt": ""}),
        ("generate/generate", {"prompt": " \t "}),
        ("generate/generate", {"prompt": "x" * 1001}),
        ("generate/generate", {"prompt": "a \x1b[31mred cube"}),
        ("generate/generate", {"prompt": "a red\ncube"}),
        ("generate/generate", {"prompt": "a cube", "preset": "minni"}),
        ("generate/generate", {"prompt": "a cube", "method": "dreamfusion"}),
        ("generate/generate", {"prompt": "a cube", "seed": -1}),
        ("generate/generate", {"prompt": "a cube", "seed": "many"}),
        ("generate/generate", {"prompt": "a cube", "settings": {"distill.num_stepps": 5}}),
        ("generate/generate", {"prompt": "a cube", "settings": {"distill.num_steps": "many"}}),
        ("generate/generate", {"prompt": "a cube", "settings": {"distill.num_steps": 0}}),
        ("generate/generate", {"prompt": "a cube", "settings": {"camera.fovy_deg": [40]}}),
        ("batch/batch", {"prompts": ["a cube"], "settings": {"export.mesh_resolution": 10**6}}),
        ("generate/generate", {"prompt": "a cube", "assets": ["a\x00.glb"]}),
        ("generate/generate", {"prompt": "a cube", "sede": 1}),
        ("rerun/rerun", {"run_id": "a/../b"}),
        ("rerun/rerun", {"run_id": "20260101-000000-a-cube-0000", "from_stage": "distil"}),
        ("evaluate/evaluate", {"run_ids": []}),
        ("evaluate/evaluate", {"run_ids": ["../../etc"]}),
        ("build_index/build-index", {"preset": "huge"}),
    ],
)
def test_server_refuses_bad_values_before_a_run_exists_in_minutes(
    served: Served, deployment: str, parameters: dict[str, Any]
) -> None:
    before = served.runs()
    status, _ = served.create_run(deployment, parameters)
    assert status == 409
    assert served.runs() == before
