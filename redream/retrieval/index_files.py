"""The files of an index, in formats that others read, and how what is damaged is recognised before it is believed.

    manifest.json            what the index is, and the size and SHA-256 of every file; names the generation
    generation-<random>/     the files of one build, never changed once the manifest names it
        assets.arrow         Arrow IPC: the fields of `Asset` as text, and `key`, the digest of what was embedded
        refused.arrow        Arrow IPC: `asset_id`, `key` and `reason` of what could not be embedded
        text.npy             float16 [assets, dim]
        image.npy            float16 [assets, views, dim]; one view is the mean of the renders
        annotations.arrow    what the catalog says of its assets beside that, for conditions; not in every index
        image_rows.npy       only where some assets have no picture yet: int64, whose rows image.npy has
        scann/               only above `EXACT_UP_TO` rows: codes and codebook
        lexical/             the words of the captions (`lexical_recall.py`); an index of format 3 has none

    pictures/                what searches added to an index without all of its pictures (`pictures.py`)

All are memory-mapped. A build writes a new generation beside the old and then replaces the manifest by one rename:
readers see the old index or the new, and those who have the old one open keep it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float16

from redream.files import put_in_place, sync
from redream.records import Asset
from redream.retrieval.lexical_recall import LEXICAL_FILES
from redream.retrieval.pictures import PictureLog, Pictures
from redream.retrieval.text_recall import EXACT, SCANN_FILES, read_array

FORMAT_VERSION, READABLE = 5, (3, 4, 5)
MANIFEST = "manifest.json"
VECTORS = ("text.npy", "image.npy")
CONTENT = ("assets.arrow", *VECTORS)  # what the content hash covers
LEXICAL = frozenset(f"lexical/{name}" for name in LEXICAL_FILES)
IMAGE_ROWS, ANNOTATIONS = "image_rows.npy", "annotations.arrow"
KNOWN_FILES = {*CONTENT, IMAGE_ROWS, ANNOTATIONS, "refused.arrow", *(f"scann/{name}" for name in SCANN_FILES), *LEXICAL}
_GENERATION = re.compile(r"generation-[0-9a-f]{8}")

# Opening reads all of the small files and of those that C++ parses, but of vectors only a sample: what is wrong in a
# vector gives a wrong cosine and nothing worse, and reading gigabytes would take longer than the search.
FULLY_HASHED_BYTES = 64 * 2**20
SAMPLE_BLOCKS, SAMPLE_BLOCK_BYTES = 64, 64 * 2**10

ASSET_FIELDS = tuple(f.name for f in fields(Asset) if f.name != "border")  # the root of the index, today's
ASSET_SCHEMA = pa.schema([(name, pa.string()) for name in (*ASSET_FIELDS, "key")])
_SCHEMA_3 = pa.schema([field for field in ASSET_SCHEMA if field.name != "front_axis"])  # of an index of format 3
ANNOTATION_TYPES = (pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.list_(pa.string()))
REFUSED_SCHEMA = pa.schema([(name, pa.string()) for name in ("asset_id", "key", "reason")])


class IndexMismatch(ValueError):
    """An index that cannot answer: damaged, incomplete, or made with another CLIP model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSeal:
    """`sample_sha256` covers 64 blocks of the file, for a quick look."""

    size: int
    sha256: str
    sample_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexManifest:
    """What an index holds and how it was made; `content_hash` covers its assets and embeddings, and no path outside."""

    index_dir: str
    generation: str
    catalog: str
    clip_model: str  # `Clip.identity`
    embedding_dim: int
    num_assets: int
    num_refused: int  # assets that could not be embedded
    dropped: dict[str, int]  # what the catalog held that is no asset, by reason
    num_views: int  # image vectors per asset
    recall: str  # how text recall was prepared
    content_hash: str
    asset_root: str  # folder that the mesh paths start from, as seen from the index's own
    created: str
    files: dict[str, FileSeal]
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.index_dir, self.generation)

    @property
    def asset_folder(self) -> Path:
        """Where the meshes lie; it moves with the index where `asset_root` is relative."""
        return Path(os.path.abspath(Path(self.index_dir, self.asset_root)))

    @property
    def has_words(self) -> bool:
        """Whether the words of the captions can be searched."""
        return not LEXICAL.isdisjoint(self.files)

    @property
    def has_all_pictures(self) -> bool:
        return IMAGE_ROWS not in self.files

    @property
    def num_bytes(self) -> int:
        return sum(seal.size for seal in self.files.values())


