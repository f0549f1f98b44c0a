"""The process that reads mesh files: one line of JSON in, a child of its own for each file, one line of JSON out.

`python -m redream.meshes.reading.server RESULT_FD`. The server imports the readers once (about a second) and never
touches a file. Each child is forked from it (milliseconds), reads one file under limits that the kernel enforces,
writes the scene or the refusal to RESULT_FD, and is gone; whatever a file does to it, the next one starts clean.
"""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from redream.meshes.reading.client import clock_seconds
from redream.meshes.reading.folder import read_whole_file
from redream.meshes.reading.names import names_in
from redream.meshes.reading.reader import read_mesh
from redream.meshes.reading.refusal import Refused
from redream.meshes.reading.scene_arrays import encode_scene
from redream.settings import MeshLimits

REFUSAL, REMARKS = "refusal", "remarks"


class _Remarks(logging.Handler):
    """Keeps what the readers log, for the log of the process that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.lines:
            self.lines.append(record.getMessage())


def serve(result_fd: int) -> None:
    """Answer requests from standard input until it ends."""
    _warm_up()
    gc.freeze()  # what is here now stays, so that children need not touch, and copy, its pages
    _say({"is_ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _read_one(request, result_fd)
        _, status = os.waitpid(child, 0)
        _say({"status": status})


def _read_one(request: dict[str, Any], result_fd: int) -> None:
    """Read one file and leave the process, whatever happens."""
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)  # a crashing library's last words would break the protocol
        limits = MeshLimits(**request["limits"])
        restrict(limits)
        content = _result(request, limits)
        os.ftruncate(result_fd, 0)
        with open(result_fd, "wb", closefd=False) as file:
            file.seek(0)
            file.write(content)
        os._exit(0)
    finally:
        os._exit(1)


def restrict(limits: MeshLimits) -> None:
    """Let the kernel end this process when its time is over, and refuse it memory above its share."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, clock_seconds(limits))
    memory = limits.memory_bytes + _address_space()
    _lower(resource.RLIMIT_AS, memory)
    _lower(resource.RLIMIT_FSIZE, limits.memory_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    used = int(time.process_time())  # nothing so far, for a child forked for this file
    resource.setrlimit(resource.RLIMIT_CPU, (used + limits.seconds, used + limits.seconds + 1))  # SIGXCPU, SIGKILL


def _lower(kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (value, value))


def _address_space() -> int:
    """Return the bytes that this process has reserved so far, 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _result(request: dict[str, Any], limits: MeshLimits) -> bytes:
    """Return a scene, or without `up_axis` the names in a file."""
    path = Path(request["path"])
    border = Path(request["border"]) if request["border"] else None
    remarks = _Remarks()
    logging.getLogger("redream.meshes.reading").addHandler(remarks)
    content, cause = b"", ""
    try:
        if request["up_axis"]:
            content = encode_scene(read_mesh(path, limits, request["up_axis"], border))
        else:
            names = names_in(read_whole_file(path, limits), path.suffix.lower())
            content = json.dumps([[named.kind, named.spellings] for named in names]).encode()
    except Refused as error:
        cause = str(error)
    except MemoryError:
        cause = f"needs more than the allowed {limits.memory_bytes // 2**20:,} MiB of memory to be read"
    head = json.dumps({REFUSAL: cause, REMARKS: remarks.lines[:20]}).encode()
    return len(head).to_bytes(8, "little") + head + content


def _warm_up() -> None:
    """Import what trimesh, Pillow and the decoders load at first use, on a file of our own."""
    import DracoPy  # noqa: F401
    import trimesh
    from PIL import Image

    Image.init()
    triangle = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    scene = trimesh.load_scene(io.BytesIO(triangle), file_type="obj")
    encode_scene(scene)
    save({"warm": np.zeros(1)})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
