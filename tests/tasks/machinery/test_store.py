"""Laws of the store: what a key depends on, and that a folder is complete or absent, whatever was killed when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redream.presets import smoke
from tasks.machinery.store import MANIFEST, Output, StageKey, Store, read_output, stage_key, write_json
from tests.disk import watched_disk

RENDER = {
    "stage": "render",
    "stage_version": 1,
    "settings": {"render": smoke().render, "seed": 3},
    "inputs": {"a": "1"},
}


def key_of(**changes: Any) -> StageKey:
    return stage_key(**{**RENDER, **changes})


def make(store: Store, key: StageKey, content: str = "content", result: dict[str, Any] | None = None) -> Output:
    folder, _ = store.begin(key)
    (folder / "sub").mkdir()
    (folder / "sub" / "file.txt").write_text(content)
    return store.publish(key, result or {}, {"figure": 1.0}, 0.5, "mlflow", {"run_id": "r"})


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "align"},
        {"stage_version": 2},
        {"settings": {"render": replace(smoke().render, num_views=11), "seed": 3}},
        {"settings": {"render": smoke().render, "seed": 4}},
        {"inputs": {"a": "2"}},
        {"inputs": {"b": "1"}},
        {"inputs": {"a": "1", "b": "1"}},
    ],
)
def test_key_changes_with_everything_that_can_change_a_result(changes: dict[str, Any]) -> None:
    assert key_of(**changes).digest != key_of().digest


def test_key_is_the_same_in_another_order_and_another_process() -> None:
    one = stage_key("s", 1, {"a": 1, "b": (1.5, "x")}, {"p": "1", "q": "2"})
    other = stage_key("s", 1, {"b": [1.5, "x"], "a": 1}, {"q": "2", "p": "1"})
    call = "stage_key('s',1,{'a':1,'b':(1.5,'x')},{'p':'1','q':'2'})"
    code = f"from tasks.machinery.store import stage_key; print({call}.digest)"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert one.digest == other.digest == elsewhere


def test_key_refuses_paths_and_numbers_that_json_cannot_hold() -> None:
    with pytest.raises(TypeError):
        stage_key("s", 1, {"folder": Path("x")}, {})
    with pytest.raises(ValueError, match="JSON compliant"):
        stage_key("s", 1, {"value": float("nan")}, {})


def test_published_output_is_found_with_what_was_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make(store, key_of(), result={"answer": 42})
    found = store.find(key_of())
    assert found == made
    assert found is not None
    assert found.result == {"answer": 42}
    assert found.path("sub", "file.txt").read_text() == "content"
    assert not (tmp_path / "partial" / "render" / key_of().digest).exists()


def test_digest_follows_the_content_and_not_the_place_or_the_time(tmp_path: Path) -> None:
    here = make(Store(tmp_path / "here"), key_of())
    there = make(Store(tmp_path / "there"), key_of())
    other = make(Store(tmp_path / "other"), key_of(), content="other")
    other_result = make(Store(tmp_path / "result"), key_of(), result={"x": 1})
    assert here.digest == there.digest
    assert len({here.digest, other.digest, other_result.digest}) == 3


@pytest.mark.parametrize("damage", ["truncate", "delete", "no manifest", "half a manifest"])
def test_damaged_output_is_not_complete_and_is_made_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    folder = Path(make(store, key_of()).folder)
    if damage == "truncate":
        os.truncate(folder / "sub" / "file.txt", 3)
    elif damage == "delete":
        (folder / "sub" / "file.txt").unlink()
    elif damage == "no manifest":
        (folder / MANIFEST).unlink()
    else:
        os.truncate(folder / MANIFEST, 50)
    assert store.find(key_of()) is None
    make(store, key_of())
    assert store.find(key_of()) is not None


def test_kill_between_write_and_rename_leaves_nothing_complete(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
import tasks.machinery.store as store_module
from tasks.machinery.store import Store, stage_key
os.rename = lambda *_: os.kill(os.getpid(), 9)
store, key = Store(Path({str(tmp_path)!r})), stage_key("s", 1, {{}}, {{}})
folder, checkpoint = store.begin(key)
(folder / "file").write_text("content")
(checkpoint / "step").write_text("5")
store.publish(key, {{}}, {{}}, 0.0, "", {{}})
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == -9
    store, key = Store(tmp_path), stage_key("s", 1, {}, {})
    assert store.find(key) is None
    folder, checkpoint = store.begin(key)
    assert list(folder.iterdir()) == []
    assert (checkpoint / "step").read_text() == "5"


def test_two_threads_of_one_key_compute_it_once(tmp_path: Path) -> None:
    store, computed = Store(tmp_path), []

    def get() -> None:
        with store.lock(key_of()):
            if store.find(key_of()) is None:
                computed.append(threading.get_ident())
                time.sleep(0.3)
                make(store, key_of())

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from tasks.machinery.store import Store, stage_key
with Store(Path({str(tmp_path)!r})).lock(stage_key("s", 1, {{}}, {{}})):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    waits = []
    with Store(tmp_path).lock(stage_key("s", 1, {}, {}), on_wait=lambda: waits.append(1)):
        pass
    assert not waits


def test_waiting_for_a_lock_can_be_given_up(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def give_up() -> None:
        raise KeyboardInterrupt

    with store.lock(key_of()), pytest.raises(KeyboardInterrupt), store.lock(key_of(), on_wait=give_up):
        pass


def test_moved_store_still_has_its_outputs(tmp_path: Path) -> None:
    make(Store(tmp_path / "before"), key_of())
    (tmp_path / "before").rename(tmp_path / "after it moved")
    found = Store(tmp_path / "after it moved").find(key_of())
    assert found is not None
    assert found.path("sub", "file.txt").is_file()


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_folder_without_manifest_is_no_output(tmp_path: Path) -> None:
    assert read_output(tmp_path) is None
    assert read_output(tmp_path / "absent") is None


def test_an_output_is_on_the_disk_before_its_rename_and_the_folder_after_it(tmp_path: Path) -> None:
    with watched_disk() as disk:
        output = make(Store(tmp_path), key_of())
    assert disk.is_safe() and disk.renamed[-1] == Path(output.folder)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_record_whose_write_fails_half_way_stays_the_old_one(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched_disk() as disk:
        write_json(tmp_path / "run.json", {"state": "old"})
    assert disk.is_safe()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="no space"):
        write_json(tmp_path / "run.json", {"state": "new"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"state": "old"}
