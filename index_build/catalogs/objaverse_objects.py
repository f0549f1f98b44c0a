"""What Objaverse 1.0 says of its objects: ids, object paths and annotations, from the `objaverse` package's own cache.

Files that the cache lacks, or holds in part because the package was stopped, are downloaded. Of the annotations, which
are gigabytes of JSON, licence, author, source and what conditions may name are read off once and kept as Parquet.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from index_build.catalogs.captions import clean_text
from index_build.download import DownloadError, PassingError, fetch_file, is_object_path
from redream.settings import DownloadConfig

logger = logging.getLogger(__name__)

OBJECT_PATHS = "object-paths.json.gz"
MAX_JSON = 2**30  # bytes of one unpacked file
TABLE_VERSION = 2
MAX_TAGS = 100
TEXTS = pa.list_(pa.string())
# What conditions may name, by the annotations' own names.
ANNOTATIONS = {
    "faceCount": pa.int64(), "vertexCount": pa.int64(), "likeCount": pa.int64(), "viewCount": pa.int64(),
    "commentCount": pa.int64(), "animationCount": pa.int64(), "isAgeRestricted": pa.bool_(), "tags": TEXTS,
    "categories": TEXTS,
}  # fmt: skip
BAD_PATH = "object with an unusable path"


def object_path(shard: str, uid: str) -> str:
    return f"glbs/{shard}/{uid}.glb"


def read_objects(root: Path, cache_dir: Path, config: DownloadConfig) -> pa.Table:
    """Return Objaverse's objects as columns uid, shard, license, author, source; read off its files where they changed.

    The files that were read may be deleted afterwards; a file that is there and was changed is read again.
    """
    kept = cache_dir / "objaverse-1.0.parquet"
    if (table := _kept_objects(kept, root)) is not None:
        return table
    logger.info("reading the annotations of Objaverse, once; those that are not in %s are downloaded", root)
    paths = _read_json(fetch_file(OBJECT_PATHS, root, check_gzip, _read_json, config))
    shards, num_bad = _ids_by_shard(paths)
    del paths
    batches = [_annotated(shard, uids, root, config) for shard, uids in sorted(shards.items())]
    if not batches:
        raise ValueError(f"{root / OBJECT_PATHS} names no object; delete it, and it is downloaded again")
    table = pa.Table.from_batches(batches)
    for name in ("shard", "license", "author"):
        table = table.set_column(table.schema.get_field_index(name), name, table[name].dictionary_encode())
    files = {path.relative_to(root).as_posix(): _stamp(path) for path in _source_files(root)}
    facts = {"version": TABLE_VERSION, "dropped": {BAD_PATH: num_bad} if num_bad else {}, "files": files}
    table = table.replace_schema_metadata({name: json.dumps(value) for name, value in facts.items()})
    _write_aside(table, kept)
    return table


def check_gzip(path: Path) -> None:
    """Read a gzip file to its end, where its length and checksum stand; the package may have left half of one."""
    try:
        with gzip.open(path) as file:
            while file.read(2**20):
                if file.tell() > MAX_JSON:
                    raise DownloadError(f"it unpacks to more than {MAX_JSON:,} bytes")
    except EOFError as error:
        raise PassingError("cut off inside its gzip data") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DownloadError(f"the server sent something that is no whole gzip file ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with gzip.open(path) as file:
            content = json.loads(file.read(MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); delete it, and it is downloaded again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is JSON, but no object; delete it, and it is downloaded again")
    return content


def _ids_by_shard(paths: dict[str, Any]) -> tuple[dict[str, list[str]], int]:
    """Sort ids by the folder that their mesh and their annotations are in; paths of any other form are counted."""
    shards: dict[str, list[str]] = {}
    num_bad = 0
    for uid, path in paths.items():
        shard = path.split("/")[1] if isinstance(path, str) and is_object_path(path) else ""
        if shard and path == object_path(shard, uid):
            shards.setdefault(shard, []).append(uid)
        else:
            num_bad += 1
    return shards, num_bad


def _annotated(shard: str, uids: list[str], root: Path, config: DownloadConfig) -> pa.RecordBatch:
    annotations = _read_json(fetch_file(f"metadata/{shard}.json.gz", root, check_gzip, _read_json, config))
    facts = [_facts(uid, annotations.get(uid)) for uid in uids]
    columns = [pa.array(column, pa.string()) for column in zip(*facts, strict=True)]
    stated = [_stated(annotations.get(uid)) for uid in uids]
    columns += [pa.array([row[name] for row in stated], kind) for name, kind in ANNOTATIONS.items()]
    arrays = [pa.array(uids, pa.string()), pa.array([shard] * len(uids), pa.string()), *columns]
    return pa.RecordBatch.from_arrays(arrays, names=["uid", "shard", "license", "author", "source", *ANNOTATIONS])


def _stated(annotation: object) -> dict[str, Any]:
    """Read the columns that conditions may name off an annotation, whatever it may be; null where it states nothing."""
    annotation = annotation if isinstance(annotation, dict) else {}
    return {name: _READERS[kind](annotation.get(name)) for name, kind in ANNOTATIONS.items()}


def _count(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**62 else None


def _truth(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _names(value: object) -> list[str] | None:
    """Read tags or categories, which are objects with a name."""
    if not isinstance(value, list):
        return None
    names = [entry.get("name") for entry in value[:MAX_TAGS] if isinstance(entry, dict)]
    return [clean_text(name, 100) for name in names if isinstance(name, str)]


_READERS = {pa.int64(): _count, pa.bool_(): _truth, TEXTS: _names}


def _facts(uid: str, annotation: object) -> tuple[str, str, str]:
    """Read licence, author and source off an annotation, whatever it may be."""
    annotation = annotation if isinstance(annotation, dict) else {}
    user = annotation.get("user")
    user = user if isinstance(user, dict) else {}
    author = _text(user.get("displayName")) or _text(user.get("username"))
    profile, page = _url(user.get("profileUrl")), _url(annotation.get("viewerUrl"))
    return (
        _text(annotation.get("license")),
        f"{author} ({profile})" if author and profile else author or profile,
        page or f"https://sketchfab.com/3d-models/{uid}",
    )


def _text(value: object) -> str:
    return clean_text(value, 200) if isinstance(value, str) else ""


def _url(value: object) -> str:
    """Return a web address, or "" for anything that a page should not link to."""
    text = value if isinstance(value, str) else ""
    return text if re.fullmatch(r"https?://[!-~]{1,300}", text) else ""


def _kept_objects(path: Path, root: Path) -> pa.Table | None:
    """Return the table kept from an earlier reading, unless a source file changed since or it cannot be read."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        facts = {name.decode(): json.loads(value) for name, value in (table.schema.metadata or {}).items()}
    except (pa.ArrowException, OSError, ValueError):
        return None
    files = facts.get("files", {})
    is_current = all(files.get(p.relative_to(root).as_posix()) == _stamp(p) for p in _source_files(root))
    return table if is_current and facts.get("version") == TABLE_VERSION else None


def _source_files(root: Path) -> list[Path]:
    return [path for path in (root / OBJECT_PATHS, *sorted(root.glob("metadata/*.json.gz"))) if path.is_file()]


def _stamp(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _write_aside(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        pq.write_table(table, aside, compression="zstd")
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)
