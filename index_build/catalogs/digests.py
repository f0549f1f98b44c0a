"""What a mesh file's content is: a digest over the file and the files that it names, so that only a change re-embeds.

Hashing is done when a digest is asked for and remembered in one SQLite file by size and modification time, as version
control systems do; a file changed within two seconds before it was hashed is not remembered, because another change in
that time could leave both as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from redream.meshes.reading.client import names_apart
from redream.meshes.reading.folder import named_files
from redream.meshes.reading.names import Named
from redream.meshes.reading.refusal import ReaderFailed
from redream.records import Asset
from redream.settings import MeshLimits

SETTLED_NS = 2_000_000_000
COLORS_READ = b"2"  # how the colours of OBJ, PLY and STL are read; another way embeds them again

_TABLE = "CREATE TABLE IF NOT EXISTS names (path TEXT PRIMARY KEY, size INT, mtime_ns INT, sha256 TEXT, named TEXT)"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileDigest:
    """Digest an asset's mesh below `folder`; the file `cache` remembers, and may be deleted at any time."""

    folder: str
    cache: str

    def __call__(self, asset: Asset) -> str:
        Path(self.cache).parent.mkdir(parents=True, exist_ok=True)
        path = Path(asset.mesh_path)
        try:
            try:
                return self._digest(path)
            except sqlite3.OperationalError:  # locked or not writable, but no damage
                raise
            except sqlite3.DatabaseError:
                Path(self.cache).unlink(missing_ok=True)  # damaged, and holds nothing that cannot be hashed again
                return self._digest(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
        except sqlite3.OperationalError as error:
            raise ValueError(f"digests cannot be kept in {self.cache} ({error}); name another cache folder") from error

    def _digest(self, path: Path) -> str:
        # Each row is its own transaction, so that nobody waits while a large file is hashed.
        with closing(sqlite3.connect(self.cache, timeout=60, isolation_level=None)) as database:
            database.execute("PRAGMA synchronous = OFF")
            database.execute(_TABLE)
            return content_digest(path, Path(self.folder), database)


def content_digest(path: Path, folder: Path, database: sqlite3.Connection) -> str:
    """Hash a file and, as far as they may be read, the files that it names and that those name."""
    digest = hashlib.sha256(b"" if path.suffix.lower() in (".glb", ".gltf") else COLORS_READ)
    for file in named_files(path, lambda current: _remembered(current, database)[1], folder):
        digest.update(_remembered(file, database)[0].encode())
        digest.update(os.path.relpath(file, path.parent).encode(errors="surrogateescape") if file != path else b"")
    return digest.hexdigest()


def _remembered(path: Path, database: sqlite3.Connection) -> tuple[str, list[Named]]:
    stat = path.stat()
    stamp = (stat.st_size, stat.st_mtime_ns)
    row = database.execute("SELECT size, mtime_ns, sha256, named FROM names WHERE path = ?", (str(path),)).fetchone()
    if row is not None and tuple(row[:2]) == stamp:
        return row[2], [Named(kind, tuple(spellings)) for kind, spellings in json.loads(row[3])]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        named = names_apart(path, MeshLimits())
    except ReaderFailed:  # told neither now nor for good
        return sha256, []
    if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:
        row = (str(path), *stamp, sha256, json.dumps([[each.kind, each.spellings] for each in named]))
        database.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?)", row)
    return sha256, named
