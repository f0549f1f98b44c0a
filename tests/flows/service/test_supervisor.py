"""`redream serve` refuses what is unsafe or cannot work, revives what dies, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from flows.command import app
from flows.processes.environment import SERVING_FILE, read_serving
from flows.service import supervisor
from flows.service.addresses import Serving, ask, checked_serving, has_secrets, is_loopback, serving_environment
from flows.service.supervisor import Service, Supervisor
from tests.flows import services
from tests.flows.answering import answering
from tests.flows.services import Served, free_port, wait_until

SECRETS = {
    "PREFECT_SERVER_API_AUTH_STRING": "team:a-long-password",
    "MLFLOW_TRACKING_USERNAME": "team",
    "MLFLOW_TRACKING_PASSWORD": "another-long-password",
}


def test_other_hosts_are_refused_without_both_passwords_and_told_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["redream", "serve", "--host", "0.0.0.0", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        app.main()
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.err.count("\n") == 1
    assert all(name in captured.err for name in SECRETS)
    assert not (tmp_path / "out" / "logs").exists()  # nothing was started


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", ["", "team", "team:short"])
def test_every_missing_or_short_password_counts(name: str, value: str) -> None:
    assert has_secrets(SECRETS)
    if name == "MLFLOW_TRACKING_USERNAME":
        value = ""
    assert not has_secrets({**SECRETS, name: value})


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.8.8.8", True), ("0.0.0.0", False), ("::", False)],
)
def test_only_addresses_of_this_machine_are_loopback(host: str, is_own: bool) -> None:
    assert is_loopback(host) == is_own


def test_host_that_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="is not an address of this machine"):
        is_loopback("not a host; rm -rf /")


def test_port_in_use_is_refused_by_its_option(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(ValueError, match=f"--mlflow-port {port} .*choose another"):
            checked_serving(Serving(out=tmp_path, port=free_port(), mlflow_port=port), {})
    with pytest.raises(ValueError, match="one each"):
        checked_serving(Serving(out=tmp_path, port=port, mlflow_port=port), {})


def test_settings_of_the_user_stay_and_backends_are_beside_the_runs(tmp_path: Path) -> None:
    asked = Serving(out=tmp_path, port=4711, mlflow_port=4712)
    default = serving_environment(asked, {})
    assert default["MLFLOW_BACKEND_STORE_URI"] == "sqlite:///mlflow.db"  # of the folder that its server starts in
    assert default["PREFECT_API_URL"] == "http://127.0.0.1:4711/api"
    assert default["DO_NOT_TRACK"] == "true"
    assert default["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" not in default
    chosen = {
        "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg://db/mlflow",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket/runs",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://db/prefect",
    }
    assert chosen.items() <= serving_environment(asked, chosen).items()


def test_an_empty_place_is_none(tmp_path: Path) -> None:
    empty = dict.fromkeys(("MLFLOW_BACKEND_STORE_URI", "PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_HOME"), "")
    environment = serving_environment(Serving(out=tmp_path), empty)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "sqlite:///mlflow.db"
    assert environment["PREFECT_HOME"] == str(tmp_path / ".prefect")
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in environment


def test_a_backend_that_does_not_answer_is_named_before_anything_starts(tmp_path: Path) -> None:
    dead = {"MLFLOW_BACKEND_STORE_URI": f"postgresql://me:secret@127.0.0.1:{free_port()}/mlflow"}
    asked = Serving(out=tmp_path, port=free_port(), mlflow_port=free_port())
    with pytest.raises(ValueError, match="MLFLOW_BACKEND_STORE_URI names .*127.0.0.1.*does not answer") as said:
        checked_serving(asked, dead)
    assert "secret" not in str(said.value)


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\n{no json"])
def test_a_port_at_which_something_else_answers_is_no_server(answer: bytes) -> None:
    with answering(answer) as port:
        assert ask(f"http://127.0.0.1:{port}/health")[1] is None


def test_passwords_are_in_no_file(tmp_path: Path) -> None:
    environment = serving_environment(Serving(out=tmp_path, host="0.0.0.0"), SECRETS)
    assert environment["PREFECT_API_AUTH_STRING"] == SECRETS["PREFECT_SERVER_API_AUTH_STRING"]
    assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"] == SECRETS["MLFLOW_TRACKING_PASSWORD"]
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "long-password" not in written


def test_commands_use_the_servers_only_while_they_run(tmp_path: Path) -> None:
    addresses = {"prefect_api": "http://127.0.0.1:1/api", "mlflow_url": "http://127.0.0.1:2"}
    where = {"out": str(tmp_path), "pid": os.getpid(), "started": psutil.Process().create_time(), **addresses}
    assert read_serving(tmp_path) is None
    (tmp_path / SERVING_FILE).write_text(json.dumps(where))
    assert read_serving(tmp_path) == addresses
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert read_serving(tmp_path / "copy") is None  # the servers write into the folder that it was copied from
    (tmp_path / SERVING_FILE).write_text(json.dumps({**where, "started": psutil.Process().create_time() - 60}))
    assert read_serving(tmp_path) is None  # the number of a dead one, given to another
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / SERVING_FILE).write_text(json.dumps({**where, "pid": ended.pid}))
    assert read_serving(tmp_path) is None
    (tmp_path / SERVING_FILE).write_text('{"pid": ')
    assert read_serving(tmp_path) is None


def test_service_that_dies_is_started_again_at_growing_intervals(tmp_path: Path) -> None:
    supervisor = Supervisor(dict(os.environ), tmp_path)
    supervisor.start(Service(name="short", command=["sh", "-c", "echo ran; exit 3"], answers=lambda: True))
    deadline = time.monotonic() + 60
    found = []
    while len(found) < 3 and time.monotonic() < deadline:
        found += [time.monotonic() for _ in supervisor.revive()]
        time.sleep(0.05)
    assert (tmp_path / "short.log").read_text().count("ran") == 3
    assert found[2] - found[1] > 1.5 > found[1] - found[0] - 0.5


def test_service_that_ends_instead_of_answering_is_reported_with_its_last_words(tmp_path: Path) -> None:
    supervisor = Supervisor(dict(os.environ), tmp_path)
    broken = Service(name="broken", command=["sh", "-c", "echo no database; exit 3"], answers=lambda: False)
    supervisor.start(broken)
    with pytest.raises(RuntimeError, match=r"broken ended with code 3; .*broken\.log ends with: no database"):
        supervisor.wait_for(broken, lambda: False)


def test_an_mlflow_that_is_slow_at_first_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [ConnectionError("no answer in time"), "http://127.0.0.1:5000/#/experiments/1/runs"]

    def slow(server: str, tracking: object) -> str:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr("tasks.tracking.tracker.runs_address", slow)
    assert supervisor._runs_address(Serving(out=tmp_path)).endswith("/1/runs")


def test_stopping_a_service_ends_what_it_started_even_if_it_does_not_listen(tmp_path: Path) -> None:
    supervisor = Supervisor(dict(os.environ), tmp_path)
    script = "trap '' TERM; sleep 1000 & echo $! > child; wait; wait"
    service = Service(name="stubborn", command=["sh", "-c", f"cd '{tmp_path}'; {script}"], answers=lambda: True)
    supervisor.start(service)
    wait_until(lambda: (tmp_path / "child").exists() and bool((tmp_path / "child").read_text()), 60)
    child = psutil.Process(int((tmp_path / "child").read_text()))
    supervisor.stop("stubborn")
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)


def test_serve_stops_with_everything_that_it_started_in_minutes(tmp_path: Path) -> None:
    served = services.start(tmp_path / "out with spaces")
    assert read_serving(served.out) == {"prefect_api": served.api, "mlflow_url": served.mlflow}
    stranger = httpx.options(
        f"{served.api}/flow_runs/count",
        headers={"Origin": "http://a.page", "Access-Control-Request-Method": "POST"},
    )
    assert "access-control-allow-origin" not in stranger.headers  # no page in a browser may start runs
    assert "/#/experiments/" in served.said.read_text()
    family = served.family()
    assert len(family) >= 4
    for process in family:  # nothing listens to other machines
        for connection in process.net_connections(kind="tcp"):
            assert connection.status != psutil.CONN_LISTEN or connection.laddr.ip in ("127.0.0.1", "::1")
    second = subprocess.run(
        [sys.executable, "-m", "flows.command", "serve", "--out", str(served.out), "--port", str(free_port())],
        capture_output=True,
        text=True,
    )
    assert second.returncode == 2
    assert "another `redream serve` uses" in second.stderr
    assert served.stop() == 0
    assert served.family() == set()
    assert read_serving(served.out) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_nothing_outlives_a_killed_serve_in_minutes(tmp_path: Path) -> None:
    served = services.start(tmp_path / "out")
    served.family()
    served.process.send_signal(signal.SIGKILL)
    served.process.wait()
    wait_until(lambda: not served.family(), 60)


def test_dead_worker_is_replaced_in_minutes(served: Served) -> None:
    worker = served.service("worker")
    worker.kill()

    def is_replaced() -> bool:
        with suppress(LookupError):  # for a second there is none
            return served.service("worker").pid != worker.pid
        return False

    wait_until(is_replaced, 60)
    assert "worker died" in served.said.read_text()
