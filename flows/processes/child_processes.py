"""Commands as processes of their own, some at a time: whatever happens to one, the others go on.

Each leads a process group, so that it can be stopped with whatever it started. Its standard input is a pipe that this
process holds open: a child that was told so (`STOPS_WITH_PARENT`) stops when the pipe closes, that is, when its parent
has died in whatever way.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from redream.interpreter import import_environment

STOPS_WITH_PARENT = "REDREAM_STOPS_WITH_PARENT"
GRACE_SECONDS = 60.0  # from the request to stop, in which a training saves its checkpoint, to the kill
LAST_BYTES = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A command, and where its output (`<name>.json`) and its messages (`<name>.log`) go."""

    name: str
    command: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a job ended: the exit code, negative where a signal killed it, and what it wrote."""

    name: str
    code: int
    output: str
    messages: str

    @property
    def reason(self) -> str:
        """Say in one line why it failed; empty where it did not."""
        if self.code == 0:
            return ""
        if self.code == -signal.SIGKILL:
            return "killed (SIGKILL), by the system perhaps, for want of memory"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        lines = [line for line in self.messages.splitlines() if line.strip()]
        return lines[-1].removeprefix("redream: ") if lines else f"exit code {self.code}"


class Children:
    """The processes of one batch."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {**import_environment(environment), STOPS_WITH_PARENT: "1"}
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopping = False

    def run(self, jobs: Sequence[Job], num_workers: int) -> Generator[Ended, None, None]:
        """Run jobs, `num_workers` at a time, and yield each as it ends; closing the iterator stops the rest."""
        with ThreadPoolExecutor(num_workers, thread_name_prefix="child") as pool:
            try:
                futures = [pool.submit(self._run, job) for job in jobs]
                for future in as_completed(futures):
                    yield future.result()
            finally:
                self.stop()

    def stop(self) -> None:
        """Ask all to stop, and kill those that have not after a while."""
        with self._lock:
            self._is_stopping = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)  # also what it may have left behind

    def _run(self, job: Job) -> Ended:
        output, messages = self._folder / f"{job.name}.json", self._folder / f"{job.name}.log"
        with self._lock:
            if self._is_stopping:
                return Ended(name=job.name, code=-signal.SIGTERM, output="", messages="")
            with open(output, "wb") as to_output, open(messages, "wb") as to_messages:
                process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.PIPE,
                    stdout=to_output,
                    stderr=to_messages,
                    env=self._environment,
                    start_new_session=True,
                )
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        assert process.stdin is not None
        process.stdin.close()
        return Ended(name=job.name, code=code, output=output.read_text(errors="replace"), messages=_end_of(messages))


def stop_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` when the parent dies, if this process was started to end with it."""
    if not os.environ.pop(STOPS_WITH_PARENT, ""):
        return

    def watch() -> None:
        while os.read(0, 1024):
            pass
        stop()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _signal(process: subprocess.Popen[bytes], signal_number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal_number)


def _end_of(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_BYTES))
        return file.read().decode(errors="replace")
