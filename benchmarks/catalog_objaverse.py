"""Time and memory of opening Objaverse's catalog at full size: `python -m benchmarks.catalog_objaverse FOLDER`.

The cache in FOLDER is synthetic and made where it is missing: 798,759 objects in 160 shards, and 1,002,422 captions in
Cap3D's form, of which 769,000 are of these objects. Annotations are short, but for one shard in which they have the
3.9 kB of a real one; its time is measured apart, and 160 times it is the extrapolation for the first opening with real
annotations. Each opening is a process of its own. Memory is the process's peak.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

NUM_OBJECTS, NUM_SHARDS, NUM_CAPTIONS, NUM_KNOWN = 798_759, 160, 1_002_422, 769_000
LICENSES = ("by", "by", "by", "by", "by", "by", "by", "by-nc", "by-nc-sa", "cc0")
WORDS = "a small red wooden house with, two doors blue windows and the roof of an old stone tower 3d model"
ALPHABET = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
PADDING = json.dumps([{"uid": "0" * 32, "url": "https://media.sketchfab.com/models/" + "0" * 90}] * 18)


def make_ids(generator: np.random.Generator) -> list[str]:
    """Make ids of which one in eleven has mixed case, as in Objaverse's own list."""
    mixed = ALPHABET[generator.integers(0, 62, 27 * NUM_OBJECTS)].tobytes().decode()
    plain = generator.bytes(16 * NUM_OBJECTS).hex()
    return [mixed[27 * i : 27 * i + 27] if i % 11 == 0 else plain[32 * i : 32 * i + 32] for i in range(NUM_OBJECTS)]


def make_cache(folder: Path) -> None:
    generator = np.random.default_rng(0)
    ids = make_ids(generator)
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    paths = {uid: f"glbs/000-{i % NUM_SHARDS:03d}/{uid}.glb" for i, uid in enumerate(ids)}
    write_gzip(folder / "object-paths.json.gz", json.dumps(paths))
    for shard in range(NUM_SHARDS):
        write_gzip(folder / f"metadata/000-{shard:03d}.json.gz", annotations(ids[shard::NUM_SHARDS], "[]"))
    full = folder / "one_full_shard"
    (full / "metadata").mkdir(parents=True, exist_ok=True)
    write_gzip(full / "metadata/000-000.json.gz", annotations(ids[::NUM_SHARDS], PADDING))
    write_gzip(full / "object-paths.json.gz", json.dumps({uid: paths[uid] for uid in ids[::NUM_SHARDS]}))
    foreign = generator.bytes(32 * (NUM_CAPTIONS - NUM_KNOWN)).hex()
    rows = ids[:NUM_KNOWN] + [foreign[64 * i : 64 * i + 64] for i in range(NUM_CAPTIONS - NUM_KNOWN)]
    words = WORDS.split()
    captions = [" ".join(generator.choice(words, 10 + i % 13)) for i in range(997)]
    cells = [f'"{caption}"' if "," in caption else caption for caption in captions]
    lines = [f"{rows[k]},{cells[k % 997]}\r\n" for k in generator.permutation(NUM_CAPTIONS).tolist()]
    (folder / "captions.csv").write_text("".join(lines), newline="")


def write_gzip(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), compresslevel=1))


def annotations(ids: list[str], padding: str) -> str:
    """Write a shard's annotations with the fields that are read, and padding in place of the others."""
    return (
        "{"
        + ", ".join(
            f'"{uid}": {{"uid": "{uid}", "license": "{LICENSES[i % 10]}", '
            f'"viewerUrl": "https://sketchfab.com/3d-models/{uid}", "user": {{"username": "user{i % 700}", '
            f'"displayName": "Maker {i % 700}", "profileUrl": "https://sketchfab.com/user{i % 700}"}}, '
            f'"thumbnails": {padding}}}'
            for i, uid in enumerate(ids)
        )
        + "}"
    )


def measure_full_shard(folder: Path) -> float:
    """Return the core-seconds that reading one shard with annotations of real size takes."""
    from index_build.catalogs.objaverse_objects import read_objects
    from redream.settings import DownloadConfig

    start = time.process_time()
    read_objects(folder / "one_full_shard", folder / "one_full_shard" / f"cache-{time.time_ns()}", DownloadConfig())
    return time.process_time() - start


def measure(folder: Path, licenses: tuple[str, ...]) -> None:
    from index_build.catalogs.opening import open_catalog

    start, start_core = time.perf_counter(), time.process_time()
    catalog = open_catalog(
        "objaverse",
        str(folder / "captions.csv"),
        licenses,
        objaverse_dir=folder,
        cache_dir=folder / "cache",
    )
    opened, opened_core = time.perf_counter(), time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num_characters = sum(len(asset.caption) for asset in catalog.assets)
    figures = {
        "assets": len(catalog.assets),
        "seconds": opened - start,
        "core_seconds": opened_core - start_core,
        "peak_mb": peak / 1024,
        "table_mb": catalog.assets.table.nbytes / 2**20,  # type: ignore[attr-defined]
        "iterate_core_seconds": time.process_time() - opened_core,
        "caption_characters": num_characters,
        "dropped": catalog.dropped,
    }
    json.dump(figures, sys.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measure", nargs="*", help="measure one opening with these licences, in this process")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.folder, tuple(arguments.measure))
        return
    if not (arguments.folder / "captions.csv").exists():
        make_cache(arguments.folder)
    (arguments.folder / "cache" / "objaverse-1.0.parquet").unlink(missing_ok=True)
    columns = (
        "opening",
        "assets",
        "seconds",
        "core-seconds",
        "peak MB",
        "table MB",
        "core-seconds of one pass over it",
    )
    table = Table(*columns, title="Objaverse's catalog, synthetic, full size")
    for name, licenses in (("first", ()), ("later", ()), ("later, cc0 and by only", ("cc0", "by"))):
        command = [sys.executable, "-m", "benchmarks.catalog_objaverse", str(arguments.folder), "--measure", *licenses]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        keys = ("seconds", "core_seconds", "peak_mb", "table_mb", "iterate_core_seconds")
        table.add_row(name, f"{figures['assets']:,}", *(f"{figures[key]:.1f}" for key in keys))
        print(name, figures, flush=True)
    Console(width=120).print(table)
    print(f"one shard with annotations of real size: {measure_full_shard(arguments.folder):.2f} core-seconds")


if __name__ == "__main__":
    main()
