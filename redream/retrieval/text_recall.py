"""Text recall: the rows nearest to a query, by ScaNN (Guo et al., 2020) where there are many, exactly where few.

The rule, from the number of vectors: up to `EXACT_UP_TO` every vector is compared, in milliseconds and with nothing to
store. Above it ScaNN scores codes of anisotropic quantisation (4 bits per `DIMS_PER_BLOCK` dimensions) of all vectors,
and the best few hundred are compared again by their float16 vectors, which stay on disk and are mapped. There is no
tree, because a tree loses true neighbours to save milliseconds that one query per run does not need; and the second
comparison is ours and not ScaNN's `reorder`, which would keep all vectors in memory as float32 (docs/index.md has the
table this was chosen from). ScaNN answers one query in one thread; the codes are cut into a part for each core.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.lib.format import write_array_header_1_0

logger = logging.getLogger(__name__)

EXACT_UP_TO = 10_000
DIMS_PER_BLOCK = 2
ANISOTROPIC_THRESHOLD = 0.2  # ScaNN's own advice
TRAINING_SAMPLE = 20_000  # by default ScaNN trains on all rows: five times as long for the same recall
MIN_CANDIDATES = 500  # vectors that are compared again, at least
MAX_PARTS = 8  # of the codes, each scored by a core; more would wait for the memory
ROWS_PER_BLOCK = 16_384  # of an exact search, so that its float32 copy stays small

EXACT, SCANN = "exact", "scann-ah"

# ScaNN's own form of the codes spends a byte on 4 bits; ours is half as large.
SCANN_FILES = ("scann_config.pb", "ah_codebook.pb", "codes.npy")
# Given here, because ScaNN would otherwise follow a list of paths in the folder, and read a pickle that lies beside it.
_SCANN_ASSETS = """
assets {{ asset_type: AH_CENTERS asset_path: "ah_codebook.pb" }}
assets {{ asset_type: AH_DATASET_NPY asset_path: "{codes}" }}
"""

Found = tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]
Recall = Callable[[Float[np.ndarray, " dim"], int], Found]


def train_recall(vectors: Float[np.ndarray, "rows dim"], folder: Path) -> str:
    """Write what searching the vectors needs beside them to a new folder, and return the name of the method."""
    if len(vectors) <= EXACT_UP_TO:
        return EXACT
    scann = _scann()
    if scann is None:
        return EXACT
    num_default = 100  # what a query without a number would get; ours always name it
    builder = scann.builder(vectors.astype(np.float32), num_default, "dot_product").score_ah(
        DIMS_PER_BLOCK,
        anisotropic_quantization_threshold=ANISOTROPIC_THRESHOLD,
        training_sample_size=min(TRAINING_SAMPLE, len(vectors)),
    )
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as written:
        with _quiet_stderr():
            builder.build().serialize(written, relative_path=True)
        np.save(folder / "codes.npy", pack_codes(np.load(Path(written, "hashed_dataset.npy"), mmap_mode="r")))
        for name in SCANN_FILES[:2]:
            os.replace(Path(written, name), folder / name)
    return SCANN


def open_recall(vectors: Float[np.ndarray, "rows dim"], folder: Path, method: str) -> tuple[Recall, str]:
    """Return a function (query, k) -> (rows, cosines) of the k nearest rows, and the name of its method here."""
    scann = _scann() if method == SCANN else None
    if scann is None:
        if len(vectors) > EXACT_UP_TO:
            logger.warning("no ScaNN for this index: each search compares all %d vectors, in seconds", len(vectors))
        return lambda query, num: exact_nearest(vectors, query, num), EXACT
    num_blocks = -(-vectors.shape[1] // DIMS_PER_BLOCK)
    codes = read_array(folder / "codes.npy", np.uint8, (len(vectors), -(-num_blocks // 2)))

    def open_part(begin: int, end: int) -> Any:
        with os.fdopen(os.memfd_create("codes"), "wb") as file:
            write_unpacked_codes(codes[begin:end], num_blocks, file)
            file.flush()
            assets = _SCANN_ASSETS.format(codes=f"/proc/self/fd/{file.fileno()}")
            return scann.scann_pybind.ScannNumpy(str(folder), assets)

    num_parts = min(len(os.sched_getaffinity(0)), MAX_PARTS)
    bounds = np.linspace(0, len(vectors), num_parts + 1).astype(int).tolist()
    pool = ThreadPoolExecutor(num_parts, thread_name_prefix="recall")
    begins, ends = bounds[:-1], bounds[1:]
    parts = list(pool.map(open_part, begins, ends))

    def recall(query: Float[np.ndarray, " dim"], num: int) -> Found:
        num_candidates = min(max(MIN_CANDIDATES, 5 * num), len(vectors))
        asked = query.astype(np.float32)

        def search(part: Any, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
            rows, scores = part.search(asked, min(num_candidates, end - begin), -1, -1)
            return begin + rows.astype(np.int64), scores

        found = list(pool.map(search, parts, begins, ends))
        rows = np.concatenate([rows for rows, _ in found])
        scores = np.concatenate([scores for _, scores in found])
        candidates = rows[np.lexsort((rows, -scores))[:num_candidates]]  # as many on every machine
        return nearest_among(vectors, np.sort(candidates), query, num)

    return recall, SCANN


def nearest_among(
    vectors: Float[np.ndarray, "rows dim"],
    rows: Int[np.ndarray, " candidates"],
    query: Float[np.ndarray, " dim"],
    num: int,
) -> Found:
    """Return the `num` nearest of some rows by exact cosine; equal ones in the order of the rows."""
    cosines = np.concatenate(
        [
            vectors[rows[start : start + ROWS_PER_BLOCK]].astype(np.float32) @ query.astype(np.float32)
            for start in range(0, len(rows), ROWS_PER_BLOCK)
        ]
        or [np.zeros(0, np.float32)]
    )
    order = np.lexsort((rows, -cosines))[:num]
    return rows[order], cosines[order]


def exact_nearest(vectors: Float[np.ndarray, "rows dim"], query: Float[np.ndarray, " dim"], num: int) -> Found:
    """Return the `num` nearest of all rows."""
    cosines = np.concatenate([block @ query.astype(np.float32) for block in float_blocks(vectors)])
    order = np.argsort(-cosines, kind="stable")[:num]
    return order, cosines[order]


def allowed_nearest(
    recall: Recall,
    vectors: Float[np.ndarray, "rows dim"],
    is_allowed: Bool[np.ndarray, " rows"],
    query: Float[np.ndarray, " dim"],
    num: int,
) -> Found:
    """Return the `num` nearest of the allowed rows.

    More rows are recalled than wanted, by the share that is allowed; where they still do not hold enough allowed ones,
    every allowed row is compared.
    """
    allowed = np.flatnonzero(is_allowed)
    num = min(num, len(allowed))
    if num and len(allowed) > EXACT_UP_TO:
        rows, cosines = recall(query, min(2 * num * len(vectors) // len(allowed), len(vectors)))
        kept = is_allowed[rows]
        if kept.sum() >= num:
            return rows[kept][:num], cosines[kept][:num]
    return nearest_among(vectors, allowed, query, num)


def float_blocks(vectors: Float[np.ndarray, "rows dim"]) -> Iterator[Float[np.ndarray, "block dim"]]:
    for start in range(0, len(vectors), ROWS_PER_BLOCK):
        yield np.asarray(vectors[start : start + ROWS_PER_BLOCK], dtype=np.float32)


def pack_codes(codes: UInt8[np.ndarray, "rows blocks"]) -> UInt8[np.ndarray, "rows packed"]:
    """Put two codes of 4 bits into each byte, the first into its lower half."""
    packed = codes[:, 0::2].copy()
    packed[:, : codes.shape[1] // 2] |= codes[:, 1::2] << 4
    return packed


def write_unpacked_codes(packed: UInt8[np.ndarray, "rows packed"], num_blocks: int, file: io.BufferedIOBase) -> None:
    """Write packed codes as an .npy file with a byte for each."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(packed), num_blocks)}
    write_array_header_1_0(file, header)
    for start in range(0, len(packed), ROWS_PER_BLOCK):
        pairs = packed[start : start + ROWS_PER_BLOCK].astype("<u2")
        pairs |= pairs << 4
        pairs &= 0x0F0F
        file.write(pairs.view(np.uint8)[:, :num_blocks].tobytes())


def read_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Map an .npy file of an expected type and shape.

    Raises:
        ValueError: the file holds something else; the message says what.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path.name} is unreadable ({error})") from error
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{path.name} holds {array.dtype} of shape {array.shape} instead of {shape}")
    return array


def _scann() -> Any | None:
    try:
        from scann.scann_ops.py import scann_ops_pybind  # no wheel on macOS, Windows and arm64
    except ImportError:
        return None
    return scann_ops_pybind


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep ScaNN's training log, which no setting silences, from the terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
