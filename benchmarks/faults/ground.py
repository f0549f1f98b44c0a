"""Where faults happen: servers, `redream` commands, and the looks at what they left.

Every process carries the name of its fault in `REDREAM_FAULT`, so that orphans can be found, and every fault has an
output folder of its own, filled with the outputs of the undisturbed run that come before the stage in question.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from flows.processes.environment import read_serving
from flows.requests.plan import dependents
from flows.service.addresses import ask
from tasks.machinery.store import MANIFEST, file_digest
from tasks.runs.records import finished_stage, list_runs, read_run

PROMPT = "a turquoise robot"
SETTINGS = {"distill.num_steps": 30}
MARK = "REDREAM_FAULT"
PATIENCE = 600.0  # seconds, for what takes less than one minute on an idle machine
ORPHAN_SECONDS = 30.0
FOREIGN = ("PREFECT_", "MLFLOW_", "REDREAM_")


@dataclass
class Ground:
    """A folder for everything, and servers that all faults share."""

    work: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @cached_property
    def served(self) -> Served:
        """Start `redream serve` when the first fault needs it."""
        return Served(self, self.work / "served")

    @cached_property
    def undisturbed(self) -> dict[str, Any]:
        """Make the object once without any fault; returns the run's record."""
        return self._undisturbed(self.work / "undisturbed")

    @cached_property
    def undisturbed_with_asset(self) -> dict[str, Any]:
        """Make it from a mesh that is given instead of found."""
        return self._undisturbed(self.work / "undisturbed with asset", *self.asset)

    @property
    def asset(self) -> list[str]:
        """Return the options that give the first mesh that the undisturbed run found."""
        found = finished_stage(self.work / "undisturbed", self.undisturbed, "retrieve")
        return ["--asset", str(sorted(Path(found.folder).rglob("*.glb"))[0])]

    def _undisturbed(self, out: Path, *options: str) -> dict[str, Any]:
        finished = [record for record in list_runs(out) if record["state"] == "finished"] if out.is_dir() else []
        if not finished:
            ended = end(self.start("undisturbed", asking(out, *options)))
            if ended.code != 0:
                raise RuntimeError(f"the undisturbed run failed: {ended.said}")
            finished = list_runs(out)
        return finished[-1]

    def start(
        self, fault: str, command: Sequence[str], death: Sequence[str] = (), servers: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `redream COMMAND`; it kills itself where `death` is given (benchmarks/faults/killed.py)."""
        module = ["benchmarks.faults.killed", *death] if death else ["flows.command"]
        environment = {**own_environment(fault), **(self.served.addresses if servers is None else servers)}
        process = subprocess.Popen(
            [sys.executable, "-m", *module, *command],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def folder(self, fault: str) -> Path:
        """Return a new folder for a fault."""
        folder = self.work / fault
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def fill(self, out: Path, before: str, source: dict[str, Any] | None = None) -> None:
        """Copy the undisturbed outputs of all stages but one and those that depend on it."""
        record = source or self.undisturbed
        redone = dependents(before)
        for stage, entry in record["stages"].items():
            if stage not in redone:
                shutil.copytree(Path(record["folder"]).parents[1] / entry["folder"], out / entry["folder"])

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if "served" in self.__dict__:
            self.served.stop()


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended: its exit code and what it printed."""

    code: int
    output: str
    said: str

    @property
    def last_line(self) -> str:
        return (self.said.strip().splitlines() or ["(nothing)"])[-1]


class Served:
    """`redream serve`, with one attempt after a crash."""

    def __init__(self, ground: Ground, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        self._ground, self._out = ground, out
        port, mlflow_port = free_port(), free_port()
        self._command = ["serve", "--limit", "1", "--max-resumes", "1", "--out", str(out)]
        self._command += ["--port", str(port), "--mlflow-port", str(mlflow_port)]
        self.addresses = {
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
        }
        self.start()

    def start(self) -> None:
        """Start it, for the first time or again, and wait until it is ready."""
        self.process = self._ground.start("servers", self._command, servers={})
        wait_until(lambda: read_serving(self._out) is not None or self.process.poll() is not None)
        if self.process.poll() is not None:
            raise RuntimeError(f"redream serve ended: {end(self.process).said}")

    def kill(self) -> None:
        """Kill it with everything that it has started, runs as well, as the end of the machine does."""
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for signal_number in (signal.SIGSTOP, signal.SIGKILL):  # so that none hears of another's death
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal_number)
        self.process.wait()

    def service(self, word: str) -> psutil.Process:
        """Return the process with a word in its command, such as the name of a worker's pool."""
        for process in psutil.Process(self.process.pid).children():
            if word in process.cmdline():
                return process
        raise LookupError(word)

    def create_run(self, parameters: dict[str, Any]) -> str:
        api = self.addresses["PREFECT_API_URL"]
        _, found = ask(f"{api}/deployments/name/generate/generate")
        asked = {"parameters": parameters, "idempotency_key": parameters["out"]}
        for _ in range(10):  # a busy database answers with 503, after which Prefect's own client asks again as well
            status, run = ask(f"{api}/deployments/{found['id']}/create_flow_run", content=asked)
            if status in (200, 201):
                return run["id"]
            time.sleep(2)
        raise RuntimeError(f"Prefect does not take the run: {status} {run}")

    def states(self, run_id: str) -> list[dict[str, Any]]:
        """Return the history of a flow run; nothing while the server is away."""
        found = ask(f"{self.addresses['PREFECT_API_URL']}/flow_run_states/?flow_run_id={run_id}")[1]
        return found if isinstance(found, list) else []

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)


