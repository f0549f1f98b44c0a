"""The environment is set in one place, keeps what the user has set, and lets nothing phone home."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_TLS_INSECURE_SKIP_VERIFY, temporary_settings

from flows.processes.environment import (
    LOCAL_SERVER,
    QUIET,
    check_prefect,
    prepare_environment,
    reach_loopback_directly,
    starting_services,
)
from tests.flows.answering import HTTP_OK, answering, private_certificate

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


def server_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_API_URL", url)


def test_a_server_that_speaks_no_http_is_named_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        server_at(monkeypatch, f"http://127.0.0.1:{port}/api")
        with pytest.raises(ValueError, match="what answers there does not speak HTTP"), starting_services(tmp_path):
            raise AssertionError("nothing may start")


def test_a_server_with_a_private_certificate_is_asked_with_prefects_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = private_certificate(tmp_path)
    with answering(HTTP_OK, certificate) as port:
        api = f"https://127.0.0.1:{port}/api"
        server_at(monkeypatch, api)
        with pytest.raises(ValueError, match="certificate verify failed"), starting_services(tmp_path):
            raise AssertionError("nothing may start")
        with temporary_settings({PREFECT_API_SSL_CERT_FILE: str(certificate)}):
            check_prefect(api, "PREFECT_API_URL")
        with temporary_settings({PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True}):
            check_prefect(api, "PREFECT_API_URL")


def test_a_server_behind_a_socks_proxy_is_asked_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"\x05\x00", b"\x05\x00\x00\x01" + bytes(6), HTTP_OK) as port:
        server_at(monkeypatch, "http://prefect.invalid/api")
        monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{port}")
        check_prefect("http://prefect.invalid/api", "PREFECT_API_URL")


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "PREFECT_SERVER_DATABASE_CONNECTION_URL"])
def test_a_database_that_does_not_answer_is_named_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv(name, f"postgresql+asyncpg://me:secret@127.0.0.1:{probe.getsockname()[1]}/x")
        prepare_environment(tmp_path)
        named = f"{name} names a database .* does not answer .Connection refused"
        with pytest.raises(ValueError, match=named) as said, starting_services(tmp_path):
            raise AssertionError("nothing may start")
    assert "secret" not in str(said.value)


def test_a_broken_profile_of_prefect_is_named_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (tmp_path / "profiles.toml").write_text('active = "x"\n[profiles.x]\nPREFECT_API_REQUEST_TIMEOUT = "soon"\n')
    with pytest.raises(ValueError, match="Prefect cannot use its profile") as said, starting_services(tmp_path):
        raise AssertionError("nothing may start")
    assert "Error" not in str(said.value)


def test_an_empty_place_is_none_and_commands_stay_in_the_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FOREIGN:
        monkeypatch.setenv(name, "")
    prepare_environment(tmp_path)
    assert os.environ["PREFECT_HOME"] == str(tmp_path / ".prefect")
    assert "PREFECT_API_URL" not in os.environ
    assert "MLFLOW_TRACKING_URI" not in os.environ
