"""Laws of the reader's client: whatever a file does to its reader, the caller gets a sentence and goes on."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from redream.meshes.assets import AssetError, load_mesh
from redream.meshes.reading import client
from redream.meshes.reading.refusal import ReaderFailed
from redream.meshes.scenes import scene_parts, scene_vertices
from redream.settings import MeshLimits


@pytest.fixture
def box(tmp_path: Path) -> Path:
    path = tmp_path / "box.glb"
    trimesh.creation.box((1, 2, 3)).export(path)
    return path


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A file within the limits of size that takes many seconds and much memory to read."""
    path = tmp_path / "endless.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n" + "f 1 2 3\n" * 4_900_000)
    return path


def refusal(path: Path, limits: MeshLimits) -> str:
    with pytest.raises(AssetError) as error:
        load_mesh(path, limits)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def server_pid() -> int:
    assert client._server is not None
    return client._server.process.pid


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_file_over_the_time_limit_is_stopped_and_the_next_one_opens(endless: Path, box: Path) -> None:
    load_mesh(box)
    started = time.monotonic()
    assert "takes longer than the allowed 1 s" in refusal(endless, MeshLimits(seconds=1))
    assert time.monotonic() - started < client.clock_seconds(MeshLimits(seconds=1)) + client.GRACE_SECONDS
    assert len(scene_parts(load_mesh(box))) == 1


def test_a_file_over_the_memory_limit_is_refused_and_the_next_one_opens(endless: Path, box: Path) -> None:
    assert "MiB of memory" in refusal(endless, MeshLimits(memory_bytes=64 * 2**20))
    assert len(scene_parts(load_mesh(box))) == 1


@pytest.mark.parametrize(("number", "is_passing"), [(signal.SIGSEGV, False), (signal.SIGKILL, True)])
def test_a_crash_of_the_reader_is_a_refusal_and_the_next_file_opens(
    number: signal.Signals, is_passing: bool, endless: Path, box: Path
) -> None:
    load_mesh(box)
    killer = threading.Thread(target=kill_first_child, args=(server_pid(), number))
    killer.start()
    with pytest.raises(AssetError, match=rf"crashes its reader \({number.name}\)") as error:
        load_mesh(endless)
    assert isinstance(error.value, ReaderFailed) == is_passing
    killer.join()
    assert len(scene_parts(load_mesh(box))) == 1


def test_names_are_asked_for_again_where_the_reader_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.obj"
    path.write_text("mtllib a.mtl\n" + "mtllib b.mtl\n" * 100_000)
    asked, kills = client._ask, [ReaderFailed("killed")]

    def killed_once(*request: Any) -> bytes:
        if kills:
            raise kills.pop()
        return asked(*request)

    monkeypatch.setattr(client, "_ask", killed_once)
    assert [named.spellings for named in client.names_apart(path, MeshLimits(seconds=5))] == [("a.mtl",), ("b.mtl",)]
    kills.extend([ReaderFailed("killed")] * 2)
    with pytest.raises(ReaderFailed):
        client.names_apart(path, MeshLimits())


def kill_first_child(pid: int, number: int) -> None:
    while not (found := children(pid)):
        time.sleep(0.01)
    os.kill(found[0], number)


def test_the_end_of_the_server_is_survived(box: Path) -> None:
    load_mesh(box)
    first = server_pid()
    os.kill(first, signal.SIGKILL)
    until(lambda: client._server is None or client._server.process.poll() is not None)
    assert len(scene_parts(load_mesh(box))) == 1
    assert server_pid() != first


def test_files_share_one_server_and_leave_no_children(box: Path) -> None:
    load_mesh(box)
    first = server_pid()
    load_mesh(box)
    assert server_pid() == first
    assert children(first) == []


def test_threads_get_their_own_files(tmp_path: Path) -> None:
    sizes = [1.0, 2.0, 3.0, 4.0]
    extents: dict[float, float] = {}

    def load(size: float) -> None:
        path = tmp_path / f"{size}.glb"
        trimesh.creation.box((size, size, size)).export(path)
        for _ in range(3):
            extents[size] = float(np.ptp(scene_vertices(load_mesh(path)), axis=0).max())

    threads = [threading.Thread(target=load, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert extents == pytest.approx({size: size for size in sizes})


def test_a_forked_process_starts_its_own_server(box: Path) -> None:
    load_mesh(box)
    first = server_pid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            load_mesh(box)
            status = 0 if server_pid() != first else 2
            client.stop_server()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(scene_parts(load_mesh(box))) == 1
    assert server_pid() == first


def test_stopping_leaves_no_process(box: Path) -> None:
    load_mesh(box)
    pid = server_pid()
    client.stop_server()
    assert not Path(f"/proc/{pid}").exists()


def test_relative_paths_are_those_of_the_caller(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_mesh(box)  # the server starts before the folder changes
    monkeypatch.chdir(box.parent)
    assert len(scene_parts(load_mesh(box.name))) == 1


def test_names_cannot_forge_lines_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "flat\nERROR: all is lost.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with caplog.at_level(logging.WARNING):
        load_mesh(path)
    assert "is flat" in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)
    path.write_text("")
    with pytest.raises(AssetError) as error:
        load_mesh(path)
    assert "\n" not in str(error.value)


def until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        time.sleep(0.01)
