"""Read mesh files in a process of their own, where a crash, a hang or an allocation cannot take the run down.

One server process (`server.py`) per process that reads meshes, started at the first file and ended with its parent.
Threads take turns; a forked child of the parent starts its own server. Needs a system with `fork` (Linux, macOS); only
Linux enforces the limit of memory.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import trimesh

import redream
from redream.meshes.reading.names import NAMING, Named
from redream.meshes.reading.refusal import AssetError, ReaderFailed, one_line, refusal
from redream.meshes.reading.scene_arrays import decode_scene
from redream.settings import MeshLimits

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # for the server to import its libraries on a busy machine
CLOCK_FACTOR = 10  # time on the clock for each second of processor time, on a busy machine or a slow disk
GRACE_SECONDS = 20.0  # after that, which the kernel enforces first
# Signals that end a reader whatever is in its file: kills, for want of memory perhaps, and the clock of a busy machine.
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM)


def read_mesh_apart(path: Path, limits: MeshLimits, up_axis: str, border: str = "") -> trimesh.Scene:
    """Read a mesh file into a plain scene in world axes, or raise `AssetError`."""
    with _lock:
        content = _ask(path, limits, up_axis, border)
    try:
        length = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + length])
        for remark in head["remarks"]:
            logger.warning("%s: %s", one_line(path.name, 200), one_line(str(remark), 300))
        if head["refusal"]:
            raise refusal(path, str(head["refusal"]))
        return decode_scene(content[8 + length :])
    except AssetError:
        raise
    except Exception as error:  # a reader that a file took over may write anything
        raise refusal(path, "makes the reader return something that is not a scene") from error


def names_apart(path: Path, limits: MeshLimits) -> list[Named]:
    """Return what a mesh or material file names; nothing where no reader can tell.

    Raises:
        ReaderFailed: its reader failed twice, and another attempt may tell.
    """
    if path.suffix.lower() not in NAMING:
        return []
    try:
        with _lock:
            try:
                content = _ask(path, limits, "", "")
            except ReaderFailed:
                content = _ask(path, limits, "", "")
        length = int.from_bytes(content[:8], "little")
        return [Named(kind, tuple(map(str, spellings))) for kind, spellings in json.loads(content[8 + length :])]
    except ReaderFailed:
        raise
    except (AssetError, ValueError, TypeError):  # a reader that a file took over may write anything
        return []


def clock_seconds(limits: MeshLimits) -> float:
    """Return how long a reader may take on the clock, whatever it waits for."""
    return float(CLOCK_FACTOR * limits.seconds)


def stop_server() -> None:
    """End the server process, if there is one; the next file starts another."""
    with _lock:
        _discard()


class _Server:
    def __init__(self) -> None:
        self.result = _memory_file()
        source = str(Path(redream.__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([source, *filter(None, sys.path)]),
            "OPENBLAS_NUM_THREADS": "1",  # the server forks, which threads do not survive
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-P", "-m", "redream.meshes.reading.server", str(self.result.fileno())]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self.result.fileno()],
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent; and the whole group can be killed
        )
        if self.answer(START_SECONDS) is None:
            self.kill()
            raise RuntimeError("the process that reads mesh files did not start; its errors stand above")

    def send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        os.ftruncate(self.result.fileno(), 0)
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """Return the server's next line, or None where it ended or takes too long."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(deadline - time.monotonic()):
                    return None
                received = os.read(self.process.stdout.fileno(), 4096)
                if not received:
                    return None
                line += received
        return json.loads(line)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.result.close()


def _memory_file() -> IO[bytes]:
    """Open a file for results that no disk sees, where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("mesh"), "w+b")
    return tempfile.TemporaryFile()


_lock = threading.Lock()
_server: _Server | None = None


def _ask(path: Path, limits: MeshLimits, up_axis: str, border: str) -> bytes:
    """Have one file read and return what its reader wrote."""
    global _server
    request = {"path": os.path.abspath(path), "limits": asdict(limits), "up_axis": up_axis, "border": border}
    if _server is None or _server.process.poll() is not None:
        _discard()
        _server = _Server()
    server = _server
    try:
        server.send(request)
        answer = server.answer(clock_seconds(limits) + GRACE_SECONDS)
    except BaseException as error:  # an interrupt too leaves an answer that nobody awaits
        _discard()
        if isinstance(error, BrokenPipeError):
            raise _failed(path, "could not be read: the process that reads mesh files ended") from error
        raise
    if answer is None:
        _discard()
        raise _failed(path, f"ends or stops the process that reads mesh files, within {clock_seconds(limits):.0f} s")
    if (status := answer["status"]) != 0:
        is_passing = os.WIFSIGNALED(status) and os.WTERMSIG(status) in FROM_OUTSIDE
        raise (_failed if is_passing else refusal)(path, _cause_of_death(status, limits))
    server.result.seek(0)
    return server.result.read()


def _failed(path: Path, cause: str) -> ReaderFailed:
    return ReaderFailed(str(refusal(path, cause)))


def _cause_of_death(status: int, limits: MeshLimits) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGALRM, signal.SIGXCPU):
        return f"takes longer than the allowed {limits.seconds} s to be read"
    memory = f"the allowed {limits.memory_bytes // 2**20:,} MiB of memory"
    how = signal.Signals(number).name if number else f"exit {os.waitstatus_to_exitcode(status)}"
    return f"crashes its reader ({how}): it is damaged, or needs more than {memory}"


def _discard() -> None:
    global _server
    if _server is not None:
        server, _server = _server, None
        server.kill()


def _forget() -> None:
    """In a forked child: the server is the parent's."""
    global _server, _lock
    _server, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
