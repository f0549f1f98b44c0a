"""The server of one command: it answers, and it ends with the command, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ENDINGS = {"at its end": ("", 0), "killed": ("os.kill(os.getpid(), 9)", -9), "with an error": ("1 / 0", 1)}
COMMAND = """
import os, psutil, urllib.request
from flows.processes.command_server import start_own_server
start_own_server()()
print(psutil.Process().children()[0].pid, urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/version").read())
print(flush=True)
"""


def run(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_server_answers_and_ends_with_its_command(ending: str, tmp_path: Path) -> None:
    last, code = ENDINGS[ending]
    done = run(COMMAND + last, tmp_path)
    assert done.returncode == code, done.stderr
    server, version = done.stdout.split()
    assert version.count(".") >= 2
    if psutil.pid_exists(int(server)):
        psutil.Process(int(server)).wait(30)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the database's folder goes")
    done = run("from flows.processes.command_server import start_own_server\nstart_own_server()()", tmp_path / "home")
    assert done.returncode == 1
    assert "RuntimeError: Prefect's server did not start: " in done.stderr
    assert "it said nothing" not in done.stderr
