"""Flows that do nothing but what a test needs to see of a worker."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from prefect import flow


@flow(name="dying")
def dying(folder: str) -> None:
    """Leave a trace and die like a process that ran out of memory."""
    with open(Path(folder) / "attempts", "a") as file:
        file.write("an attempt\n")
    os.kill(os.getpid(), signal.SIGKILL)


@flow(name="sleeping")
def sleeping(folder: str, seconds: float) -> None:
    (Path(folder) / "started").touch()
    time.sleep(seconds)
    (Path(folder) / "finished").touch()
