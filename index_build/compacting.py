"""Put the pictures that searches have added to an index into the index itself."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from redream.retrieval.index_files import (
    IMAGE_ROWS,
    IndexManifest,
    IndexMismatch,
    check_files,
    content_hash,
    drop_other_generations,
    new_generation,
    read_assets,
    read_manifest,
    read_pictures,
    seal_files,
    write_manifest,
)


def compact(index_dir: str | Path) -> tuple[IndexManifest, int]:
    """Write a new generation with the added pictures, and empty their log; returns how many there were.

    A kill at any moment leaves the old index or the new one. Searches may go on meanwhile; adding pictures waits.
    """
    manifest = read_manifest(index_dir)
    if manifest.has_all_pictures:
        return manifest, 0
    check_files(manifest, fully=True)
    keys = read_assets(manifest)["key"]
    pictures = read_pictures(manifest, keys)
    assert pictures.log is not None
    with pictures.log.lock:
        if read_manifest(index_dir).generation != manifest.generation:
            raise IndexMismatch(f"index {index_dir} was built again meanwhile; compact it again")
        pictures.refresh()
        rows = pictures.rows()
        num_added = len(rows) - pictures.num_known
        generation = new_generation(Path(index_dir))
        try:
            _write(manifest, generation, pictures.of(rows), rows, len(keys))
            files = seal_files(generation)
            changed = replace(manifest, generation=generation.name, files=files, content_hash=content_hash(files))
            write_manifest(changed)
        except BaseException:
            shutil.rmtree(generation, ignore_errors=True)
            raise
        pictures.log.forget_added()
    drop_other_generations(changed)
    return changed, num_added


def _write(manifest: IndexManifest, generation: Path, vectors: np.ndarray, rows: np.ndarray, num_assets: int) -> None:
    for name in manifest.files:
        if name not in ("image.npy", IMAGE_ROWS):
            (generation / name).parent.mkdir(exist_ok=True)
            _link(manifest.folder / name, generation / name)
    np.save(generation / "image.npy", vectors)
    if len(rows) < num_assets:
        np.save(generation / IMAGE_ROWS, rows)


def _link(source: Path, target: Path) -> None:
    """Share a file that never changes, or copy it if the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