class AssetRows(Sequence[Asset]):
    """Assets as rows of a mapped table; each is made when it is asked for."""

    def __init__(self, table: pa.Table, asset_root: str | Path) -> None:
        self.table = table
        self._root = str(asset_root)

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, row: int) -> Asset: ...
    @overload
    def __getitem__(self, row: slice) -> list[Asset]: ...
    def __getitem__(self, row: int | slice) -> Asset | list[Asset]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        values = {name: self.table[name][row % len(self)].as_py() for name in ASSET_FIELDS}
        mesh_path = os.path.join(self._root, *PurePosixPath(values["mesh_path"]).parts)
        return replace(Asset(**values), mesh_path=mesh_path, border=self._root)

    def places(self, asset_ids: Sequence[str]) -> list[int]:
        """Return the rows of assets by their ids, or raise `ValueError` with the ids nearest to an unknown one."""
        column = self.table["asset_id"]
        places = pc.index_in(pa.array(asset_ids, pa.string()), value_set=column.combine_chunks()).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
        for asset_id, place in zip(asset_ids, places, strict=True):
            if place is None:
                close = difflib.get_close_matches(asset_id, column.to_pylist(), n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(close)}?" if close else "`redream search` shows their ids"
                raise ValueError(f"the index has no asset {asset_id!r}; {hint}")
        return places


