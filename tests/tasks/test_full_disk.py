"""A disk that is full: the stage fails with the system's word, and nothing half-written is ever used."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redream.presets import smoke
from tasks.machinery.store import stage_key
from tasks.runs.records import read_run
from tasks.runs.run import open_run
from tasks.runs.stage import Work, run_stage
from tasks.tracking.tracker import default_tracking_uri

SIZE = 2**21


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write(num_bytes: int) -> Any:
    def produce(work: Work) -> dict[str, int]:
        (work.folder / "file").write_bytes(b"x" * num_bytes)
        return {"num_bytes": num_bytes}

    return produce


def test_stage_that_fills_the_disk_publishes_nothing_and_runs_again_when_there_is_room(
    small_disk: Path, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_tracking_uri(mlflow_folder))
    key = stage_key("render", 1, {}, {})
    with (
        pytest.raises(OSError, match="No space left"),
        open_run("test", "a red cube", 0, smoke(), {"prompt": "a red cube"}, small_disk) as run,
    ):
        run_stage(run, key, {}, write(2 * SIZE))
    assert run.store.find(key) is None
    assert read_run(small_disk, run.run_id)["prompt"] == "a red cube"  # the record is whole, old or new
    for path in (small_disk / "store" / "partial").rglob("file"):
        path.unlink()
    with open_run("test", "a red cube", 1, smoke(), {"prompt": "a red cube"}, small_disk) as run:
        assert run_stage(run, key, {}, write(100)).result == {"num_bytes": 100}
    assert read_run(small_disk, run.run_id)["state"] == "finished"
