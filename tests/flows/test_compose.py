"""docker-compose.yml cannot be run here; what it starts and sets is what the process tests start and set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.processes.environment import QUIET, SERVER
from flows.service.addresses import Serving, has_secrets, serving_environment
from flows.service.supervisor import services

ROOT = Path(__file__).parents[2]
SECRET = "a-long-password"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service.get("image") == "redream"}
# Of the tests with PostgreSQL and an object store, and of clients with passwords.
OTHER_SETTINGS = {
    "PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION", "MLFLOW_SERVER_ALLOWED_HOSTS", "PREFECT_UI_URL", "REDREAM_MLFLOW_PAGES", "REDREAM_SLOTS",
    "NVIDIA_DRIVER_CAPABILITIES",
}  # fmt: skip


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    return {
        name: re.sub(r"\$\{REDREAM_PASSWORD[^}]*\}", SECRET, value) for name, value in service["environment"].items()
    }


@pytest.fixture
def served_environment(tmp_path: Path) -> dict[str, str]:
    secrets = {
        "PREFECT_SERVER_API_AUTH_STRING": f"redream:{SECRET}",
        "MLFLOW_TRACKING_USERNAME": "redream",
        "MLFLOW_TRACKING_PASSWORD": SECRET,
    }
    return serving_environment(Serving(out=tmp_path, host="0.0.0.0"), secrets)


def test_containers_of_ours_run_the_commands_that_serve_runs(
    tmp_path: Path, served_environment: dict[str, str]
) -> None:
    ours = {
        service.name: [part for part in service.command[1:] if part != "-P"]
        for service in services(Serving(out=tmp_path), served_environment)
    }
    assert OURS.keys() == ours.keys()
    for name, service in OURS.items():
        assert service["command"][0] == "python"
        assert service["command"][1:] == ours[name]


def test_containers_set_only_what_processes_set(served_environment: dict[str, str]) -> None:
    for service in OURS.values():
        assert environment_of(service).keys() <= served_environment.keys() | OTHER_SETTINGS
    for name in ("PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"):
        assert environment_of(OURS["prefect"])[name] == (QUIET | SERVER)[name]


def test_every_container_that_others_reach_asks_for_a_password() -> None:
    assert has_secrets({**environment_of(OURS["prefect"]), **environment_of(OURS["mlflow"])})
    assert "basic-auth" in OURS["mlflow"]["command"]
    for service in COMPOSE["services"].values():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "latest" not in service.get("image", "")


def test_what_containers_name_exists() -> None:
    names = COMPOSE["services"].keys()
    for service in COMPOSE["services"].values():
        assert set(service.get("depends_on", [])) <= names
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]
        for value in service["environment"].values():
            for host in re.findall(r"(?:@|http://)([a-z]+)[:/]", value):
                assert host in names | {"redream", "localhost"}
    assert (ROOT / "Dockerfile").is_file()
