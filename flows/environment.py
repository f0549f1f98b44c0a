"""The one place that sets environment variables for Prefect, MLflow and the libraries, before any of them is imported.

What the user has set stays. Where `redream serve` runs for the same folder, commands use its servers. Else, without an
API URL of the user's, Prefect starts its own server for the length of a command, with its database in the output
folder, so that nothing outside is touched. No library phones home.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

SERVING_FILE = ".serving.json"  # written by `redream serve` while it runs
CLOCK_SECONDS = 2.0  # by which the system's word on when a process started may change
QUIET = {
    "DO_NOT_TRACK": "true",  # MLflow takes only this spelling
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Its log lines would tear the progress bars; errors reach the user through the command.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "TOKENIZERS_PARALLELISM": "false",  # warns about every later fork otherwise
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; flows/keeper.py takes four missing ones for a death
}
LOCAL_SERVER = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",  # the default of 20 is too short on a busy machine
    "PREFECT_SERVER_API_BLOCKS_REGISTER_ON_START": "false",  # no stage uses blocks
}
DEPLOYED = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "redream",  # progress becomes lines of the run's log
    "PREFECT_WORKER_QUERY_SECONDS": "5",
}
SERVER = {
    # In memory, the default, a slot whose holder died together with the server never comes back.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # by default it starts 15 processes and takes 3 GiB
}


def prepare_environment(out: Path) -> None:
    for name, value in (QUIET | LOCAL_SERVER).items():
        os.environ.setdefault(name, value)
    if (serving := read_serving(out)) is not None:
        os.environ.setdefault("PREFECT_API_URL", serving["prefect_api"])
        os.environ.setdefault("MLFLOW_TRACKING_URI", serving["mlflow_url"])
    if not {"PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE"} & set(os.environ):
        os.environ["PREFECT_HOME"] = str(out / ".prefect")


def prepare_worker(out: Path) -> None:
    """Set what must reach the runs of a worker: where results go, and how often a run says that it is alive."""
    for name, value in (QUIET | DEPLOYED).items():
        os.environ.setdefault(name, value)
    os.environ["REDREAM_OUT"] = str(out)


def read_serving(out: Path) -> dict[str, str] | None:
    """Return where the servers are that `redream serve` runs for this folder, or nothing where none does."""
    try:
        serving = json.loads((out / SERVING_FILE).read_text(encoding="utf-8"))
        later = psutil.Process(serving["pid"]).create_time() - serving["started"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, psutil.Error):
        return None  # absent, damaged, or left behind by one that was killed
    if abs(later) > CLOCK_SECONDS:  # its number is another process's by now
        return None
    return {name: str(serving[name]) for name in ("prefect_api", "mlflow_url")}


def _end_servers_with_this_process() -> None:
    """Leave a watcher that stops Prefect's own server even where this process is killed: its pipe closes then."""
    from prefect.server.api.server import SubprocessASGIServer

    for server in SubprocessASGIServer._instances.values():
        if server.server_process is not None and Path("/proc/self/cmdline").exists():
            script = 'read line; grep -q uvicorn "/proc/$0/cmdline" && kill "$0"'
            subprocess.Popen(
                ["sh", "-c", script, str(server.server_process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )


@contextmanager
def starting_services(out: Path) -> Iterator[None]:
    """Start Prefect's own server, if one is needed, while the body imports a flow and MLflow opens its database."""
    from prefect.client.orchestration import get_client

    failures: list[BaseException] = []

    def start() -> None:
        if hasattr(signal, "pthread_sigmask"):
            # The server inherits the mask: Ctrl-C, which a terminal sends to every process of a command, must leave it
            # alive until the flow has recorded how it ended.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            get_client(sync_client=True)
            _end_servers_with_this_process()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=start, name="prefect-server", daemon=True)
    thread.start()
    yield
    from tasks.tracking import default_tracking_uri, open_tracking

    open_tracking(default_tracking_uri(out), out)
    thread.join()
    if failures:
        raise failures[0]
