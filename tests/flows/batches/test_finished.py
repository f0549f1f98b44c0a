"""What a batch takes for made already: only what the same request would make again today."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trimesh
from PIL import Image

from flows.batches.finished import VERSIONS, finished_runs, is_same_today, is_whole, request_identity
from flows.requests.request import Request, checked_request
from redream.overrides import flatten
from tasks.results.delivery import DELIVERED
from tasks.retrieval import taken_key

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def save_run(out: Path, run_id: str = "a-run", request: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Write a finished run with all its files, and return its record."""
    asked = {"prompt": "a red cube", "seed": 3, "assets": [str(out / "mesh.glb")], "index": str(out / "index")}
    record = {
        "run_id": run_id, "flow": "generate", "state": "finished", "started": STARTED.isoformat(),
        "request": asked if request is None else request, "metrics": {},
        "stages": {name: {"state": "computed", "version": version} for name, version in VERSIONS.items()}, **changes,
    }  # fmt: skip
    folder = out / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    for name in DELIVERED:
        (folder / name).write_text("x")
    return record


def test_a_finished_run_with_all_its_files_is_found_by_its_request(tmp_path: Path) -> None:
    record = save_run(tmp_path)
    assert is_whole(tmp_path, record)
    found = finished_runs(tmp_path)
    assert list(found) == [request_identity(record["request"])]
    assert found[request_identity(record["request"])]["run_id"] == "a-run"


@pytest.mark.parametrize("changes", [{"flow": "batch"}, {"state": "failed"}, {"state": "running"}])
def test_other_flows_and_ends_do_not_count(changes: dict[str, Any], tmp_path: Path) -> None:
    assert not is_whole(tmp_path, save_run(tmp_path, **changes))
    assert finished_runs(tmp_path) == {}


@pytest.mark.parametrize("name", DELIVERED)
def test_a_run_that_lacks_one_of_its_files_is_made_again(name: str, tmp_path: Path) -> None:
    record = save_run(tmp_path)
    (tmp_path / "runs" / "a-run" / name).unlink()
    assert not is_whole(tmp_path, record)


@pytest.mark.parametrize("stage", VERSIONS)
def test_a_run_of_an_older_version_of_any_stage_is_made_again(stage: str, tmp_path: Path) -> None:
    record = save_run(tmp_path)
    record["stages"][stage]["version"] -= 1
    assert not is_whole(tmp_path, record)
    del record["stages"][stage]["version"]
    assert not is_whole(tmp_path, record)


def test_requests_are_alike_in_any_order_and_differ_in_any_value() -> None:
    request = {"prompt": "a", "seed": 1, "settings": {"distill.num_steps": 3, "render.num_views": 4}}
    turned = {"settings": {"render.num_views": 4, "distill.num_steps": 3}, "seed": 1, "prompt": "a"}
    assert request_identity(request) == request_identity(turned)
    for changes in ({"seed": 2}, {"prompt": "b"}, {"settings": {}}):
        assert request_identity({**request, **changes}) != request_identity(request)


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    """A box with its material and picture."""
    (tmp_path / "box.obj").write_text(f"mtllib box.mtl\nusemtl m\n{trimesh.creation.box().export(file_type='obj')}")
    (tmp_path / "box.mtl").write_text("newmtl m\nmap_Kd -s 1 1 1 wood.png\n")
    Image.new("RGB", (2, 2), (9, 9, 9)).save(tmp_path / "wood.png")
    return tmp_path / "box.obj"


def record_of(asked: Request) -> dict[str, Any]:
    """A run's record as far as it tells what the run started from."""
    key = taken_key(asked.prompt, asked.assets, asked.config.mesh, asked.config.retrieval.up_axis)
    return {"settings": json.loads(json.dumps(flatten(asked.config))), "stages": {"take_assets": {"key": key.digest}}}


@pytest.mark.parametrize("changed", ["box.obj", "box.mtl", "wood.png"])
@pytest.mark.parametrize("time", [0, 4_000_000_000])
def test_a_replaced_file_of_any_time_is_another_object(mesh: Path, changed: str, time: int) -> None:
    asked = checked_request("a box", out=mesh.parent / "out", assets=[str(mesh)])
    record = record_of(asked)
    path = mesh.with_name(changed)
    content = path.read_bytes()
    if changed == "wood.png":
        Image.new("RGB", (2, 2), (99, 9, 9)).save(path)
    else:
        path.write_bytes(content + b"\n# another\n")
    os.utime(path, (time, time))
    assert not is_same_today(record, asked)
    path.write_bytes(content)
    assert is_same_today(record, asked), "the same bytes are the same object, however new the file"
