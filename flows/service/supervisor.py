"""What one person needs on one machine, as `redream serve` starts, watches and stops it.

A Prefect server, an MLflow server, the keeper (`keeper.py`: pools, deployments, crashed runs) and two workers
(`worker.py`: one makes objects, one holds batches that wait for theirs), each in its own process with a log in
`<out>/logs`. One that dies is started again. On the first Ctrl-C or SIGTERM batches end, the other worker lets its runs
finish, then everything stops; on the second its runs are ended at once. What was ended continues after the next start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

import psutil
from filelock import FileLock, Timeout

from flows.processes.environment import SERVING_FILE, prepare_prefect
from flows.service.addresses import (
    BATCH_POOL,
    MLFLOW_USERS_FILE,
    OWN_MLFLOW,
    POOL,
    PREFECT_SECRET,
    Serving,
    ask,
    has_mlflow_secrets,
    keeps_artifacts_in_a_folder,
    num_workers,
    serving_environment,
)
from redream.interpreter import python_command
from redream.messages import last_words
from tasks.machinery.store import write_json
from tasks.tracking.databases import MLFLOW, MLFLOW_USERS, prepare_database
from tasks.tracking.relocation import relocate_artifacts

START_SECONDS = 300  # on a busy machine with a new database; each takes 5 to 30 otherwise
END_SECONDS = 15
MAX_RESTART_DELAY = 30.0
LASTING_SECONDS = 60.0  # a service that lived as long was well
MAX_BATCHES = 8  # at a time; they only wait
TWICE_SECONDS = 0.5  # between two signals, so that they are two


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A process to keep alive; `answers` tells when it is ready."""

    name: str
    command: list[str]
    answers: Callable[[], bool]
    folder: Path | None = None  # to start in, if not here


@dataclass
class Supervisor:
    """The services under way, in the order of their start."""

    environment: dict[str, str]
    logs: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    _started: dict[str, float] = field(default_factory=dict)
    _delays: dict[str, float] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def start(self, service: Service) -> None:
        self.services[service.name] = service
        self._started[service.name] = time.monotonic()
        with open(self.logs / f"{service.name}.log", "ab") as log:
            self.processes[service.name] = _spawn(service, self.environment, log)

    def wait_for(self, service: Service, should_stop: Callable[[], bool]) -> None:
        """Wait until a service answers.

        Raises:
            RuntimeError: it ended instead, or took longer than `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while not service.answers() and not should_stop():
            code = self.processes[service.name].poll()
            if code is not None or time.monotonic() > deadline:
                why = f"ended with code {code}" if code is not None else f"did not answer within {START_SECONDS} s"
                log = self.logs / f"{service.name}.log"
                raise RuntimeError(f"{service.name} {why}; {log} ends with: {_last_line(log)}")
            time.sleep(0.2)

    def revive(self) -> list[str]:
        """Start again what died, at growing intervals; returns the names of what was found dead."""
        now, dead = time.monotonic(), []
        for name, process in self.processes.items():
            if process.poll() is None:
                continue
            if name not in self._due:
                has_lasted = now - self._started[name] > LASTING_SECONDS
                delay = 1.0 if has_lasted else min(2 * self._delays.get(name, 0.5), MAX_RESTART_DELAY)
                self._delays[name], self._due[name] = delay, now + delay
                dead.append(name)
            elif now >= self._due[name]:
                del self._due[name]
                self.start(self.services[name])
        return dead

    def stop(self, name: str) -> None:
        """End a service and everything that it started."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        _kill_group(process)


def serve(asked: Serving, say: Callable[[str], None]) -> None:
    """Start everything, and keep it running until told to stop.

    Raises:
        ValueError: another `redream serve` uses the same folder.
        RuntimeError: a service does not start.
    """
    lock = FileLock(asked.out / ".serve.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another `redream serve` uses {asked.out}; stop it, or choose another --out") from error
    stops: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        stops.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    (asked.out / "logs").mkdir(exist_ok=True)
    supervisor = Supervisor(serving_environment(asked, os.environ), asked.out / "logs")
    try:
        _prepare_databases(asked.out, supervisor.environment)
        _start_all(supervisor, asked, say, lambda: bool(stops))
        while not stops:
            for name in supervisor.revive():
                say(f"{name} died; it is started again, see {supervisor.logs / name}.log")
            time.sleep(0.5)
        _drain(supervisor, stops, say)
    finally:
        (asked.out / SERVING_FILE).unlink(missing_ok=True)
        for name in reversed(list(supervisor.processes)):
            supervisor.stop(name)
        lock.release()
    say("stopped")


