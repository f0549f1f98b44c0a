"""Where the servers of `redream serve` are: addresses, settings, who may reach them, and whether they answer.

They bind to this machine unless told otherwise, and with another host only with the authentication of both servers.
Backends are the servers' own settings, and what the user has set stays: `PREFECT_SERVER_DATABASE_CONNECTION_URL`,
`MLFLOW_BACKEND_STORE_URI`, `MLFLOW_ARTIFACTS_DESTINATION`; the default is SQLite and a folder beside the runs.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.processes.environment import (
    CERTIFICATES,
    DEPLOYED,
    LOOPBACK,
    PREFECT_DATABASES,
    QUIET,
    SERVER,
    authorities,
    check_database,
    checked_tracking_uri,
    drop_empty_places,
    reach_loopback_directly,
)
from redream.interpreter import import_environment

TAG = "redream"  # of every deployment in prefect.yaml, and of commands' runs
POOL = "local"
BATCH_POOL = "batches"  # of runs that wait for others, and would keep the place that those need
KEEPER_SEEN = "redream-keeper"  # the variable with the time at which the keeper last looked
PREFECT_SECRET = "PREFECT_SERVER_API_AUTH_STRING"  # noqa: S105 (the name of a variable)
MLFLOW_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
MLFLOW_BACKENDS = ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION")
# MLflow's server starts in the output folder: of an absolute URL with odd characters it would create a wrong folder.
OWN_MLFLOW = "sqlite:///mlflow.db"
MLFLOW_USERS_FILE = ".mlflow-auth.db"
ANSWER_SECONDS = 5.0
MIN_PASSWORD_CHARS = 12  # MLflow's rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What `redream serve` was asked for."""

    out: Path
    host: str = "127.0.0.1"
    port: int = 4200
    mlflow_port: int = 5000
    limit: int = 0  # runs at a time; 0 for one more than may train
    max_resumes: int = 3

    @property
    def prefect_api(self) -> str:
        return f"http://{_reachable(self.host)}:{self.port}/api"

    @property
    def mlflow_url(self) -> str:
        return f"http://{_reachable(self.host)}:{self.mlflow_port}"


def checked_serving(asked: Serving, environment: Mapping[str, str]) -> Serving:
    """Accept what was asked for, or raise a `ValueError` that says what to do."""
    if asked.port == asked.mlflow_port:
        raise ValueError(f"--port and --mlflow-port are both {asked.port}; Prefect and MLflow need one each")
    if not is_loopback(asked.host) and not has_secrets(environment):
        raise ValueError(
            f"--host {asked.host} lets others in, so both servers need a password: set {PREFECT_SECRET}=NAME:PASSWORD, "
            f"{MLFLOW_SECRETS[0]}=NAME and {MLFLOW_SECRETS[1]}=PASSWORD (at least {MIN_PASSWORD_CHARS} characters "
            "each), or stay on 127.0.0.1"
        )
    checked_tracking_uri(MLFLOW_BACKENDS[0], environment)
    for name in (MLFLOW_BACKENDS[0], *PREFECT_DATABASES):
        check_database(name, environment)
    for option, port in (("--port", asked.port), ("--mlflow-port", asked.mlflow_port)):
        check_free(asked.host, option, port)
    return asked


def is_loopback(host: str) -> bool:
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise ValueError(f"--host {host!r} is not an address of this machine ({error}); try 127.0.0.1") from error
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


def has_secrets(environment: Mapping[str, str]) -> bool:
    """Return whether both servers have a name and a password that is long enough."""
    name, _, password = environment.get(PREFECT_SECRET, "").partition(":")
    passwords = (password, environment.get(MLFLOW_SECRETS[1], ""))
    named = bool(name and environment.get(MLFLOW_SECRETS[0]))
    return named and all(len(secret) >= MIN_PASSWORD_CHARS for secret in passwords)


