"""Laws of gc: only what no kept run names can go, nothing goes without a word, and nothing while a run is under way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tasks.machinery.store import Output, StageKey, Store, stage_key
from tasks.runs.garbage import delete_garbage, find_garbage
from tasks.runs.records import ALIVE_LOCK


def make(out: Path, value: int, size: int = 10) -> Output:
    store, key = Store(out / "store"), stage_key("render", 1, {"value": value}, {})
    folder, _ = store.begin(key)
    (folder / "file").write_bytes(b"x" * size)
    return store.publish(key, {}, {}, 0.0, "", {})


def leave_unfinished(out: Path, value: int) -> StageKey:
    key = stage_key("distill", 1, {"value": value}, {})
    _, checkpoint = Store(out / "store").begin(key)
    (checkpoint / "state.pt").write_bytes(b"x")
    return key


def save_run(out: Path, name: str, keys: list[str], state: str = "finished") -> Path:
    folder = out / "runs" / name
    folder.mkdir(parents=True)
    stages = {str(number): {"state": "computed", "key": key} for number, key in enumerate(keys)}
    record = {"run_id": name, "state": state, "started": name, "stages": stages}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_what_no_run_names_can_go_and_the_rest_stays(tmp_path: Path) -> None:
    kept, large, small = make(tmp_path, 1), make(tmp_path, 2, size=1000), make(tmp_path, 3)
    resumable, lost = leave_unfinished(tmp_path, 1), leave_unfinished(tmp_path, 2)
    save_run(tmp_path, "a", [kept.key, resumable.digest], state="failed")
    found = find_garbage(tmp_path)
    assert [Path(each.path).name for each in found][0] == large.key
    assert {Path(each.path).name for each in found} == {large.key, small.key, lost.digest}
    assert found[0].num_bytes > 1000
    assert len(delete_garbage(tmp_path, found)) == 3
    assert find_garbage(tmp_path) == []
    assert Path(kept.folder).is_dir()
    assert (tmp_path / "store" / "partial" / "distill" / resumable.digest).is_dir()
    assert not Path(large.folder).exists()


def test_output_goes_with_the_last_run_that_names_it(tmp_path: Path) -> None:
    output = make(tmp_path, 1)
    folders = [save_run(tmp_path, name, [output.key]) for name in ("a", "b")]
    for folder in folders:
        assert find_garbage(tmp_path) == []
        (folder / "run.json").unlink()
    assert [each.path for each in find_garbage(tmp_path)] == [output.folder]


def test_nothing_is_deleted_while_a_run_is_under_way_or_has_it_locked(tmp_path: Path) -> None:
    output = make(tmp_path, 1)
    folder = save_run(tmp_path, "a", [], state="running")
    found = find_garbage(tmp_path)
    with FileLock(folder / ALIVE_LOCK), pytest.raises(ValueError, match="under way"):
        delete_garbage(tmp_path, found)
    with FileLock(tmp_path / "store" / "locks" / f"{output.key}.lock"):
        assert delete_garbage(tmp_path, found) == []
    assert Path(output.folder).is_dir()


def test_command_deletes_only_when_told(tmp_path: Path) -> None:
    output = make(tmp_path, 1)
    command = [sys.executable, "-m", "flows.command", "gc", "--out", str(tmp_path), "--json"]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert [each["path"] for each in listed["garbage"]] == [output.folder]
    assert listed["deleted"] == []
    assert Path(output.folder).is_dir()
    deleted = json.loads(subprocess.run([*command, "--yes"], capture_output=True, check=True).stdout)
    assert deleted["deleted"] == [output.folder]
    assert not Path(output.folder).exists()
