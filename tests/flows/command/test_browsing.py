"""What an archive shows, which nobody may write to."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.command.browsing import _writable
from tasks.tracking.databases import MLFLOW, prepare_database


def location(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT artifact_location FROM experiments").fetchone()[0]


def test_a_database_that_cannot_be_written_is_shown_from_a_copy_that_finds_the_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "archive" / "mlflow.db"
    database.parent.mkdir()
    prepare_database(database, MLFLOW)
    with closing(sqlite3.connect(database)) as connection, connection:
        insert = "INSERT INTO experiments (name, artifact_location, workspace) VALUES (?, ?, 'default')"
        connection.execute(insert, ("redream", "file:///elsewhere/mlartifacts"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copy = _writable(database, database.parent / "mlartifacts")
    assert copy.parent != database.parent
    assert location(copy) == (database.parent / "mlartifacts").as_uri()
    assert location(database) == "file:///elsewhere/mlartifacts"
