"""What a command spends before its first stage: `python -m benchmarks.first_start`, on an otherwise idle machine.

Processor time of the command and of all that it started, in a new folder and again in the same one, whose databases are
there then. The seconds end when `run.json` names a stage.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from redream.interpreter import import_environment, python_command

FOREIGN = ("PREFECT_", "MLFLOW_", "REDREAM_")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_start")
    parser.add_argument("--starts", type=int, default=3, help="new folders, each started in twice")
    parser.add_argument("--uncompiled", action="store_true", help="with no compiled modules, and writing none")
    asked = parser.parse_args()
    for number in range(asked.starts):
        with tempfile.TemporaryDirectory() as folder:
            for which in ("new folder", "same folder"):
                wall, cpu = start(Path(folder, "out"), asked.uncompiled)
                shares = ", ".join(f"{name} {seconds:.1f}" for name, seconds in cpu.items())
                total = sum(cpu.values())
                print(f"{number} {which}: {wall:.1f} s, {total:.1f} s of processor time ({shares})", flush=True)


def start(out: Path, uncompiled: bool) -> tuple[float, dict[str, float]]:
    """Start a command, end it at its first stage, and return its seconds and those of each process."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(FOREIGN)}
    if uncompiled:
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(out.parent / "nothing here")}
    command = python_command("-m", "flows.command", "generate", "a red cube", "--preset", "smoke", "--out", str(out))
    earlier = set(out.glob("runs/*"))
    began = time.monotonic()
    process = psutil.Popen(
        command, env=import_environment(environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while not any(_has_stage(run) for run in set(out.glob("runs/*")) - earlier):
            if process.poll() is not None:
                raise SystemExit(process.stderr.read().decode())
            time.sleep(0.02)
        return time.monotonic() - began, _seconds(process)
    finally:
        process.terminate()
        process.wait()


def _has_stage(run: Path) -> bool:
    with suppress(OSError, ValueError):
        return bool(json.loads((run / "run.json").read_text())["stages"])
    return False


def _seconds(process: psutil.Process) -> dict[str, float]:
    """Return the processor time of a process, of its children, and of what its children had under them and is gone."""
    seconds = {"command": _own(process)}
    times = process.cpu_times()
    seconds["ended"] = times.children_user + times.children_system
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            seconds[f"{_name(child)}"] = seconds.get(_name(child), 0.0) + _own(child)
    return seconds


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _name(process: psutil.Process) -> str:
    module = [part for part in process.cmdline() if part.startswith(("flows.", "redream.", "tasks."))]
    return module[0] if module else process.name()


if __name__ == "__main__":
    main()
