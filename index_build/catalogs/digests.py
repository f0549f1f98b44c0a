"""What a mesh file's content is: a digest over the file and the files that it names, so that only a change re-embeds.

Hashing is done when a digest is asked for and remembered in one SQLite file by size and modification time, as version
control systems do; a file changed within two seconds before it was hashed is not remembered, because another change in
that time could leave both as they were.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from index_build.catalogs.gltf_head import gltf_json
from redream.records import Asset

SETTLED_NS = 2_000_000_000
MAX_NAMED = 1_000  # files that one file may name
MAX_LINE = 65_536

_TABLE = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, mtime_ns INT, sha256 TEXT, named TEXT)"
# Lines of OBJ and MTL files, and of PLY headers, that name another file.
_NAMING = re.compile(
    rb"\s*(?:mtllib|map_\w+|bump|disp|decal|norm|refl|comment TextureFile)\s+(\S.*?)\s*$", re.IGNORECASE
)


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
    """Hash a file and, as far as they lie in `folder`, the files that it names and that those name."""
    digest, seen, pending = hashlib.sha256(), {path}, [path]
    while pending and len(seen) <= MAX_NAMED:
        current = pending.pop()
        sha256, named = _remembered(current, database)
        digest.update(sha256.encode())
        for name in named:
            other = current.parent / name
            if other not in seen and other.is_file() and other.resolve().is_relative_to(folder):
                seen.add(other)
                pending.append(other)
                digest.update(name.encode())
    return digest.hexdigest()


def _remembered(path: Path, database: sqlite3.Connection) -> tuple[str, list[str]]:
    stat = path.stat()
    stamp = (stat.st_size, stat.st_mtime_ns)
    row = database.execute("SELECT size, mtime_ns, sha256, named FROM files WHERE path = ?", (str(path),)).fetchone()
    if row is not None and tuple(row[:2]) == stamp:
        return row[2], json.loads(row[3])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    named = sorted(set(_named_files(path)))[:MAX_NAMED]
    if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:
        row = (str(path), *stamp, sha256, json.dumps(named))
        database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)
    return sha256, named


def _named_files(path: Path) -> Iterator[str]:
    """Yield the relative paths of the files that a mesh or material file names, none that leaves its folder."""
    suffix = path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        names = _gltf_uris(gltf_json(path))
    elif suffix in (".obj", ".mtl", ".ply"):
        names = _named_in_lines(path)
    else:
        names = iter(())
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        is_below = ".." not in parts and not name.startswith(("/", "\\", "~"))
        if parts and is_below and name.isprintable() and all(len(part.encode()) < 256 for part in parts):
            yield "/".join(parts)


def _gltf_uris(tree: dict[str, object]) -> Iterator[str]:
    for kind in ("buffers", "images"):
        entries = tree.get(kind)
        for entry in entries if isinstance(entries, list) else ():
            uri = entry.get("uri") if isinstance(entry, dict) else None
            if isinstance(uri, str) and not uri.startswith("data:") and len(uri) < 1_000:
                yield unquote(uri).strip()


def _named_in_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            if line.strip() == b"end_header":
                return
            if match := _NAMING.match(line):
                text = match[1].decode("utf-8", "replace")
                yield text
                yield text.split()[-1]  # behind options, as in "map_Kd -s 1 1 1 wood.png"
