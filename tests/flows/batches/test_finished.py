"""What is there already is told by content: no clock and no file's time decides."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trimesh
from PIL import Image

from flows.batches.finished import is_same_today
from flows.requests.request import Request, checked_request
from redream.overrides import flatten
from tasks.retrieval import taken_key


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    """A box with its material and picture."""
    (tmp_path / "box.obj").write_text("mtllib box.mtl\nusemtl m\n" + trimesh.creation.box().export(file_type="obj"))
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
