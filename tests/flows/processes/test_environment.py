"""The environment is set in one place, keeps what the user has set, and lets nothing phone home."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path

import pytest

from flows.processes.environment import (
    LOCAL_SERVER,
    QUIET,
    prepare_environment,
    reach_loopback_directly,
    starting_services,
)

FOREIGN = ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*QUIET, *LOCAL_SERVER, *FOREIGN):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it whatever the test does
        monkeypatch.delenv(name)


def test_telemetry_is_off_and_prefect_lives_in_the_output_folder(tmp_path: Path) -> None:
    prepare_environment(tmp_path)
    assert os.environ["DO_NOT_TRACK"] == "true"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert os.environ["PREFECT_HOME"] == str(tmp_path / ".prefect")


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "DEBUG")
    prepare_environment(tmp_path)
    assert "PREFECT_HOME" not in os.environ
    assert os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] == "DEBUG"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_any_form_keeps_away_from_this_machine_and_serves_the_rest(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in list(os.environ):
        if other.lower().endswith("_proxy"):
            monkeypatch.delenv(other)
    monkeypatch.setenv(name, "http://proxy.example:3128")
    for spared in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(spared, "intranet.example")
    reach_loopback_directly(os.environ)
    for host in ("127.0.0.1", "localhost", "127.0.0.1:4200", "intranet.example"):
        assert urllib.request.proxy_bypass_environment(host)  # type: ignore[attr-defined]
    assert not urllib.request.proxy_bypass_environment("mlflow.example")  # type: ignore[attr-defined]
    for spared in ("no_proxy", "NO_PROXY"):
        assert os.environ[spared] == "intranet.example,127.0.0.1,localhost,::1"


def test_without_a_proxy_nothing_is_set() -> None:
    environment = {"PATH": "/bin"}
    reach_loopback_directly(environment)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "uri", ["./mlruns", "file:///somewhere/mlruns", "mlruns", "127.0.0.1:5000", "s3://bucket/runs"]
)
def test_what_mlflow_cannot_keep_runs_in_is_refused_at_once(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI is .* neither a server .* nor a database .* unset it"):
        prepare_environment(tmp_path)


@pytest.mark.parametrize("uri", ["http://mlflow.example", "sqlite:///x.db", "postgresql+psycopg://db/x", "databricks"])
def test_servers_and_databases_for_mlflow_are_taken(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    prepare_environment(tmp_path)


def test_a_prefect_server_that_does_not_answer_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and never listens
        monkeypatch.setenv("PREFECT_API_URL", f"http://me:secret@127.0.0.1:{probe.getsockname()[1]}/api")
        prepare_environment(tmp_path)
        with (
            pytest.raises(
                ValueError, match="PREFECT_API_URL names .* does not answer .*Connection refused.* unset"
            ) as said,
            starting_services(tmp_path),
        ):
            raise AssertionError("nothing may start")
    assert "secret" not in str(said.value)
    assert not (tmp_path / "mlflow.db").exists()
