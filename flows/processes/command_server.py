"""Prefect's server for the length of one command: started first of all, ended with the command however that ends.

A command without an API URL could leave this to Prefect, which imports its whole server into the command, starts it
only then, and leaves it alive where the command is killed. This one starts while the command imports what it needs.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException

from flows.processes.child_processes import STOPS_WITH_PARENT, stop_with_parent
from redream.interpreter import import_environment, python_command
from redream.messages import last_words

START_SECONDS = 600.0  # it takes 7 on two free cores
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to this machine


def start_own_server() -> Callable[[], None]:
    """Start a server on a free port of this machine, set `PREFECT_API_URL`, and return what waits until it answers.

    Its database lies in `PREFECT_HOME`. What waits raises a `RuntimeError` with the server's last words if it dies.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server writes to it
    process = subprocess.Popen(
        python_command("-m", "flows.processes.command_server", str(port)),
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=subprocess.STDOUT,
        env={**import_environment(os.environ), STOPS_WITH_PARENT: "1"},
        start_new_session=True,  # Ctrl-C must leave it alive until the flow has recorded how it ended
    )
    atexit.register(_stop, process)
    address = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_URL"] = address
    os.environ["PREFECT_UI_URL"] = "none"  # it shows no pages, so nothing links to them

    def wait() -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                said.seek(0)
                last = last_words(said.read().decode(errors="replace"))
                raise RuntimeError(f"Prefect's server did not start: {last}")
            time.sleep(POLL_SECONDS)

    return wait


def collect_rarely() -> None:
    """Let Python look for unreachable cycles less often than after each 700 new objects, as long as the process lives.

    Imports make a million objects that stay, which it would look through again and again: 2 of a command's 25 seconds.
    """
    gc.set_threshold(50_000, 20, 20)


def _answers(address: str) -> bool:
    try:
        with DIRECTLY.open(f"{address}/health", timeout=5.0) as answer:
            return answer.status == 200
    except (OSError, HTTPException):  # not yet, or not well
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def main() -> None:
    """Serve on the port that is the only argument, until standard input is closed."""
    collect_rarely()
    stop_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)  # without pages, without what schedules deployments
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
