"""What commands run within: Prefect and MLflow for their length, and standard output kept for results."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from flows.processes.child_processes import stop_with_parent
from flows.processes.environment import prepare_environment, starting_services
from flows.service.addresses import TAG
from tasks.machinery.devices import DEVICE, checked_device, require_device

STOPPING = b"\nstopping; what is finished is kept. Once more ends it at once\n"


@contextmanager
def results_only() -> Iterator[None]:
    """Keep standard output for results while a flow runs, and mark its runs as ours for the keeper's rule."""
    from prefect import tags

    with redirect_stdout(sys.stderr), tags(TAG):
        yield


@contextmanager
def services(out: Path) -> Iterator[None]:
    """Get Prefect and MLflow ready while the body imports a flow."""
    from tasks.machinery.progress import Stopped, stop_requested, waiting

    def stop(signal_number: int, frame: object) -> None:
        stop_requested.set()  # for the stages in other threads
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)  # a second one does not wait for them
        with suppress(OSError):
            os.write(2, STOPPING)  # at once, whatever else is writing
        # Typer would swallow KeyboardInterrupt, with what a run has to say of how it goes on.
        raise Stopped("Ctrl-C") if signal_number == signal.SIGINT else SystemExit(143)

    for signal_number in (signal.SIGINT, signal.SIGTERM):  # by default SIGTERM would leave Prefect's server behind
        signal.signal(signal_number, stop)
    stop_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    prepare_environment(out)
    with waiting("starting Prefect and MLflow"), starting_services(out):
        yield


def use_device(device: str, needed: float) -> None:
    """Let this command, and what it starts, compute on a device; `needed` is the memory of a GPU in GiB.

    Raises:
        ValueError: there is no such device, or none that will do.
    """
    if device:
        os.environ[DEVICE] = checked_device(device)
    require_device(needed)


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=1))
