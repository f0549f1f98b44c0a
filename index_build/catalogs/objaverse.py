"""Objaverse 1.0 (Deitke et al., 2023, arXiv 2212.08051) with captions of Cap3D (Luo et al., 2023, arXiv 2306.07279).

Captions are joined to objects by id, and whatever is not used is counted. Ids are 32 or 64 hexadecimal digits or 26 to
27 letters of either case, and nothing here depends on it. All columns stay in Arrow; an `Asset` is made when asked for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import huggingface_hub
import numpy as np
import objaverse
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from index_build.catalogs.captions import read_captions
from index_build.catalogs.catalog import Catalog, license_reason
from index_build.catalogs.objaverse_objects import ANNOTATIONS, object_path, read_objects
from redream.records import Asset
from redream.retrieval.licenses import is_allowed
from redream.settings import DownloadConfig

CAPTION_FILE = "Cap3D_automated_Objaverse_full.csv"
BATCH = 65_536  # rows

NOT_OBJAVERSE = "not in Objaverse 1.0"
DUPLICATE = "id seen before"
NO_CAPTION = "object without a caption"

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>.+))?")


class AssetTable(Sequence[Asset]):
    """Assets as Arrow columns; each is made when it is asked for."""

    def __init__(self, table: pa.Table, root: str) -> None:
        self.table = table.combine_chunks()
        self.root = root

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> Asset: ...
    @overload
    def __getitem__(self, index: slice) -> AssetTable: ...
    def __getitem__(self, index: int | slice) -> Asset | AssetTable:
        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
            return AssetTable(self.table.take(rows), self.root)
        row = range(len(self))[index]
        return next(self._assets(self.table.slice(row, 1)))

    def __iter__(self) -> Iterator[Asset]:
        for batch in self.table.to_batches(max_chunksize=BATCH):
            yield from self._assets(pa.Table.from_batches([batch]))

    def _assets(self, table: pa.Table) -> Iterator[Asset]:
        names = ("uid", "shard", "caption", "source", "license", "author")
        columns = (table.column(name).to_pylist() for name in names)
        for uid, shard, caption, source, license_, author in zip(*columns, strict=True):
            yield Asset(
                asset_id=uid,
                mesh_path=f"{self.root}/{object_path(shard, uid)}",
                caption=caption,
                source=source,
                license=license_,
                author=author,
            )


def open_objaverse(
    captions: str | None,
    licenses: tuple[str, ...],
    config: DownloadConfig,
    objaverse_dir: str | Path | None,
    cache_dir: Path,
) -> Catalog:
    """Join Objaverse's objects with captions; objects without one cannot be found by text and are dropped."""
    if not captions:
        raise ValueError("objaverse needs captions: a Cap3D CSV, or a hub id such as tiange/Cap3D@REVISION")
    root = Path(objaverse_dir or Path(objaverse.BASE_PATH) / "hf-objaverse-v1").expanduser().resolve()
    caption_file = locate_captions(captions)
    dropped: Counter[str] = Counter()
    objects = read_objects(root, cache_dir, config)
    dropped.update(json.loads((objects.schema.metadata or {}).get(b"dropped", b"{}")))
    table = _joined(objects, caption_file, dropped)
    table = _allowed(table, licenses, dropped)
    dropped = Counter({reason: count for reason, count in dropped.items() if count})
    assets = AssetTable(table, str(root))
    return Catalog(
        name="objaverse",
        root=str(root),
        assets=assets,
        dropped=dict(dropped),
        digest=object_digest,
        annotations=assets.table.select(list(ANNOTATIONS)),
    )


def object_digest(asset: Asset) -> str:
    """Name an object's content without having it: an id of Objaverse 1.0 never gets another mesh."""
    return f"objaverse-1.0/{asset.asset_id}"


def locate_captions(captions: str) -> Path:
    """Return a local caption file, or one from a data set of the hub: `owner/name[@revision][:file]`."""
    path = Path(captions).expanduser()
    match = _HUB_ID.fullmatch(captions)
    if path.is_file() or match is None or (captions.endswith(".csv") and not match["file"]):
        if not path.is_file():
            raise ValueError(f"there is no caption file {captions}, nor is it a hub id (owner/name@revision)")
        return path
    file = match["file"] or CAPTION_FILE
    try:
        return Path(
            huggingface_hub.hf_hub_download(match["repo"], file, repo_type="dataset", revision=match["revision"])
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"captions {captions}: {file} cannot be had from the hub ({cause})") from error


def _joined(objects: pa.Table, caption_file: Path, dropped: Counter[str]) -> pa.Table:
    """Give each object its first caption; the objects keep their order."""
    rows = read_captions(caption_file, dropped)
    batches = []
    while batch := [(row.uid, row.caption) for row in islice(rows, BATCH)]:
        columns = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(columns, names=["uid", "caption"]))
    captions = pa.Table.from_batches(batches)
    # Row of `objects`, -1 where it has none.
    found = _look_up("index_in", captions["uid"], objects["uid"].combine_chunks()).fill_null(-1).to_numpy()
    known = np.flatnonzero(found >= 0)
    object_rows, firsts = np.unique(found[known], return_index=True)
    dropped[NOT_OBJAVERSE] += len(found) - len(known)
    dropped[DUPLICATE] += len(known) - len(object_rows)
    dropped[NO_CAPTION] += len(objects) - len(object_rows)
    return objects.take(object_rows).append_column("caption", captions["caption"].take(known[firsts]))


def _allowed(table: pa.Table, licenses: tuple[str, ...], dropped: Counter[str]) -> pa.Table:
    if not licenses:
        return table
    counts = {pair["values"]: pair["counts"] for pair in table["license"].value_counts().to_pylist()}
    passing = [text for text in counts if is_allowed(text, licenses)]
    for text in sorted(counts.keys() - set(passing)):
        dropped[license_reason(text)] += counts[text]
    return table.filter(_look_up("is_in", table["license"].cast(pa.string()), pa.array(passing, pa.string())))


def _look_up(function: str, values: pa.ChunkedArray, value_set: pa.Array) -> pa.ChunkedArray:
    return pc.call_function(function, [values], pc.SetLookupOptions(value_set=value_set, skip_nulls=False))