def read_manifest(index_dir: str | Path) -> IndexManifest:
    """Read an index's manifest, or raise `IndexMismatch`."""
    index_dir = Path(index_dir)
    path = index_dir / MANIFEST
    if not path.is_file():
        raise IndexMismatch(f"{index_dir} is no index: it has no {MANIFEST}; build one with `redream index build`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
        raise IndexMismatch(f"index {index_dir} is damaged: its manifest is not JSON ({error}); rebuild it") from error
    version = content.pop("format_version", None) if isinstance(content, dict) else None
    if version not in READABLE:
        raise IndexMismatch(f"index {index_dir} has format {version!r}, not {FORMAT_VERSION}; rebuild it")
    if wrong := _wrong_field(content):
        raise IndexMismatch(f"index {index_dir} is damaged: its manifest {wrong}; rebuild it")
    content["files"] = {name: FileSeal(**seal) for name, seal in content["files"].items()}
    return IndexManifest(index_dir=str(index_dir), **content)


def write_manifest(manifest: IndexManifest) -> None:
    """Write or replace an index's manifest by one rename, which is what makes its generation the index."""
    content = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    del content["index_dir"]  # the folder may move
    path = Path(manifest.index_dir, MANIFEST)
    aside = path.with_name(f".{MANIFEST}.{uuid.uuid4().hex[:8]}")
    aside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    put_in_place(aside, path)


def new_generation(index_dir: Path) -> Path:
    """Make a folder for a build beside those that readers may have open."""
    folder = index_dir / f"generation-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    return folder


def drop_other_generations(manifest: IndexManifest) -> None:
    """Remove what earlier or broken builds left; who has such a file open keeps it."""
    for path in Path(manifest.index_dir).iterdir():
        if _GENERATION.fullmatch(path.name) and path.name != manifest.generation:
            shutil.rmtree(path, ignore_errors=True)


def seal_files(generation: Path) -> dict[str, FileSeal]:
    """Hash the files of a generation once the disk has them: the manifest's rename must not come before them."""
    seals = {}
    for path in sorted(path for path in generation.rglob("*") if path.is_file()):
        sync(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        seal = FileSeal(size=path.stat().st_size, sha256=sha256, sample_sha256=_sample_sha256(path))
        seals[path.relative_to(generation).as_posix()] = seal
    for folder in [generation, *(path for path in generation.rglob("*") if path.is_dir())]:
        sync(folder)
    return seals


def content_hash(files: dict[str, FileSeal]) -> str:
    names = (*CONTENT, *(name for name in (IMAGE_ROWS, ANNOTATIONS) if name in files))
    return hashlib.sha256("".join(files[name].sha256 for name in names).encode()).hexdigest()


def check_files(manifest: IndexManifest, fully: bool = False) -> None:
    """Compare the files with the manifest: all of the small ones and a sample of the large, or every byte.

    Raises:
        IndexMismatch: a file is missing or differs; the message names it.
    """
    where = f"index {manifest.index_dir} is damaged:"
    needed = {*CONTENT, "refused.arrow"}
    if manifest.recall != EXACT:
        needed |= {f"scann/{name}" for name in SCANN_FILES}
    if manifest.has_words:
        needed |= LEXICAL
    if lacking := sorted(needed - set(manifest.files)):
        raise IndexMismatch(f"{where} its manifest lists no {lacking[0]}; rebuild it")
    if content_hash(manifest.files) != manifest.content_hash:
        raise IndexMismatch(f"{where} the hashes in its manifest contradict each other; rebuild it")
    for name, seal in manifest.files.items():
        path = manifest.folder / name
        if path.is_symlink() or not path.is_file():
            raise IndexMismatch(f"{where} it has no {name}; rebuild it")
        if path.stat().st_size != seal.size:
            raise IndexMismatch(f"{where} {name} has {path.stat().st_size:,} bytes, not {seal.size:,}; rebuild it")
        is_parsed = name not in VECTORS
        if fully or is_parsed or seal.size <= FULLY_HASHED_BYTES:
            with path.open("rb") as file:
                is_whole = hashlib.file_digest(file, "sha256").hexdigest() == seal.sha256
        else:
            is_whole = _sample_sha256(path) == seal.sample_sha256
        if not is_whole:
            raise IndexMismatch(f"{where} {name} differs from what was written; rebuild it")


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Map an Arrow file; what does not hold text in the columns of the schema raises `IndexMismatch`."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise IndexMismatch(
            f"index {path.parent.parent} is damaged: {path.name} is unreadable ({error}); rebuild it"
        ) from error
    if not table.schema.equals(schema) or any(column.null_count for column in table.columns):
        raise IndexMismatch(f"index {path.parent.parent} is damaged: {path.name} has other columns; rebuild it")
    return table


def read_assets(manifest: IndexManifest) -> pa.Table:
    """Map the assets of an index; those of format 3 name no front."""
    path = manifest.folder / "assets.arrow"
    if manifest.has_words:
        return read_table(path, ASSET_SCHEMA)
    table = read_table(path, _SCHEMA_3)
    no_front = pa.array([""] * table.num_rows, pa.string())
    return table.add_column(ASSET_SCHEMA.get_field_index("front_axis"), "front_axis", no_front)


def read_annotations(manifest: IndexManifest) -> dict[str, pa.ChunkedArray]:
    """Map what a catalog says of its assets, by column; nothing if it says nothing."""
    if ANNOTATIONS not in manifest.files:
        return {}
    try:
        table = pa.ipc.open_file(pa.memory_map(str(manifest.folder / ANNOTATIONS))).read_all()
        table.validate(full=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise IndexMismatch(
            f"index {manifest.index_dir} is damaged: {ANNOTATIONS} is unreadable ({error}); rebuild it"
        ) from error
    if table.num_rows != manifest.num_assets or any(field.type not in ANNOTATION_TYPES for field in table.schema):
        raise IndexMismatch(f"index {manifest.index_dir} is damaged: {ANNOTATIONS} has other columns; rebuild it")
    return {name: table[name] for name in table.column_names}


def write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1 << 16)


def asset_table(assets: Iterable[Asset], keys: Sequence[str], asset_root: str | Path) -> pa.Table:
    """Return assets and their keys as a table, with mesh paths relative to `asset_root`."""
    rows = [tuple(getattr(asset, name) for name in ASSET_FIELDS) for asset in assets]
    columns = dict(zip(ASSET_FIELDS, map(list, zip(*rows, strict=True)), strict=True))
    columns["mesh_path"] = [Path(os.path.relpath(path, asset_root)).as_posix() for path in columns["mesh_path"]]
    return pa.table({**columns, "key": list(keys)}, schema=ASSET_SCHEMA)


def refused_table(refused: Sequence[tuple[str, str, str]]) -> pa.Table:
    """Return (asset_id, key, reason) of what was refused as a table."""
    return pa.Table.from_pylist(
        [dict(zip(REFUSED_SCHEMA.names, row, strict=True)) for row in refused], schema=REFUSED_SCHEMA
    )


def read_vectors(path: Path, shape: tuple[int, ...]) -> Float16[np.ndarray, "..."]:
    """Map vectors of the expected shape, or raise `IndexMismatch`."""
    try:
        return read_array(path, np.float16, shape)
    except ValueError as error:
        raise IndexMismatch(f"index {path.parent.parent} is damaged: {error}; rebuild it") from error


def read_pictures(manifest: IndexManifest, keys: pa.ChunkedArray) -> Pictures:
    """Map the vectors of an index's renders, with those that were added since it was built."""
    folder, num_views, dim = manifest.folder, manifest.num_views, manifest.embedding_dim
    if manifest.has_all_pictures:
        return Pictures(read_vectors(folder / "image.npy", (len(keys), num_views, dim)), None, keys, None)
    try:
        rows = np.load(folder / IMAGE_ROWS, allow_pickle=False)
        if rows.dtype != np.int64 or rows.ndim != 1 or (np.diff(rows) <= 0).any():
            raise ValueError(f"{IMAGE_ROWS} holds something else than rows in their order")
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(keys):
            raise ValueError(f"{IMAGE_ROWS} names rows that do not exist")
    except (ValueError, OSError, EOFError) as error:
        raise IndexMismatch(f"index {manifest.index_dir} is damaged: {error}; rebuild it") from error
    vectors = read_vectors(folder / "image.npy", (len(rows), num_views, dim))
    return Pictures(vectors, rows, keys, PictureLog(manifest.index_dir, num_views, dim))


def _sample_sha256(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for start in np.linspace(0, max(size - SAMPLE_BLOCK_BYTES, 0), SAMPLE_BLOCKS, dtype=np.int64):
            file.seek(int(start))
            digest.update(file.read(SAMPLE_BLOCK_BYTES))
    return digest.hexdigest()


def _wrong_field(content: dict[str, Any]) -> str:
    """Say what is wrong with a manifest's fields; nothing if they can be used."""
    expected = {f.name: f.type for f in fields(IndexManifest) if f.name != "index_dir"}
    if set(content) != set(expected):
        return f"lacks or adds {', '.join(sorted(set(content) ^ set(expected)))}"
    kinds = {"str": str, "int": int, "dict": dict}
    for name, kind in expected.items():
        if not isinstance(content[name], kinds[str(kind).partition("[")[0]]) or isinstance(content[name], bool):
            return f"has {name} = {str(content[name])[:60]}"
    if not _GENERATION.fullmatch(content["generation"]):
        return f"names the generation {content['generation'][:60]!r}"
    for name, seal in content["files"].items():
        if name not in KNOWN_FILES:
            return f"names the unknown file {name[:60]!r}"
        is_seal = isinstance(seal, dict) and set(seal) == {f.name for f in fields(FileSeal)}
        if not is_seal or not isinstance(seal["size"], int):
            return f"says too little about {name}"
    return ""