def asking(out: Path, *options: str) -> list[str]:
    """Return the command that makes the object."""
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    return ["generate", PROMPT, "--preset", "smoke", "--out", str(out), "--json", *settings, *options]


def repeating(out: Path, run_id: str) -> list[str]:
    return ["rerun", run_id, "--out", str(out), "--json"]


def end(process: subprocess.Popen[bytes]) -> Ended:
    output, said = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, output.decode(errors="replace"), said.decode(errors="replace"))


def own_environment(fault: str) -> dict[str, str]:
    """Return this environment without servers of the user's, with the fault's name."""
    return {**{name: text for name, text in os.environ.items() if not name.startswith(FOREIGN)}, MARK: fault}


def weights(out: Path, run_id: str) -> list[str]:
    """Return the hashes of a run's distilled particles."""
    folder = Path(finished_stage(out, read_run(out, run_id), "distill").folder)
    return [file_digest(path) for path in sorted(folder.glob("particle_*.safetensors"))]


def finished_stages(record: dict[str, Any]) -> set[str]:
    return {stage for stage, entry in record["stages"].items() if entry["state"] in ("computed", "cached")}


def half_written(out: Path) -> list[str]:
    """Return what is not whole: outputs that are not what their manifests say, byte by byte, and delivered files."""
    return [*_half_stored(out), *_half_delivered(out)]


def _half_delivered(out: Path) -> list[str]:
    """Return the files in the runs' folders that are neither pages with an end nor copies of a stage's files."""
    stored = {file_digest(path) for path in (out / "store").glob("*/??/*/*") if path.is_file()}
    wrong = []
    for path in (out / "runs").glob("*/*"):
        if path.name.startswith(".") or path.suffix not in (".html", ".png", ".mp4", ".glb"):
            continue
        is_whole = (
            path.read_text().rstrip().endswith("</html>") if path.suffix == ".html" else file_digest(path) in stored
        )
        wrong += [] if is_whole else [path.name]
    return wrong


def _half_stored(out: Path) -> list[str]:
    wrong = []
    for manifest in (out / "store").glob(f"*/??/*/{MANIFEST}"):
        files = json.loads(manifest.read_text())["files"]
        there = {path.relative_to(manifest.parent).as_posix() for path in manifest.parent.rglob("*") if path.is_file()}
        hashes = {name: hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest() for name in files}
        if there != {*files, MANIFEST} or any(hashes[name] != entry["sha256"] for name, entry in files.items()):
            wrong.append(manifest.parent.parent.parent.name)
    return wrong


def orphans(is_one: Callable[[dict[str, str]], bool]) -> list[psutil.Process]:
    """Return the processes, by their environment, that are still there after a while."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (found := [p for p in psutil.process_iter() if _is(p, is_one)]) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _is(process: psutil.Process, is_one: Callable[[dict[str, str]], bool]) -> bool:
    with suppress(psutil.Error):
        return process.pid != os.getpid() and process.status() != "zombie" and is_one(process.environ())
    return False


def wait_until(is_so: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