def serving_environment(asked: Serving, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the servers, the keeper, the worker and so of every run."""
    named = dict(environment)
    drop_empty_places(named)
    defaults = {
        "PREFECT_HOME": str(asked.out / ".prefect"),
        "PREFECT_SERVER_API_BLOCKS_REGISTER_ON_START": "false",
        # Its own pages only: by default any page in a browser may start runs.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{asked.port},http://localhost:{asked.port}",
        "PREFECT_SERVER_UI_API_URL": "/api" if not is_loopback(asked.host) else asked.prefect_api,
        "MLFLOW_BACKEND_STORE_URI": OWN_MLFLOW,
        "MLFLOW_ARTIFACTS_DESTINATION": (asked.out / "mlartifacts").as_uri(),
    }
    settled = {
        "PREFECT_API_URL": asked.prefect_api,
        "PREFECT_SERVER_API_HOST": asked.host,
        "PREFECT_SERVER_API_PORT": str(asked.port),
        "MLFLOW_TRACKING_URI": asked.mlflow_url,
        "MLFLOW_HOST": asked.host,
        "MLFLOW_PORT": str(asked.mlflow_port),
        "REDREAM_OUT": str(asked.out),
    }
    if secret := environment.get(PREFECT_SECRET):
        settled["PREFECT_API_AUTH_STRING"] = secret  # for the clients
    if has_mlflow_secrets(environment):
        settled |= _mlflow_authentication(asked, environment)
    complete = import_environment({**QUIET, **SERVER, **DEPLOYED, **defaults, **named, **settled})
    reach_loopback_directly(complete, urlsplit(asked.prefect_api).hostname or "")
    return complete


def has_mlflow_secrets(environment: Mapping[str, str]) -> bool:
    return all(environment.get(name) for name in MLFLOW_SECRETS)


def keeps_artifacts_in_a_folder(environment: Mapping[str, str]) -> bool:
    """Return whether MLflow is local as a whole, so that commands may use its files with and without its server."""
    return not any(environment.get(name) for name in (*MLFLOW_BACKENDS, *MLFLOW_SECRETS))


def num_workers(api: str, secret: str = "", pool: str = POOL) -> int:
    """Return how many workers of a pool are alive, as the server sees it."""
    status, workers = ask(f"{api}/work_pools/{pool}/workers/filter", secret, content={})
    return sum(worker.get("status") == "ONLINE" for worker in workers) if status == 200 else 0


def ask(url: str, secret: str = "", content: Any = None) -> tuple[int, Any]:
    """Ask a server, with `NAME:PASSWORD` if given; returns the status (0 without an answer) and the JSON answer."""
    import httpx

    headers = {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"} if secret else {}
    method = "GET" if content is None else "POST"
    is_near = urlsplit(url).hostname in LOOPBACK  # where no proxy leads
    certificates = [os.environ.get(name, "") for name in CERTIFICATES]
    try:
        verify = authorities(*certificates) if url.startswith("https:") else False
        with httpx.Client(trust_env=not is_near, verify=verify, timeout=ANSWER_SECONDS, headers=headers) as client:
            answer = client.request(method, url, json=content, follow_redirects=True)
        if not answer.is_success:
            return answer.status_code, answer.reason_phrase
        return answer.status_code, json.loads(answer.text) if answer.text[:1] in ("{", "[") else answer.text
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError):
        return 0, None


def _mlflow_authentication(asked: Serving, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of MLflow's own users, the first of whom is the one that the environment names."""
    config = asked.out / ".mlflow-auth.ini"
    config.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{MLFLOW_USERS_FILE}\n")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": environment.get("MLFLOW_AUTH_CONFIG_PATH") or str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": environment[MLFLOW_SECRETS[0]],
        "MLFLOW_AUTH_ADMIN_PASSWORD": environment[MLFLOW_SECRETS[1]],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": environment.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32),
    }


def _reachable(host: str) -> str:
    """Return the address under which this machine reaches its own server."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"


def check_free(host: str, option: str, port: int) -> None:
    """Refuse a port that cannot be bound, with a `ValueError`."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ValueError(f"{option} {port} on {host} cannot be used ({error.strerror}); choose another") from error
