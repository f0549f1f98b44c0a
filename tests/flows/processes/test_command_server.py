"""The server of one command: it answers, and it ends with the command, however that ends."""

from __future__ import annotations

import os
import socket
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


ALL_FORMS = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
REACHED = """
import os, sys
from pathlib import Path
from flows.processes.environment import prepare_environment
prepare_environment(Path(sys.argv[1]))
from flows.processes.command_server import start_own_server
start_own_server()()
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    print(client.api_healthcheck())
import requests
print(requests.get(os.environ["PREFECT_API_URL"] + "/health", timeout=60).status_code)
from flows.service.addresses import ask
print(ask(os.environ["PREFECT_API_URL"] + "/health")[0])
"""


def test_no_request_to_the_own_server_reaches_a_proxy_of_any_form(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as refusing:
        refusing.settimeout(0.5)
        address = f"127.0.0.1:{refusing.getsockname()[1]}"
        proxies = {name: f"{'socks5' if 'all' in name.lower() else 'http'}://{address}" for name in ALL_FORMS}
        environment = {**os.environ, **proxies, "no_proxy": "", "NO_PROXY": ""}
        for name in ("PREFECT_HOME", "PREFECT_API_URL"):
            environment.pop(name, None)
        command = [sys.executable, "-c", REACHED, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.stdout.split() == ["None", "200", "200"], done.stderr
        with pytest.raises(TimeoutError):
            refusing.accept()  # nobody came
