"""SQLite databases of Prefect and MLflow, each created complete: aside, under a lock, and renamed into place.

Left to themselves both programs migrate an empty file in place, through every version that they ever had. That takes
twenty seconds, cannot be done by two processes at once, and leaves a file that nothing opens again where it is killed.
So the tables that the migrations end in are kept as SQL in `schemas/`, for the versions named below. With a later
version installed, the program's own command brings them up to date before the file is renamed. `python -m
tasks.tracking.databases` writes these files again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from redream.interpreter import python_command
from redream.messages import last_words

SCHEMAS = Path(__file__).with_name("schemas")
COMPLETE = 2402  # `user_version` of a database that was created here
SIDECARS = ("-journal", "-wal", "-shm")
BUSY_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """The tables of another program."""

    name: str  # of the file in `schemas/`
    package: str
    version: str  # of the package whose migrations end in these tables
    revisions: str  # the table that names the last migration
    holds: tuple[str, ...]  # tables whose rows are somebody's work
    upgrade: tuple[str, ...]  # the program's own command; `URL` stands for the database
    is_wal: bool = False  # switching to a write-ahead log later needs the database for oneself


MLFLOW = Schema(
    name="mlflow",
    package="mlflow",
    version="3.17.2",
    revisions="alembic_version",
    holds=("runs", "registered_models", "trace_info"),
    upgrade=("-m", "mlflow", "db", "upgrade", "URL"),
)
MLFLOW_USERS = Schema(
    name="mlflow-users",
    package="mlflow",
    version="3.17.2",
    revisions="alembic_version_auth",
    holds=("users",),
    upgrade=("-m", "mlflow.server.auth", "db", "upgrade", "--url", "URL"),
)
PREFECT = Schema(
    name="prefect",
    package="prefect",
    version="3.8.8",
    revisions="alembic_version",
    holds=("flow_run", "deployment"),
    upgrade=("-m", "prefect", "server", "database", "upgrade", "--yes"),
    is_wal=True,
)


def sqlite_url(path: Path, driver: str = "sqlite") -> str:
    """Return the URL of a database file, whatever characters its path has."""
    return f"{driver}:///{str(path.absolute()).replace('%', '%25').replace('?', '%3F')}"


def prepare_database(path: Path, schema: Schema) -> None:
    """Create a database where it is missing, or half-made and without any work in it.

    Raises:
        ValueError: the file cannot be used; the message says what to do.
    """
    if is_usable(path, schema):
        return
    try:
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not is_usable(path, schema):  # nobody was faster
                _create(path, schema)
    except PermissionError as error:
        raise ValueError(f"{path} cannot be created ({error.strerror}); check the folder's permissions") from error


def is_current(path: Path, schema: Schema) -> bool:
    """Tell whether a database has the tables of the installed version, so that no migration is due."""
    if version(schema.package) != schema.version:
        return False  # whose last migration is known to it alone
    with closing(_open(path)) as database:
        return database.execute(f"SELECT * FROM {schema.revisions}").fetchall() == [(_revision(schema),)]  # noqa: S608


def is_usable(path: Path, schema: Schema) -> bool:
    """Tell whether a database is there that is whole, or that is not ours to replace.

    Raises:
        ValueError: the file cannot be used; the message says what to do.
    """
    if not path.exists():
        return False
    try:
        with closing(_open(path)) as database:
            (mark,) = database.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            at = database.execute(f"SELECT * FROM {schema.revisions}").fetchall() if schema.revisions in tables else []  # noqa: S608
            held = [name for name in schema.holds if name in tables and _has_rows(database, name)]
    except sqlite3.OperationalError as error:
        raise ValueError(f"{path} cannot be opened ({error}); check its permissions") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is not a whole database ({error}); move it away, and a new one is created") from error
    is_between = any(name.startswith("_alembic_tmp_") for name in tables)
    if held and is_between:
        raise ValueError(
            f"{path} was left in the middle of an upgrade and has rows in {', '.join(held)}, so it stays as it is; "
            "restore it from a copy, or move it away, and a new one is created"
        )
    return bool(held or not is_between and (mark == COMPLETE or at == [(_revision(schema),)]))


def _create(path: Path, schema: Schema) -> None:
    """Build a database aside and rename it into place; what is there has no work in it."""
    aside = path.with_name(f".{path.name}.part")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "new.db")
        _build(built, schema)
        shutil.copyfile(built, aside)
    with open(aside, "rb+") as file:
        os.fsync(file.fileno())
    replaced = f"{path.name}.replaced-{time.time_ns()}"
    for ending in ("", *SIDECARS):  # kept, and out of the way: SQLite would take a journal for a part of the new file
        old = path.with_name(path.name + ending)
        if old.exists():
            old.rename(path.with_name(replaced + ending))
    aside.rename(path)


def _build(path: Path, schema: Schema) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode = {'wal' if schema.is_wal else 'delete'}")
        database.executescript(_kept(schema).read_text(encoding="utf-8"))
    if version(schema.package) != schema.version:
        _upgrade(path, schema)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {COMPLETE}")


def _upgrade(path: Path, schema: Schema) -> None:
    """Let the program's own command bring a database up to date.

    Raises:
        RuntimeError: it fails.
    """
    command = python_command(*(sqlite_url(path) if part == "URL" else part for part in schema.upgrade))
    environment = {
        **os.environ,
        "PREFECT_HOME": str(path.parent),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": sqlite_url(path, "sqlite+aiosqlite"),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        installed = f"{schema.package} {version(schema.package)}"
        raise RuntimeError(f"{installed} cannot create its database: {last_words(done.stderr)}")


def _revision(schema: Schema) -> str:
    """Return the last migration behind the kept tables."""
    head = f'INSERT INTO "{schema.revisions}" VALUES(\''
    text = _kept(schema).read_text(encoding="utf-8")
    return text.partition(head)[2].partition("'")[0]


def _kept(schema: Schema) -> Path:
    return SCHEMAS / f"{schema.name}.sql"


def _open(path: Path) -> sqlite3.Connection:
    # For writing too, if possible: what a killed process left unfinished is undone on opening.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)


def _has_rows(database: sqlite3.Connection, table: str) -> bool:
    return database.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None  # noqa: S608 (a name of ours)


def migrated(schema: Schema) -> str:
    """Return the tables that the installed version's own migrations make of an empty file, as SQL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new.db")
        _upgrade(path, schema)
        with closing(sqlite3.connect(path)) as database:
            return "\n".join(database.iterdump()) + "\n"


def main() -> None:
    """Write the kept tables again, as the installed versions make them."""
    for schema in (MLFLOW, MLFLOW_USERS, PREFECT):
        _kept(schema).write_text(migrated(schema), encoding="utf-8")
        print(f"{_kept(schema)}: {schema.package} {version(schema.package)}")


if __name__ == "__main__":
    main()
