"""The artifacts of an output folder that was moved or copied: MLflow has kept their former place."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

EXPERIMENT = "redream"


def relocate_artifacts(database: Path, artifacts: Path) -> None:
    """Let the project's experiment and its runs name `artifacts`, the folder where their files are today."""
    here = artifacts.absolute().as_uri()
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        found = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
        was = str(found[0]) if found else ""
        if was == here or not was.startswith("file:"):  # a server's own place, or none yet
            return
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 (names of ours)
                f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (here, len(was) + 1, was, len(was) + 1, f"{was}/"),
            )
