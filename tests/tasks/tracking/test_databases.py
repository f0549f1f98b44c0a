"""Databases of Prefect and MLflow are created whole or not at all, once for all processes, and never replace work."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config, _verify_schema, create_sqlalchemy_engine

from tasks.tracking import databases
from tasks.tracking.databases import (
    MLFLOW,
    MLFLOW_USERS,
    PREFECT,
    Schema,
    is_current,
    prepare_database,
    sqlite_url,
)

SCHEMAS = (MLFLOW, MLFLOW_USERS, PREFECT)
CREATE = """
import sys
from pathlib import Path
from tasks.tracking.databases import MLFLOW, prepare_database
prepare_database(Path(sys.argv[1]), MLFLOW)
"""


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_half_upgraded_database_of_ours_without_runs_is_made_again(tmp_path: Path) -> None:
    prepare_database(tmp_path / "mlflow.db", MLFLOW)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE _alembic_tmp_runs (run_uuid TEXT)")
    prepare_database(tmp_path / "mlflow.db", MLFLOW)
    assert "_alembic_tmp_runs" not in tables(tmp_path / "mlflow.db")


def half_made(path: Path, run: str = "") -> None:
    """Leave what a migration leaves that was killed: an early revision, and a table under a name of Alembic's."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE runs (run_uuid TEXT)")
        database.execute("CREATE TABLE _alembic_tmp_runs (run_uuid TEXT)")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('451aebb31d03')")
        if run:
            database.execute("INSERT INTO runs VALUES (?)", (run,))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_a_missing_database_is_created_with_all_tables(schema: Schema, tmp_path: Path) -> None:
    prepare_database(tmp_path / "new.db", schema)
    assert tables(tmp_path / "new.db") >= {schema.revisions, *schema.holds}
    assert {path.name for path in tmp_path.iterdir()} == {"new.db", ".new.db.lock"}


def test_mlflow_takes_the_created_database_for_one_of_its_own(tmp_path: Path) -> None:
    prepare_database(tmp_path / "new.db", MLFLOW)
    _verify_schema(create_sqlalchemy_engine(sqlite_url(tmp_path / "new.db")))
    head = ScriptDirectory.from_config(_get_alembic_config("")).get_current_head()
    assert databases._revision(MLFLOW) == head  # else the kept tables are old: python -m tasks.tracking.databases


def test_a_half_made_database_without_runs_is_made_again(tmp_path: Path) -> None:
    half_made(tmp_path / "mlflow.db")
    (tmp_path / "mlflow.db-journal").write_bytes(b"what a killed process left")
    prepare_database(tmp_path / "mlflow.db", MLFLOW)
    assert "_alembic_tmp_runs" not in tables(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db-journal").exists()


def test_an_empty_file_counts_as_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    prepare_database(tmp_path / "mlflow.db", MLFLOW)
    assert "experiments" in tables(tmp_path / "mlflow.db")


def test_a_half_upgraded_database_with_runs_is_kept_and_named(tmp_path: Path) -> None:
    half_made(tmp_path / "mlflow.db", run="7")
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(ValueError, match=r"mlflow.db was left in the middle of an upgrade and has rows in runs.*move"):
        prepare_database(tmp_path / "mlflow.db", MLFLOW)
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_database_of_another_version_with_runs_is_kept(tmp_path: Path) -> None:
    half_made(tmp_path / "mlflow.db", run="7")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("DROP TABLE _alembic_tmp_runs")
    before = (tmp_path / "mlflow.db").read_bytes()
    prepare_database(tmp_path / "mlflow.db", MLFLOW)
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_what_is_no_database_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(ValueError, match="mlflow.db is not a whole database .*move it away"):
        prepare_database(tmp_path / "mlflow.db", MLFLOW)
    assert (tmp_path / "mlflow.db").read_bytes() == b"not a database" * 1000


def test_a_later_version_brings_the_kept_tables_up_to_date_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgraded = []

    def upgrade(path: Path, schema: Schema) -> None:
        assert not (tmp_path / "mlflow.db").exists()
        upgraded.append(schema.name)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE alembic_version SET version_num = 'later'")

    monkeypatch.setattr(databases, "version", lambda package: "99.0")
    monkeypatch.setattr(databases, "_upgrade", upgrade)
    for _ in range(2):  # the second time it is there, though its revision is none that is known here
        prepare_database(tmp_path / "mlflow.db", MLFLOW)
    assert upgraded == ["mlflow"]


def test_only_a_database_of_the_installed_version_needs_no_migration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_database(tmp_path / "new.db", PREFECT)
    assert is_current(tmp_path / "new.db", PREFECT)
    with monkeypatch.context() as later:
        later.setattr(databases, "version", lambda package: "99.0")
        assert not is_current(tmp_path / "new.db", PREFECT)
    with closing(sqlite3.connect(tmp_path / "new.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'earlier'")
    assert not is_current(tmp_path / "new.db", PREFECT)


def test_eight_processes_create_one_database_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CREATE, str(tmp_path / "mlflow.db")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    inodes = set()
    for process in processes:
        _, messages = process.communicate(timeout=120)
        assert process.returncode == 0, messages
        inodes.add((tmp_path / "mlflow.db").stat().st_ino)
    assert len(inodes) == 1


def test_a_creation_killed_at_any_moment_leaves_no_database_or_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    command = [sys.executable, "-c", CREATE, str(path)]
    for number in range(8):
        process = subprocess.Popen(command)
        while not (tmp_path / ".mlflow.db.lock").exists():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(0.02 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not path.exists() or "experiments" in tables(path)
        prepare_database(path, MLFLOW)
        assert "experiments" in tables(path)
        for left in (path, tmp_path / ".mlflow.db.lock"):
            left.unlink()


@pytest.mark.parametrize("name", ["a%20b", "a?b", "a#b", "a%b", "ü 'x\"", "a&b;c:d@e+f"])
def test_a_url_leads_to_the_very_file_whatever_its_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    create_sqlalchemy_engine(sqlite_url(path)).connect().close()
    assert path.is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_the_kept_tables_are_those_that_the_migrations_make_in_minutes(schema: Schema) -> None:
    def statements(sql: str) -> list[str]:
        return sorted(line.strip().rstrip(",") for line in sql.splitlines())  # their order is not the same every time

    assert statements(databases.migrated(schema)) == statements(databases._kept(schema).read_text())
