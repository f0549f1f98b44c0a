"""The one place that sets environment variables for Prefect, MLflow and the libraries, before any of them is imported.

What the user has set stays. Where `redream serve` runs for the same folder, commands use its servers. Else, without an
API URL of the user's, a command starts a Prefect server for its own length, with its database in the output folder, so
that nothing outside is touched. No library phones home.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import certifi
import psutil

from flows.processes.command_server import start_own_server
from redream.interpreter import keep_imports_ours, python_command
from redream.messages import last_words, reason
from tasks.tracking.databases import PREFECT, is_current, prepare_database, sqlite_url

SERVING_FILE = ".serving.json"  # written by `redream serve` while it runs
REFUSED_SECONDS = 10.0  # within which a server that is not there has refused
CLOCK_SECONDS = 2.0  # by which the system's word on when a process started may change
QUIET = {
    "DO_NOT_TRACK": "true",  # MLflow takes only this spelling
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Its log lines would tear the progress bars; errors reach the user through the command.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "TOKENIZERS_PARALLELISM": "false",  # warns about every later fork otherwise
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; flows/service/keeper.py takes four missing ones for a death
}
LOCAL_SERVER = {
    "PREFECT_SERVER_API_BLOCKS_REGISTER_ON_START": "false",  # no stage uses blocks
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1",  # by default any page in a browser may start runs
}
DEPLOYED = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "redream",  # progress becomes lines of the run's log
    "PREFECT_WORKER_QUERY_SECONDS": "5",
}
SERVER = {
    # In memory, the default, a slot whose holder died together with the server never comes back.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # by default it starts 15 processes and takes 3 GiB
}
TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Variables with the certificates of servers' own authorities.
CERTIFICATES = ("PREFECT_API_SSL_CERT_FILE", "MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PREFECT_DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
# Variables that name a place; an empty one names none, as if it were not set.
PLACES = (
    "PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", *PREFECT_DATABASES,
    "MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION",
)  # fmt: skip


def reach_loopback_directly(environment: MutableMapping[str, str], *hosts: str) -> None:
    """Keep proxies for everything but this machine's own servers, in whatever form they are set."""
    proxies = [name for name in environment if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy")]
    if not any(environment[name] for name in proxies):
        return  # with NO_PROXY alone some systems' own settings would be forgotten
    for name in ("no_proxy", "NO_PROXY"):
        spared = environment.get(name) or environment.get(name.swapcase(), "")
        named = [host.strip() for host in spared.split(",") if host.strip()]
        environment[name] = ",".join(dict.fromkeys([*named, *LOOPBACK, *hosts]))


def drop_empty_places(environment: MutableMapping[str, str]) -> None:
    for name in PLACES:
        if not environment.get(name, "").strip():
            environment.pop(name, None)


def prepare_environment(out: Path) -> None:
    keep_imports_ours()
    drop_empty_places(os.environ)
    reach_loopback_directly(os.environ)
    for name, value in (QUIET | LOCAL_SERVER).items():
        os.environ.setdefault(name, value)
    if (serving := read_serving(out)) is not None:
        os.environ.setdefault("PREFECT_API_URL", serving["prefect_api"])
        os.environ.setdefault("MLFLOW_TRACKING_URI", serving["mlflow_url"])
    checked_tracking_uri("MLFLOW_TRACKING_URI", os.environ)
    if not {"PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE"} & set(os.environ):
        os.environ["PREFECT_HOME"] = str(out / ".prefect")


def checked_tracking_uri(name: str, environment: Mapping[str, str]) -> None:
    """Refuse what MLflow cannot keep runs in, with a `ValueError`: its store of plain files is no more."""
    scheme, separator, _ = (uri := environment.get(name, "")).partition("://")
    if uri not in ("", "databricks") and (not separator or scheme.partition("+")[0] not in TRACKING_SCHEMES):
        raise ValueError(
            f"{name} is {uri!r}, which names neither a server (http://…) nor a database (sqlite:///…); "
            "name one of these, or unset it"
        )


def check_database(name: str, environment: Mapping[str, str]) -> None:
    """Refuse a database's server that is not there, with a `ValueError` that names the variable."""
    address = urlsplit(environment.get(name, ""))
    port = DATABASE_PORTS.get(address.scheme.partition("+")[0])
    if port is None or not address.hostname:  # a file, a server of another kind, or a socket of this machine
        return
    remedy = "start it, or unset the variable, and a file in the output folder takes its place"
    check_port(f"{name} names a database", address.hostname, address.port or port, remedy)


def prepare_prefect(environment: MutableMapping[str, str]) -> None:
    """Create the database of a Prefect server that is about to start with this environment, unless it is elsewhere."""
    if "PREFECT_HOME" in environment and not any(name in environment for name in PREFECT_DATABASES):
        path = Path(environment["PREFECT_HOME"]).expanduser() / "prefect.db"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        prepare_database(path, PREFECT)
        if is_current(path, PREFECT):  # looking for migrations would cost the server three seconds
            environment.setdefault("PREFECT_SERVER_DATABASE_MIGRATE_ON_START", "false")
        environment[PREFECT_DATABASES[0]] = sqlite_url(path, "sqlite+aiosqlite")


def prepare_worker(out: Path) -> None:
    """Set what must reach the runs of a worker: where results go, and how often a run says that it is alive."""
    keep_imports_ours()
    drop_empty_places(os.environ)
    reach_loopback_directly(os.environ)
    for name, value in (QUIET | DEPLOYED).items():
        os.environ.setdefault(name, value)
    os.environ["REDREAM_OUT"] = str(out)


def read_serving(out: Path) -> dict[str, str] | None:
    """Return where the servers are that `redream serve` runs for this folder, or nothing where none does."""
    try:
        serving = json.loads((out / SERVING_FILE).read_text(encoding="utf-8"))
        later = psutil.Process(serving["pid"]).create_time() - serving["started"]
        is_copy = serving["out"] != str(out.resolve())  # whose servers write into the folder that it was copied from
    except (OSError, ValueError, KeyError, TypeError, OverflowError, psutil.Error):
        return None  # absent, damaged, or left behind by one that was killed
    if is_copy or abs(later) > CLOCK_SECONDS:  # its number is another process's by now
        return None
    return {name: str(serving[name]) for name in ("prefect_api", "mlflow_url")}


@contextmanager
def starting_services(out: Path) -> Iterator[None]:
    """Start Prefect's own server, if one is needed, while the body imports a flow and MLflow opens its database."""
    api, named_by = _prefect_server()
    check_database("MLFLOW_TRACKING_URI", os.environ)
    if api:
        check_prefect(api, named_by)
        wait = None
    else:
        for name in PREFECT_DATABASES:
            check_database(name, os.environ)
        prepare_prefect(os.environ)
        wait = start_own_server()
    if wait is not None and "prefect.context" in sys.modules:  # it has read its settings before the server's address
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
    yield
    from tasks.tracking.tracker import default_tracking_uri, open_tracking

    open_tracking(default_tracking_uri(out), out)
    if wait is not None:
        wait()


def _prefect_server() -> tuple[str, str]:
    """Return the user's server and what names it, such as the environment or a Prefect profile; or nothing."""
    if api := os.environ.get("PREFECT_API_URL", ""):
        return api, "PREFECT_API_URL"
    profiles = Path(os.environ["PREFECT_HOME"], "profiles.toml") if "PREFECT_HOME" in os.environ else None
    named = "PREFECT_PROFILE" in os.environ or (profiles is not None and profiles.is_file())
    if not named and not any(Path(name).is_file() for name in ("prefect.toml", ".env")):
        return "", ""
    ask = "from prefect.settings import PREFECT_API_URL; print(PREFECT_API_URL.value() or '')"  # takes two seconds
    done = subprocess.run(python_command("-c", ask), check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"Prefect cannot use its profile or file of settings: {last_words(done.stderr)}")
    return done.stdout.strip(), "a Prefect profile or file of settings"


def check_prefect(api: str, named_by: str) -> None:
    """Refuse a Prefect server that is not there, asked as Prefect will: through its proxies, with its certificates."""
    from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_TLS_INSECURE_SKIP_VERIFY

    is_checked = not PREFECT_API_TLS_INSECURE_SKIP_VERIFY.value()
    verify = authorities(PREFECT_API_SSL_CERT_FILE.value() or "") if is_checked else False
    remedy = "start that server, or unset it, and the command starts one of its own"
    check_server(f"{named_by} names Prefect's server", f"{api.rstrip('/')}/health", verify, remedy)


def check_mlflow(environment: Mapping[str, str]) -> None:
    """Refuse an MLflow that is not there, with a `ValueError`, if the environment names one."""
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    check_database("MLFLOW_TRACKING_URI", environment)
    if not uri.startswith(("http:", "https:")):
        return
    is_checked = environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() != "true"
    verify = authorities(*(environment.get(name, "") for name in CERTIFICATES)) if is_checked else False
    remedy = "start it, or unset the variable"
    check_server("MLFLOW_TRACKING_URI names MLflow's server", f"{uri.rstrip('/')}/health", verify, remedy)


def check_server(named: str, url: str, verify: ssl.SSLContext | bool, remedy: str) -> None:
    """Refuse an HTTP server that is not there, with a `ValueError`; one that is slow or wants a password is there."""
    import httpx

    address = _without_password(url)
    is_near = urlsplit(url).hostname in LOOPBACK
    try:
        httpx.get(address, timeout=REFUSED_SECONDS, verify=verify, trust_env=not is_near)
    except httpx.TimeoutException:
        return
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError) as error:
        is_other = isinstance(error, httpx.RemoteProtocolError)
        why = "what answers there does not speak HTTP" if is_other else reason(error)
        shown = address.removesuffix("/health")
        raise ValueError(f"{named} at {shown}, which does not answer ({why}); {remedy}") from error


def check_port(named: str, host: str, port: int, remedy: str) -> None:
    """Refuse a server of another kind that is not there, with a `ValueError`."""
    try:
        socket.create_connection((host, port), timeout=REFUSED_SECONDS).close()
    except OSError as error:
        raise ValueError(f"{named} at {host}:{port}, which does not answer ({reason(error)}); {remedy}") from error


def authorities(*paths: str) -> ssl.SSLContext:
    """Return what certificates are checked by: well-known authorities, and those in files that the user names.

    Raises:
        ValueError: a file cannot be read, or holds no certificate.
    """
    context = ssl.create_default_context(cafile=certifi.where())
    for path in filter(None, paths):
        try:
            context.load_verify_locations(path)
        except OSError as error:  # also what holds no certificate
            raise ValueError(f"the certificates in {path} cannot be used ({reason(error)})") from error
    return context


def _without_password(url: str) -> str:
    """Return a URL without the name and password that it may hold."""
    return urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
