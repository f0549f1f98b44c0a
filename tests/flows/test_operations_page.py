"""docs/operations.md is what a reader types: every command on it is run, with other ports and a smaller preset."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.service.addresses import BATCH_POOL, ask, num_workers
from tests.flows.conftest import World
from tests.flows.services import OWN_SERVERS, Served, free_port, wait_until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
PATIENCE = 600


def commands(section: str) -> list[str]:
    """Return the shell lines of a section, in their order."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)[int(section)]
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def command(line: str) -> list[str]:
    """Return what `uv run` would start, in the environment of the tests."""
    words = shlex.split(line)
    assert words[:2] == ["uv", "run"], line
    modules = {
        "redream": ["-m", "flows.command"],
        "prefect": ["-m", "prefect"],
        "mlflow": ["-m", "mlflow"],
        "python": [],
    }
    return [sys.executable, *modules[words[2]], *words[3:]]


def exports(line: str, replaced: dict[str, str]) -> dict[str, str]:
    pairs = (assignment.partition("=") for assignment in shlex.split(line)[1:])
    names = {name: value for name, _, value in pairs}
    for name, value in names.items():
        for old, new in replaced.items():
            names[name] = value = value.replace(old, new)
    return names


def test_page_names_only_settings_that_the_code_or_the_servers_know() -> None:
    code = [path for package in ("flows", "tasks", "redream") for path in (ROOT / package).rglob("*.py")]
    files = [*code, ROOT / "docker-compose.yml"]
    known = "".join(path.read_text() for path in files)
    for name in set(re.findall(r"`((?:PREFECT|MLFLOW|REDREAM|AWS)_[A-Z0-9_]+)", PAGE)):
        assert name in known, name


@pytest.mark.timeout(1800)
def test_first_section_leads_from_serve_to_a_run_in_minutes(served: Served, world: World, tmp_path: Path) -> None:
    sync, serve, doctor, export, run, batch, runs = commands("1")
    assert sync == "uv sync --frozen"  # what `make test` runs first
    assert command(serve) == [sys.executable, "-m", "flows.command", "serve"]  # as `served` was started
    environment = {**served.environment, **exports(export, {"4200": str(served.port)})}
    out = ["--out", str(served.out)]
    done = subprocess.run([*command(doctor), *out, "--json"], env=environment, capture_output=True, text=True)
    assert "workers of local" in done.stdout, done.stderr
    small = ["--param", "preset=smoke", "--param", f"index={world.index}", "--param", "method=sds"]
    small += ["--params", json.dumps({"settings": world.settings})]
    for line in (run, batch):
        asked = [*command(line), *small]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([*command(runs), *out], env=environment, capture_output=True, text=True)
    assert "a turquoise robot" in done.stdout


@pytest.mark.timeout(1800)
def test_pieces_of_the_second_section_work_one_by_one_in_minutes(tmp_path: Path) -> None:
    export, prefect, mlflow, pool, batch_pool, deploy, keeper, batches, worker = commands("2")
    ports = {"4200": str(free_port()), "5000": str(free_port()), "$PWD": str(tmp_path)}
    inherited = {name: value for name, value in os.environ.items() if name not in OWN_SERVERS}
    settings = exports(export, ports)
    environment = {
        **inherited,
        **settings,
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_SERVER_API_PORT": ports["4200"],
        "MLFLOW_PORT": ports["5000"],
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    api = settings["PREFECT_API_URL"]
    processes = []

    def start(line: str) -> None:
        processes.append(subprocess.Popen(command(line), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))

    def run(line: str) -> None:
        environment_here = {**environment, "PWD": str(ROOT)}
        done = subprocess.run(command(line), cwd=ROOT, env=environment_here, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        start(prefect)
        start(mlflow)
        wait_until(lambda: ask(f"{api}/health")[0] == 200, PATIENCE)
        run(pool)
        run(batch_pool)
        run(deploy)
        start(keeper)
        start(batches)
        start(worker)
        wait_until(lambda: num_workers(api) == num_workers(api, pool=BATCH_POOL) == 1, PATIENCE)
        wait_until(lambda: ask(f"{settings['MLFLOW_TRACKING_URI']}/health")[0] == 200, PATIENCE)
    finally:
        family = [child for process in processes for child in psutil.Process(process.pid).children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)
        psutil.wait_procs(family, timeout=30)
    assert not [process for process in family if process.is_running()]
