"""PostgreSQL behind both servers and an object store for artifacts, by settings only; all of them as processes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from flows.service.addresses import ask
from tests.flows import services
from tests.flows.conftest import World
from tests.flows.services import free_port, wait_until

PATIENCE = 600
BUCKET = "redream"
# Debian keeps the server's programs off the path.
PROGRAMS = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
INITDB, POSTGRES = (shutil.which(name, path=PROGRAMS) for name in ("initdb", "postgres"))
HAS_STORE = all(importlib.util.find_spec(name) for name in ("moto", "boto3", "psycopg"))


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of the test's own; returns its address without the database."""
    folder = tmp_path_factory.mktemp("postgres")
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    if user:
        for path in (folder, *list(folder.parents)[:2]):
            path.chmod(0o755)
        shutil.chown(folder, user)
    port = free_port()
    options = ["--auth=trust", "--username=redream", "--encoding=UTF8", "--no-sync"]
    subprocess.run(
        [str(INITDB), *options, "-D", folder / "data"], user=user, check=True, capture_output=True, cwd=folder
    )
    command = [
        str(POSTGRES),
        "-D",
        folder / "data",
        "-p",
        str(port),
        "-k",
        str(folder),
        "-c",
        "listen_addresses=127.0.0.1",
    ]
    server = subprocess.Popen(command, user=user, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        import psycopg

        address = f"redream@127.0.0.1:{port}"

        def create() -> bool:
            try:
                with psycopg.connect(f"postgresql://{address}/postgres", autocommit=True) as connection:
                    connection.execute("CREATE DATABASE prefect")
                    connection.execute("CREATE DATABASE mlflow")
                    return True
            except psycopg.OperationalError:
                return False

        wait_until(create, 120)
        yield address
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def object_store() -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: ask(f"{url}/moto-api/data.json")[0] == 200, PATIENCE)
        yield url
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.skipif(not (INITDB and POSTGRES), reason="PostgreSQL is not installed (Debian: postgresql)")
@pytest.mark.skipif(not HAS_STORE, reason="needs the extra `servers` and moto")
@pytest.mark.timeout(2400)
def test_run_is_kept_in_postgresql_and_an_object_store_with_passwords_in_minutes(
    postgres: str, object_store: str, world: World, tmp_path: Path
) -> None:
    import boto3
    import psycopg

    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    store = boto3.client(
        "s3",
        endpoint_url=object_store,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )
    store.create_bucket(Bucket=BUCKET)
    secret = "team:a-long-password"
    settings = {
        **keys,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres}/prefect",
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{postgres}/mlflow",
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/artifacts",
        "MLFLOW_S3_ENDPOINT_URL": object_store,
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "MLFLOW_TRACKING_USERNAME": "team",
        "MLFLOW_TRACKING_PASSWORD": "another-long-password",
    }
    served = services.start(tmp_path / "out", environment=settings)
    try:
        assert ask(f"{served.api}/flow_runs/count", content={})[0] == 401
        assert ask(f"{served.mlflow}/api/2.0/mlflow/experiments/search", content={"max_results": 1})[0] == 401
        page = urlopen(f"{served.mlflow}/health").read()
        assert page == b"OK"
        served.secret = secret
        parameters = {"prompt": "a grey box", "preset": "smoke", "method": "sds", "settings": world.settings}
        _, run = served.create_run("generate/generate", parameters)
        served.wait_for_state(run["id"], ("Completed", "Failed", "Crashed"), PATIENCE)
        assert served.run(run["id"])["state"]["name"] == "Completed"
    finally:
        assert served.stop() == 0
    with psycopg.connect(f"postgresql://{postgres}/prefect") as connection:
        assert connection.execute("SELECT name FROM flow_run").fetchall() == [("a grey box",)]
    with psycopg.connect(f"postgresql://{postgres}/mlflow") as connection:
        statuses = connection.execute("SELECT name, status FROM runs ORDER BY start_time").fetchall()
    assert statuses[0] == ("a grey box", "FINISHED")
    stored = [entry["Key"] for entry in store.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert any(key.endswith("artifacts/page.html") for key in stored)
    assert [path.name for path in (tmp_path / "out").glob("*.db")] == [".mlflow-auth.db"]  # who may come in
    assert not (tmp_path / "out" / "mlartifacts").exists()
