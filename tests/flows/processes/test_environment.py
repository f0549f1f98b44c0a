"""The environment is set in one place, keeps what the user has set, and lets nothing phone home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.processes.environment import LOCAL_SERVER, QUIET, prepare_environment


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*QUIET, *LOCAL_SERVER, "PREFECT_HOME", "PREFECT_API_URL", "PREFECT_PROFILE"):
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