def services(asked: Serving, environment: Mapping[str, str]) -> list[Service]:
    """Return what `serve` starts, each with the command that starts it by itself."""
    secret = environment.get(PREFECT_SECRET, "")
    with_users = ["--app-name", "basic-auth"] if has_mlflow_secrets(environment) else []
    return [
        Service(
            name="prefect",
            command=python_command("-m", "prefect", "server", "start"),
            answers=lambda: ask(f"{asked.prefect_api}/health")[0] == 200,
        ),
        Service(
            name="mlflow",
            command=python_command("-m", "mlflow", "server", "--workers", "1", *with_users),
            folder=asked.out,
            answers=lambda: ask(f"{asked.mlflow_url}/health")[0] == 200,
        ),
        Service(
            name="keeper",
            command=python_command("-m", "flows.service.keeper", "--max-resumes", str(asked.max_resumes)),
            answers=lambda: ask(f"{asked.prefect_api}/deployments/name/evaluate/evaluate", secret)[0] == 200,
        ),
        Service(
            name="worker",
            command=python_command("-m", "flows.service.worker", "--pool", POOL, "--limit", str(asked.limit)),
            answers=lambda: num_workers(asked.prefect_api, secret) > 0,
        ),
        Service(
            name="batches",
            command=python_command("-m", "flows.service.worker", "--pool", BATCH_POOL, "--limit", str(MAX_BATCHES)),
            answers=lambda: num_workers(asked.prefect_api, secret, BATCH_POOL) > 0,
        ),
    ]


def _prepare_databases(out: Path, environment: dict[str, str]) -> None:
    """Create the servers' databases where they are files of this folder."""
    prepare_prefect(environment)
    if environment["MLFLOW_BACKEND_STORE_URI"] == OWN_MLFLOW:
        prepare_database(out / "mlflow.db", MLFLOW)
        relocate_artifacts(out / "mlflow.db", out / "mlartifacts")
    if environment.get("MLFLOW_AUTH_CONFIG_PATH") == str(out / ".mlflow-auth.ini"):
        prepare_database(out / MLFLOW_USERS_FILE, MLFLOW_USERS)


def _start_all(supervisor: Supervisor, asked: Serving, say: Callable[[str], None], stopped: Callable[[], bool]) -> None:
    """Start the servers at once, then what needs them, and say where they are."""
    prefect, mlflow, keeper, worker, batches = services(asked, supervisor.environment)
    say("starting Prefect and MLflow …")
    supervisor.start(prefect)
    supervisor.start(mlflow)
    supervisor.wait_for(prefect, stopped)
    supervisor.start(keeper)
    supervisor.wait_for(mlflow, stopped)
    runs = "" if stopped() else _runs_address(asked)  # before any run could track
    supervisor.wait_for(keeper, stopped)
    supervisor.start(worker)
    supervisor.start(batches)
    supervisor.wait_for(worker, stopped)
    supervisor.wait_for(batches, stopped)
    if stopped():
        return
    write_json(
        asked.out / SERVING_FILE,
        {
            "out": str(asked.out.resolve()),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "prefect_api": asked.prefect_api,
            "mlflow_url": asked.mlflow_url,
        },
    )
    pages = asked.prefect_api.removesuffix("/api")
    say(f"Prefect:  {pages}/deployments")
    _, form = ask(f"{asked.prefect_api}/deployments/name/generate/generate", os.environ.get(PREFECT_SECRET, ""))
    if isinstance(form, dict):
        say(f"form:     {pages}/deployments/deployment/{form['id']}/run")
    say(f"MLflow:   {runs}")
    say(f"results:  {asked.out / 'runs'}   logs: {supervisor.logs}")
    say("ready (Ctrl-C stops it)")


def _runs_address(asked: Serving) -> str:
    """Create the project's experiment, and return where MLflow lists its runs."""
    from tasks.tracking.tracker import (  # importing mlflow takes seconds, in which nothing would start
        Tracking,
        runs_address,
    )

    artifacts = str(asked.out / "mlartifacts") if keeps_artifacts_in_a_folder(os.environ) else ""
    tracking = Tracking(uri=asked.mlflow_url, artifacts=artifacts, spool="")
    deadline = time.monotonic() + START_SECONDS
    while True:  # on a busy machine the first questions take longer than its client waits
        try:
            return runs_address(asked.mlflow_url, tracking)
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _drain(supervisor: Supervisor, stops: list[int], say: Callable[[str], None]) -> None:
    """Let the worker's runs finish; a second signal ends them. Batches end at once: no worker here will make more."""
    batches = supervisor.processes.get("batches")
    for _ in range(2):
        if batches is not None and batches.poll() is None:
            batches.send_signal(signal.SIGTERM)
            time.sleep(TWICE_SECONDS)
    worker = supervisor.processes.get("worker")
    if worker is not None and worker.poll() is None:
        say("stopping: runs under way may finish; Ctrl-C again ends them, and they continue after the next start")
        worker.send_signal(signal.SIGTERM)
    num_sent = 1
    while worker is not None and worker.poll() is None:
        if len(stops) > num_sent:
            num_sent = len(stops)
            worker.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    if batches is not None:
        with suppress(subprocess.TimeoutExpired):
            batches.wait(END_SECONDS)


def _spawn(service: Service, environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal reaches only us, and we end things in their order.
    return subprocess.Popen(
        service.command,
        cwd=service.folder,
        env={**environment, **({"PYTHONSAFEPATH": "1"} if service.folder else {})},  # no module of that folder counts
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    """Ask Linux to end this process when `redream serve` is killed."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and of those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    return last_words(log.read_text(errors="replace"))
