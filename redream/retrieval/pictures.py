"""The vectors of renders in an index, of which some may still be missing.

A complete index has one row of `image.npy` per asset. In an index that was built from captions alone, `image_rows.npy`
names the assets whose rows `image.npy` has, and `<index>/pictures/` holds a log of what searches have added since. The
log has records of one size: key, state, reason, vectors, checksum. Writers take turns by a lock and only append; what a
killed one left half-written is cut off by the next, and a reader skips whatever its checksum does not confirm.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from jaxtyping import Bool, Float, Int

from redream.files import sync

ADDED, REFUSED = 1, 2  # states of a record
KEY_BYTES, REASON_BYTES, SUM_BYTES = 32, 400, 16
LOG_FOLDER, LOG = "pictures", "pictures.log"


class PictureLog:
    """The log of an index's added pictures; any number of processes may append to it and read it."""

    def __init__(self, index_dir: str | Path, num_views: int, dim: int) -> None:
        self.path = Path(index_dir, LOG_FOLDER, LOG)
        self._dtype = np.dtype(
            [
                ("key", f"S{KEY_BYTES}"),
                ("state", "u1"),
                ("reason", f"S{REASON_BYTES}"),
                ("vectors", "<f2", (num_views, dim)),
                ("sum", f"V{SUM_BYTES}"),
            ]
        )

    @property
    def lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"))

    @property
    def size(self) -> int:
        """Bytes of the log, which change with every picture."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def add(self, key: str, vectors: Float[np.ndarray, "views dim"]) -> None:
        """Append the vectors of an asset's renders."""
        self._append(self._record(key, ADDED, "", vectors))

    def refuse(self, key: str, reason: str) -> None:
        """Append that an asset's mesh cannot be used, so that nobody fetches it again."""
        self._append(self._record(key, REFUSED, reason, None))

    def read(self) -> np.ndarray:
        """Return the whole records, each key's last one; the columns are `key`, `state`, `reason`, `vectors`."""
        if not self.path.is_file():
            return np.zeros(0, self._dtype)
        records = np.fromfile(self.path, self._dtype, count=self.size // self._dtype.itemsize)
        records = records[[_checksum(record) == record["sum"].tobytes() for record in records]]
        _, last = np.unique(records["key"][::-1], return_index=True)
        return records[np.sort(len(records) - 1 - last)]

    def forget_added(self) -> None:
        """Drop the pictures, which an index now holds itself, and keep the refusals. The caller holds the lock."""
        records = self.read()
        aside = self.path.with_suffix(".aside")
        records[records["state"] == REFUSED].tofile(aside)
        sync(aside)
        os.replace(aside, self.path)
        sync(self.path.parent)

    def _record(self, key: str, state: int, reason: str, vectors: np.ndarray | None) -> np.ndarray:
        record = np.zeros(1, self._dtype)
        record["key"], record["state"] = key.encode(), state
        record["reason"] = reason.encode()[:REASON_BYTES]
        if vectors is not None:
            record["vectors"] = vectors
        record["sum"] = np.void(_checksum(record[0]))
        return record

    def _append(self, record: np.ndarray) -> None:
        with self.lock, self.path.open("ab") as file:
            whole = self.size // self._dtype.itemsize * self._dtype.itemsize
            file.truncate(whole)  # what a killed writer left of its record
            file.write(record.tobytes())
            file.flush()
            os.fsync(file.fileno())


def _checksum(record: np.void) -> bytes:
    return hashlib.blake2b(record.tobytes()[:-SUM_BYTES], digest_size=SUM_BYTES).digest()


class Pictures:
    """The vectors of renders by the rows of an index.

    Args:
        vectors: of the assets that the index itself has pictures of.
        rows: which assets these are; None for all.
        keys: of all assets.
        log: of what was added since; None for a complete index.
    """

    def __init__(
        self,
        vectors: Float[np.ndarray, "known views dim"],
        rows: Int[np.ndarray, " known"] | None,
        keys: pa.ChunkedArray,
        log: PictureLog | None,
    ) -> None:
        self._vectors, self._keys, self.log = vectors, keys, log
        self._place: Int[np.ndarray, " assets"] | None = None  # of each row: in `vectors`, else behind them in the log
        if rows is not None:
            self._place = np.full(len(keys), -1, np.int64)
            self._place[rows] = np.arange(len(rows))
        self._added: np.ndarray = vectors[:0]
        self.refused: dict[int, str] = {}  # rows whose meshes cannot be used, with the reasons
        self.refresh()

    @property
    def num_known(self) -> int:
        """How many assets the index itself has pictures of."""
        return len(self._vectors)

    @property
    def is_complete(self) -> bool:
        return self._place is None

    def refresh(self) -> None:
        """Read what was added to the log meanwhile, by this process or another."""
        if self.log is None or self._place is None:
            return
        records = self.log.read()
        in_log = pa.array(np.char.decode(records["key"], "ascii", "replace").tolist(), pa.string())
        found = pc.index_in(self._keys, value_set=in_log).fill_null(-1).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        is_added = found >= 0
        is_added[is_added] = records["state"][found[is_added]] == ADDED
        self._added = records["vectors"]
        self._place[is_added] = len(self._vectors) + found[is_added]
        refused = np.flatnonzero((found >= 0) & ~is_added & (self._place < 0))
        self.refused = {int(row): records["reason"][found[row]].decode(errors="replace") for row in refused}

    def has(self, rows: Int[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
        """Tell which assets have pictures."""
        return np.ones(len(rows), bool) if self._place is None else self._place[rows] >= 0

    def rows(self) -> Int[np.ndarray, " pictured"]:
        """Return the rows of all assets that have pictures."""
        return np.arange(len(self._keys)) if self._place is None else np.flatnonzero(self._place >= 0)

    def of(self, rows: Int[np.ndarray, " k"] | Sequence[int] | slice) -> Float[np.ndarray, "k views dim"]:
        """Return the vectors of assets that have pictures, as float16; of a complete index without copying a slice."""
        if self._place is None:
            return self._vectors[rows]
        places, num_known = self._place[rows], len(self._vectors)
        gathered = np.empty((len(places), *self._vectors.shape[1:]), np.float16)
        is_known = places < num_known
        gathered[is_known] = self._vectors[places[is_known]]
        gathered[~is_known] = self._added[places[~is_known] - num_known]
        return gathered
