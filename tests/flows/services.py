"""`redream serve` as a process, for tests: start it, ask it, and see that nothing stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows.service.addresses import BATCH_POOL, POOL, ask

START_SECONDS = 400  # beside other work on few cores; 25 to 60 otherwise
OWN_SERVERS = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "PREFECT_RESULTS_LOCAL_STORAGE_PATH")


@dataclass
class Served:
    """A `redream serve` under way."""

    out: Path
    port: int
    mlflow_port: int
    process: subprocess.Popen[str]
    environment: dict[str, str]
    said: Path
    secret: str = ""  # NAME:PASSWORD of Prefect
    seen: set[psutil.Process] = field(default_factory=set)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    def family(self) -> set[psutil.Process]:
        """Return every process that it has started and that is alive."""
        if self.process.poll() is None:
            self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        return {process for process in self.seen if process.is_running() and process.status() != psutil.STATUS_ZOMBIE}

    def service(self, name: str) -> psutil.Process:
        """Return the process of a service, by what it runs."""
        words = {
            "worker": POOL,
            "batches": BATCH_POOL,
            "keeper": "flows.service.keeper",
            "prefect": "prefect",
            "mlflow": "mlflow",
        }
        for process in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it has just ended
                if words[name] in process.cmdline():
                    return process
        raise LookupError(name)

    def create_run(self, deployment: str, parameters: dict[str, Any]) -> tuple[int, Any]:
        """Ask for a run, as Prefect's own client does: a busy database answers with 503, and is asked again."""
        _, found = ask(f"{self.api}/deployments/name/{deployment}", self.secret)
        address = f"{self.api}/deployments/{found['id']}/create_flow_run"
        asked = {"parameters": parameters, "idempotency_key": uuid.uuid4().hex}
        deadline = time.monotonic() + 60
        while True:
            status, answer = ask(address, self.secret, content=asked)
            if status not in (0, 503) or time.monotonic() > deadline:
                return status, answer
            time.sleep(1)

    def run(self, run_id: str) -> dict[str, Any]:
        return ask(f"{self.api}/flow_runs/{run_id}", self.secret)[1]

    def runs(self) -> int:
        return ask(f"{self.api}/flow_runs/count", self.secret, content={})[1]

    def states(self, run_id: str) -> list[dict[str, Any]]:
        return ask(f"{self.api}/flow_run_states/?flow_run_id={run_id}", self.secret)[1]

    def state_names(self, run_id: str) -> list[str]:
        return [state["name"] for state in self.states(run_id)]

    def wait_for_state(self, run_id: str, names: str | tuple[str, ...], seconds: float) -> dict[str, Any]:
        wanted = (names,) if isinstance(names, str) else names
        wait_until(lambda: (self.run(run_id).get("state") or {}).get("name") in wanted, seconds)
        return self.run(run_id)["state"]

    def stop(self, seconds: float = 120) -> int:
        self.family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def start(out: Path, *options: str, environment: dict[str, str] | None = None) -> Served:
    """Start `redream serve` on free ports and wait until it is ready."""
    port, mlflow_port = free_port(), free_port()
    inherited = {name: value for name, value in os.environ.items() if name not in OWN_SERVERS}
    api = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "flows.command", "serve", "--out", str(out), "--port", str(port)]
    said = out.with_name(f"{out.name}.said")
    with open(said, "w") as file:
        process = subprocess.Popen(
            [*command, "--mlflow-port", str(mlflow_port), *options],
            env={**inherited, **(environment or {})},
            stdout=file,
            stderr=file,
            text=True,
        )
    served = Served(
        out=out,
        port=port,
        mlflow_port=mlflow_port,
        process=process,
        environment={**inherited, **(environment or {}), "PREFECT_API_URL": api, "PREFECT_HOME": str(out / ".client")},
        said=said,
    )
    wait_until(lambda: "ready" in said.read_text() or process.poll() is not None, START_SECONDS)
    assert process.poll() is None, said.read_text()
    return served


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
