"""Text recall at Objaverse's size beside other indexes: recall@100 against exact search, time, memory, disk.

Makes seeded unit vectors (topics, clusters within them, a falling spectrum, captions and renders on two sides of a
modality gap) and asks with captions and with prompts from inside the gap. Each method runs in a process of its own,
builds on all cores that it may use, answers one query at a time, with as many of them as it can, and its figures are
saved when it is done, so that a run can be continued. Needs `uv sync --group bench`. Run as
`python -m benchmarks.retrieval --work DIR [--num 800000] [--methods ours,faiss-sq8]`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

DIM, NUM_QUERIES, NUM_NEIGHBORS = 768, 100, 100
SHARD_ROWS = 2048
NUM_THREADS = len(os.sched_getaffinity(0))
GAP = 0.7  # how far prompts lie on the way from captions to renders

Search = Callable[[np.ndarray], Any]  # from a query to the rows found
Found = Iterator[tuple[str, Search]]


def make_vectors(work: Path, num: int) -> None:
    """Write `text.npy` as float32, `image.npy` as float16 and `queries.npy` [kind, query, dim]."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, DIM + 1, dtype=np.float32) ** -0.5
    spectrum /= np.linalg.norm(spectrum)
    basis = np.linalg.qr(rng.standard_normal((DIM, DIM)).astype(np.float32))[0]

    def draw(rows: int, scale: float) -> np.ndarray:
        return (rng.standard_normal((rows, DIM), dtype=np.float32) * spectrum) @ basis.T * scale

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    topics = draw(500, 0.4)
    centers = topics[rng.integers(0, 500, num // 40)] + draw(num // 40, 0.35)
    caption_side, render_side = 0.75 * basis[:, -1], 0.75 * basis[:, -2]

    def sample(centre_rows: np.ndarray, side: np.ndarray) -> np.ndarray:
        return unit(side + centers[centre_rows] + draw(len(centre_rows), 0.4))

    text = open_memmap(work / "text.npy.part", "w+", np.float32, (num, DIM))
    image = open_memmap(work / "image.npy", "w+", np.float16, (num, DIM))
    for start in range(0, num, 20_000):
        rows = rng.integers(0, len(centers), min(20_000, num - start))
        text[start : start + len(rows)] = sample(rows, caption_side)
        image[start : start + len(rows)] = sample(rows, render_side)
    gap_side = 0.75 * unit(caption_side + GAP * render_side)
    queries = [sample(rng.integers(0, len(centers), NUM_QUERIES), side) for side in (caption_side, gap_side)]
    np.save(work / "queries.npy", np.stack(queries))
    text.flush()
    os.replace(work / "text.npy.part", work / "text.npy")


def exact_neighbors(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    best = np.concatenate([queries @ vectors[i : i + 50_000].T for i in range(0, len(vectors), 50_000)], axis=1)
    return np.argpartition(-best, NUM_NEIGHBORS, axis=1)[:, :NUM_NEIGHBORS]


# ---- methods: each yields, after building, (name, search), and notes what building and opening took ------------


def ours(work: Path, figures: dict[str, Any]) -> Found:
    """The project's own path: shards on disk, assembled to an index, opened, asked."""
    import shutil

    from index_build.build import BuildPlan, assemble
    from index_build.embeddings import Shard, write_shard
    from redream.records import Asset
    from redream.retrieval.index import AssetIndex
    from redream.retrieval.index_files import asset_table, write_table

    text, image = (np.load(work / name, mmap_mode="r") for name in ("text.npy", "image.npy"))
    num = len(text)
    clip: Any = SimpleNamespace(identity="benchmark", embedding_dim=DIM)
    index_dir = work / "index"
    if not (index_dir / "manifest.json").is_file():
        shutil.rmtree(index_dir, ignore_errors=True)
        plan = BuildPlan(
            index_dir=str(index_dir),
            catalog="benchmark",
            clip_model=clip.identity,
            num_views=1,
            asset_root="/objaverse",
            settings={"assets_per_shard": SHARD_ROWS},
            dropped={},
            num_assets=num,
            num_pending=num,
            num_shards=-(-num // SHARD_ROWS),
        )
        keys = [f"{i:032x}" for i in range(num)]
        plan.folder.mkdir(parents=True)
        caption = "a small wooden chair with a red cushion and four curved legs, number"
        assets = (
            Asset(
                asset_id=key,
                mesh_path=f"/objaverse/glbs/000-{i % 160:03d}/{key}.glb",
                caption=f"{caption} {i}",
                source=f"https://sketchfab.com/3d-models/{key}",
                license="by",
                author=f"author {i % 100_000}",
            )
            for i, key in enumerate(keys)
        )
        write_table(plan.folder / "assets.arrow", asset_table(assets, keys, plan.asset_root))
        for start in range(0, num, SHARD_ROWS):
            rows = slice(start, min(start + SHARD_ROWS, num))
            shard = Shard(keys[rows], text[rows].astype(np.float16), np.asarray(image[rows])[:, None], {})
            write_shard(plan.shard_path(keys[rows]), shard)
        with peak_anonymous_mb() as peaks:
            figures["build_s"] = _timed(lambda: assemble(plan))
        figures["build_peak_mb"] = max(peaks)
        (work / "ours_build.json").write_text(json.dumps(figures))
        # Opened in a fresh process, so that its memory is its own.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    figures.update(json.loads((work / "ours_build.json").read_text()))
    before, mapped_before = anonymous_mb(), mapped_mb()
    started = time.perf_counter()
    index = AssetIndex.open(index_dir, clip)
    figures["open_s"] = time.perf_counter() - started
    figures["memory_mb"] = anonymous_mb() - before
    queries = np.load(work / "queries.npy")[1]
    index.nearest(queries[0], 100, 3)
    figures["mapped_mb"] = mapped_mb() - mapped_before  # what one search leaves in the page cache, and may be evicted
    manifest = index.manifest
    text_files = [seal.size for name, seal in manifest.files.items() if name == "text.npy" or name.startswith("scann")]
    figures["disk_mb"] = sum(text_files) / 1e6
    figures["disk_all_mb"] = manifest.num_bytes / 1e6
    figures["backend"] = index.backend
    yield "ours: ScaNN codes, float16 again", lambda query: index.recall(query, NUM_NEIGHBORS)[0]
    figures["image_stage"] = image_stage(index, image, queries)


def image_stage(index: Any, image: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """Compare the second stage, over N' = 1000 so that 100 have to be chosen, with float64 on the same rows."""
    shares, times = [], []
    for query in queries:
        rows, _ = index.recall(query, 1000)
        exact = np.argsort(-(image[rows].astype(np.float64) @ query))[:NUM_NEIGHBORS]
        started = time.perf_counter()
        found = np.argsort(-index.image_scores(query, rows))[:NUM_NEIGHBORS]
        times.append(time.perf_counter() - started)
        shares.append(len(set(found) & set(exact)) / NUM_NEIGHBORS)
    whole = [_timed(lambda query=query: index.nearest(query, 100, 3)) for query in queries]
    return {
        "recall": float(np.mean(shares)),
        "ms": 1e3 * float(np.median(times)),
        "search_ms": 1e3 * float(np.median(whole)),
    }


def blas(work: Path, figures: dict[str, Any]) -> Found:
    vectors, figures["open_s"] = _loaded(work)
    figures.update(build_s=0.0, disk_mb=vectors.nbytes / 1e6, memory_mb=anonymous_mb())
    yield "exact (BLAS, float32)", lambda query: np.argpartition(-(vectors @ query), 100)[:100]


def faiss_sq8(work: Path, figures: dict[str, Any]) -> Found:
    yield from _faiss(work, figures, "SQ8", "FAISS SQ8", [("", lambda index: None)])


def faiss_ivf_pq(work: Path, figures: dict[str, Any]) -> Found:
    def probe(num: int) -> Callable[[Any], None]:
        return lambda index: _set_probes(index, num)

    settings = [(f" nprobe {num}", probe(num)) for num in (16, 64, 256)]
    yield from _faiss(work, figures, "IVF1024,PQ192x4fs,Refine(SQfp16)", "FAISS IVF-PQ + SQfp16", settings)


def faiss_hnsw(work: Path, figures: dict[str, Any]) -> Found:
    def effort(num: int) -> Callable[[Any], None]:
        return lambda index: setattr(index.hnsw, "efSearch", num)

    settings = [(f" ef {num}", effort(num)) for num in (128, 256, 512)]
    yield from _faiss(work, figures, "HNSW32", "FAISS HNSW32", settings)


def usearch(work: Path, figures: dict[str, Any]) -> Found:
    from usearch.index import Index

    vectors, _ = _loaded(work)
    path = work / "usearch.index"
    index = Index(ndim=DIM, metric="ip", dtype="f16", connectivity=32, expansion_add=128)
    figures["build_s"] = _timed(lambda: index.add(np.arange(len(vectors)), vectors, threads=NUM_THREADS))
    index.save(path)
    figures["disk_mb"] = path.stat().st_size / 1e6
    del vectors, index
    before = anonymous_mb()
    opened = Index(ndim=DIM, metric="ip", dtype="f16", connectivity=32)
    figures["open_s"] = _timed(lambda: opened.load(path))
    figures["memory_mb"] = anonymous_mb() - before
    for effort in (128, 256, 512):
        opened.expansion_search = effort
        yield f"USearch f16 ef {effort}", lambda query: opened.search(query, NUM_NEIGHBORS, threads=1).keys


def hnswlib(work: Path, figures: dict[str, Any]) -> Found:
    import hnswlib as library

    vectors, _ = _loaded(work)
    path = work / "hnswlib.index"
    index = library.Index("ip", DIM)
    index.init_index(len(vectors), M=32, ef_construction=100)
    figures["build_s"] = _timed(lambda: index.add_items(vectors, num_threads=NUM_THREADS))
    index.save_index(str(path))
    figures["disk_mb"] = path.stat().st_size / 1e6
    del vectors, index
    before = anonymous_mb()
    opened = library.Index("ip", DIM)
    figures["open_s"] = _timed(lambda: opened.load_index(str(path)))
    figures["memory_mb"] = anonymous_mb() - before
    for effort in (128, 256, 512):
        opened.set_ef(effort)
        yield f"hnswlib M32 ef {effort}", lambda query: opened.knn_query(query, NUM_NEIGHBORS, 1)[0][0]


def scann_int8(work: Path, figures: dict[str, Any]) -> Found:
    yield from _scann(work, figures, "ScaNN brute force int8", lambda builder: builder.score_brute_force(True), 0)


def scann_reorder(work: Path, figures: dict[str, Any]) -> Found:
    def configure(builder: Any) -> Any:
        hashed = builder.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=20_000)
        return hashed.reorder(500)

    yield from _scann(work, figures, "ScaNN AH + its own reorder", configure, 500)


METHODS = {
    "ours": ours,
    "blas": blas,
    "faiss-sq8": faiss_sq8,
    "scann-int8": scann_int8,
    "scann-reorder": scann_reorder,
    "faiss-ivf-pq": faiss_ivf_pq,
    "faiss-hnsw": faiss_hnsw,
    "usearch": usearch,
    "hnswlib": hnswlib,
}


def _faiss(work: Path, figures: dict[str, Any], factory: str, name: str, settings: list[tuple[str, Any]]) -> Found:
    import faiss

    faiss.omp_set_num_threads(NUM_THREADS)
    vectors, _ = _loaded(work)
    num, path = len(vectors), work / f"{name.split()[1]}.faiss"
    index: Any = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    if name.startswith("FAISS HNSW"):
        index.hnsw.efConstruction = 100

    def build() -> None:
        index.train(vectors[np.random.default_rng(0).choice(num, min(num, 100_000), replace=False)])
        index.add(vectors)

    figures["build_s"] = _timed(build)
    faiss.write_index(index, str(path))
    figures["disk_mb"] = path.stat().st_size / 1e6
    del vectors, index
    before = anonymous_mb()
    started = time.perf_counter()
    opened = faiss.read_index(str(path))
    figures["open_s"] = time.perf_counter() - started
    figures["memory_mb"] = anonymous_mb() - before
    for label, configure in settings:
        configure(opened)
        yield name + label, lambda query: opened.search(query[None], NUM_NEIGHBORS)[1][0]
    path.unlink()


def _set_probes(index: Any, num: int) -> None:
    import faiss

    faiss.extract_index_ivf(index.base_index if hasattr(index, "base_index") else index).nprobe = num
    index.k_factor = 4.0


def _scann(work: Path, figures: dict[str, Any], name: str, configure: Callable[[Any], Any], num_reorder: int) -> Found:
    from scann.scann_ops.py import scann_ops_pybind

    vectors, _ = _loaded(work)
    folder = work / name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    started = time.perf_counter()
    searcher = configure(scann_ops_pybind.builder(vectors, NUM_NEIGHBORS, "dot_product")).build()
    figures["build_s"] = time.perf_counter() - started
    searcher.serialize(str(folder))
    figures["disk_mb"] = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    del vectors, searcher
    before = anonymous_mb()
    started = time.perf_counter()
    opened = scann_ops_pybind.load_searcher(str(folder))
    figures["open_s"] = time.perf_counter() - started
    figures["memory_mb"] = anonymous_mb() - before
    yield name, lambda query: opened.search(query, NUM_NEIGHBORS, num_reorder or -1)[0]


def _loaded(work: Path) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    vectors = np.load(work / "text.npy", mmap_mode="r")
    return np.array(vectors), time.perf_counter() - started


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def anonymous_mb() -> float:
    return _status_mb("RssAnon:")


@contextmanager
def peak_anonymous_mb() -> Iterator[list[float]]:
    """Sample the memory of this process that is no page of a file, while the body runs."""
    samples, is_over = [anonymous_mb()], threading.Event()

    def sample() -> None:
        while not is_over.wait(0.1):
            samples.append(anonymous_mb())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        is_over.set()
        sampler.join()


def mapped_mb() -> float:
    return _status_mb("RssFile:")


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


# ---- measuring and reporting -----------------------------------------------------------------------------------------


def measure(name: str, work: Path) -> list[dict[str, Any]]:
    """Run one method and return a row for each of its search settings."""
    queries, truth = np.load(work / "queries.npy"), np.load(work / "exact.npy")
    figures: dict[str, Any] = {}
    rows = []
    for label, search in METHODS[name](work, figures):
        row: dict[str, Any] = {"method": label}
        search(queries[0, 0])
        for kind, kind_name in enumerate(("captions", "prompts")):
            times, shares = [], []
            for query, exact in zip(queries[kind], truth[kind], strict=True):
                started, cpu = time.perf_counter(), time.process_time()
                found = search(query)
                times.append((time.perf_counter() - started, time.process_time() - cpu))
                shares.append(len(set(map(int, found)) & set(map(int, exact))) / NUM_NEIGHBORS)
            row[f"recall_{kind_name}"] = float(np.mean(shares))
            row[f"recall_min_{kind_name}"] = float(np.min(shares))
            wall, cpu_time = np.median(np.array(times), axis=0)
            row[f"ms_{kind_name}"], row[f"cpu_ms_{kind_name}"] = 1e3 * float(wall), 1e3 * float(cpu_time)
        rows.append(row)
    return [{**row, **figures} for row in rows]


def report(results: list[dict[str, Any]], num: int) -> str:
    columns = "recall@100 captions | prompts | ms/query wall | CPU | build s | open s | memory | disk"
    lines = [f"| method | {columns} |", "|---" * 9 + "|"]
    float32_mb = num * DIM * 4 / 1e6
    for row in results:
        lines += [
            f"| {row['method']} | {row['recall_captions']:.4f} | {row['recall_prompts']:.4f} "
            f"| {row['ms_prompts']:.1f} | {row['cpu_ms_prompts']:.1f} | {row['build_s']:.0f} | {row['open_s']:.2f} "
            f"| {row['memory_mb'] * 2**20 / 1e6 / float32_mb:.2f} | {row['disk_mb'] / float32_mb:.2f} |"
        ]
    lines += ["", "Memory and disk are multiples of the float32 vectors."]
    for row in results:
        if "image_stage" in row:
            stage = row["image_stage"]
            lines += [
                f"Image stage of ours: recall@100 {stage['recall']:.4f}, {stage['ms']:.1f} ms for 1,000 rows; whole "
                f"search {stage['search_ms']:.1f} ms. Whole index on disk: {row['disk_all_mb']:,.0f} MB, "
                f"{row['disk_all_mb'] / (2 * float32_mb):.2f} of the float32 vectors of both stages. Mapped pages "
                f"after one search: {row['mapped_mb']:,.0f} MiB. Peak of the build: {row['build_peak_mb']:,.0f} MiB."
            ]
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, points in groupby(results, lambda row: re.sub(r" (ef|nprobe) \d+$", "", row["method"])):
        times, recalls = zip(*((row["ms_prompts"], row["recall_prompts"]) for row in points), strict=True)
        axes.plot(times, recalls, "o-", label=name)
    axes.set(xscale="log", xlabel="milliseconds per query", ylabel="recall@100 against exact search, prompts")
    axes.axhline(0.99, color="grey", linewidth=0.5)
    axes.axvline(20, color="grey", linewidth=0.5)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of vectors, indexes and results")
    parser.add_argument("--num", type=int, default=800_000)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the method of a child process
    arguments = parser.parse_args()
    work = arguments.work
    if arguments.only:
        rows = measure(arguments.only, work)
        (work / f"result_{arguments.only}.json").write_text(json.dumps(rows, indent=1))
        return
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "text.npy").is_file():
        make_vectors(work, arguments.num)
    queries, vectors = np.load(work / "queries.npy"), np.load(work / "text.npy", mmap_mode="r")
    if not (work / "exact.npy").is_file():
        np.save(work / "exact.npy", np.stack([exact_neighbors(vectors, kind) for kind in queries]))
    for name in arguments.methods.split(","):
        if not (work / f"result_{name}.json").is_file():
            print(f"{name} …", flush=True)
            command = [sys.executable, "-m", "benchmarks.retrieval", "--work", str(work), "--only", name]
            if subprocess.run(command, check=False).returncode:
                print(f"{name} failed; the table goes without it", flush=True)
    paths = [work / f"result_{name}.json" for name in METHODS]
    results = [row for path in paths if path.is_file() for row in json.loads(path.read_text())]
    (work / "results.json").write_text(json.dumps(results, indent=1))
    (work / "results.md").write_text(report(results, len(vectors)) + "\n")
    plot(results, work / "recall_against_time.png")
    print(report(results, len(vectors)))


if __name__ == "__main__":
    main()
