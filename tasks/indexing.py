"""The index stages: the miniature's own index in the store, and the index of any catalog in a folder of the user's.

The miniature's output holds `catalog/` (meshes, and the truth that no stage reads) and `index/`, and so needs nothing
else. An index of a catalog is kept up to date in its folder: planned, embedded shard by shard, each a task that is
retried by itself on any machine that sees the folder, and assembled.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.mini import CATALOG_SEED, VARIANTS_PER_PAIR
from redream.retrieval.licenses import is_allowed
from redream.settings import DownloadConfig, MeshLimits, RetrievalConfig
from redream.weights import weights_digest
from tasks.machinery.progress import say, track, waiting
from tasks.machinery.searching import IndexPlace, given_index
from tasks.machinery.slots import device_slot, slots_folder
from tasks.machinery.store import Output, StageKey, stage_key
from tasks.runs.run import Run
from tasks.runs.stage import RETRIES, RETRY_DELAYS, Work, is_passing, run_stage
from tasks.tracking.tracker import Tracker

if TYPE_CHECKING:
    import numpy as np

    from index_build.build import BuildPlan
    from index_build.check import IndexReport
    from index_build.views import ViewSource
    from redream.clip import Clip

STAGE_VERSION = 4
PICTURES_PER_PART = 64  # that one worker adds before it takes the next ones

_on_gpu = threading.Lock()  # a Dask worker may have several threads, and one model


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogRequest:
    """What to index, how, and where: a record that reaches workers on other machines."""

    catalog: str  # "objaverse" or a folder
    captions: str | None
    licenses: tuple[str, ...]
    renders: str  # folder of Cap3D's published renders; empty: own ones
    has_pictures: bool  # False: captions alone are embedded
    index_dir: str
    cache_dir: str
    retrieval: RetrievalConfig
    download: DownloadConfig
    mesh: MeshLimits


@task(
    name="index",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def index_miniature(run: Run, config: RetrievalConfig) -> Output:
    """Make the miniature's catalog and its index."""

    def produce(work: Work) -> dict[str, object]:
        # Imported here, as in every stage: a run that reuses its stages should not wait for torch.
        from index_build.build import build_index
        from index_build.catalogs.opening import open_catalog
        from index_build.check import check_index
        from index_build.views import RenderedViews
        from redream.clip import Clip
        from redream.mini.catalog import write_catalog
        from redream.render.mesh import gl_renderer
        from redream.retrieval.index import AssetIndex
        from redream.retrieval.index_files import write_manifest

        write_catalog(work.folder / "catalog", seed=CATALOG_SEED, num_variants=VARIANTS_PER_PAIR)
        catalog = open_catalog(str(work.folder / "catalog"), cache_dir=work.checkpoint / "cache")
        clip = Clip(config.clip_model, work.device)
        work.facts["renderer"] = gl_renderer()
        views = RenderedViews(config.num_index_views, clip.image_size)
        # Where an attempt that was killed left its shards.
        steps = build_index(catalog, clip, config, views, work.checkpoint / "index")
        manifest = None
        for step in work.track(steps, len(catalog.assets)):
            manifest = step.manifest
        assert manifest is not None
        (work.checkpoint / "index").rename(work.folder / "index")
        # Both were made elsewhere than the store publishes them, and a store may be moved.
        write_manifest(replace(manifest, index_dir=str(work.folder / "index"), asset_root="../catalog"))
        report = check_index(AssetIndex.open(work.folder / "index", clip))
        work.metrics.update(num_assets=manifest.num_assets, **report.figures())
        _log_report(work.tracker, report, manifest.dropped)
        return {"asset_root": "catalog", "content_hash": manifest.content_hash, "num_assets": manifest.num_assets}

    return run_stage(run, index_key(config), asdict(config), produce, needs="device")


def index_key(config: RetrievalConfig) -> StageKey:
    settings = {
        "num_index_views": config.num_index_views,
        "views": config.views,
        "catalog_seed": CATALOG_SEED,
        "variants": VARIANTS_PER_PAIR,
    }
    return stage_key("index", STAGE_VERSION, settings, {"clip": weights_digest(config.clip_model)})


def built_index(output: Output) -> IndexPlace:
    """Return the index that an index stage made."""
    return IndexPlace(
        index_dir=str(output.path("index")),
        asset_root=str(output.path(output.result["asset_root"])),
        content_hash=output.result["content_hash"],
        num_assets=output.result["num_assets"],
    )


@contextmanager
def build_lock(index_dir: str) -> Iterator[None]:
    """Hold the right to build an index, which dies with its holder; readers do not need it.

    Raises:
        ValueError: another build holds it.
    """
    folder = Path(index_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another build of {index_dir} is under way; wait for it, or name another folder") from error
    try:
        yield
    finally:
        lock.release()


@task(name="plan_index", cache_policy=NO_CACHE)
def plan_index(run: Run, request: CatalogRequest) -> BuildPlan:
    """Open the catalog and find out what its index lacks."""
    from index_build.build import plan_build
    from index_build.catalogs.opening import open_catalog

    catalog = open_catalog(
        request.catalog,
        request.captions,
        request.licenses,
        config=request.download,
        cache_dir=request.cache_dir,
        up_axis=request.retrieval.up_axis,
    )
    plan = plan_build(
        catalog,
        _clip(request.retrieval.clip_model),
        request.retrieval,
        _views(request),
        request.index_dir,
        request.has_pictures,
    )
    for reason, count in sorted(catalog.dropped.items()):
        say(f"left out of the catalog: {count:,} x {reason}")
    kind = "" if request.has_pictures else "different captions "
    say(f"index: {plan.num_assets:,} assets, {plan.num_pending:,} {kind}to embed in {plan.num_shards:,} shards")
    return plan


@task(
    name="embed_shard",
    task_run_name="shard {number}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def embed_shard(request: CatalogRequest, plan: BuildPlan, number: int) -> int:
    """Make one shard, unless it is there, and return how many assets it has."""
    from index_build import build

    size = request.retrieval.assets_per_shard
    label = f"shard {number + 1} of {plan.num_shards}"
    with _embedder(request.retrieval.clip_model, label) as clip:
        if not plan.has_pictures:
            num = len(plan.captions(number))
            steps = build.embed_caption_shard(plan, number, _text_embedder(clip))
            return sum(track(_each(steps), label, num))
        done = build.embed_shard(plan, number, clip, _views(request))
        return sum(1 for _ in track(done, label, min(size, plan.num_pending - number * size)))


@task(name="wanted_pictures", cache_policy=NO_CACHE)
def wanted_pictures(run: Run, request: CatalogRequest, prompts: Sequence[str]) -> list[list[int]]:
    """Return the rows whose pictures searches for some prompts would fetch, in parts for the workers."""
    from redream.retrieval.index import AssetIndex

    config = request.retrieval
    allows = partial(is_allowed, codes=config.licenses) if config.licenses else None
    index = AssetIndex.open(request.index_dir, _clip(config.clip_model))
    found = (index.lacking(prompt, config.num_recall, allows) for prompt in track(prompts, "prompts", len(prompts)))
    rows = list(dict.fromkeys(row for rows in found for row in rows))
    say(f"{len(prompts):,} prompts need {len(rows):,} more pictures")
    return [rows[start : start + PICTURES_PER_PART] for start in range(0, len(rows), PICTURES_PER_PART)]


@task(name="add_pictures", cache_policy=NO_CACHE)
def add_pictures(request: CatalogRequest, rows: list[int]) -> int:
    """Add the pictures of some rows to an index, and return how many were tried."""
    from index_build.filling import Budget, fill
    from redream.retrieval.index import AssetIndex

    with _embedder(request.retrieval.clip_model, "pictures") as clip:
        index = AssetIndex.open(request.index_dir, clip)
        budget = Budget(objects=len(rows), num_bytes=2**62, seconds=len(rows) * request.download.total_timeout)
        tried = list(track(fill(index, rows, clip, request.download, request.mesh, budget), "pictures", len(rows)))
    for filled in tried:
        if filled.reason:
            say(f"no picture of {filled.asset_id}: {filled.reason}")
    return len(tried)


def _each(steps: Iterable[int]) -> Iterator[int]:
    """Yield 1 for each of the captions that steps of several complete."""
    return (1 for num in steps for _ in range(num))


def _text_embedder(clip: Clip) -> Callable[[list[str]], np.ndarray]:
    """Return what embeds captions fastest here: the whole CLIP on a GPU, its text tower in NumPy on a CPU."""
    from redream.retrieval.text_tower import open_text_tower

    tower = open_text_tower(clip.model_id) if clip.device.type == "cpu" else None
    if tower is not None:
        return tower.keep_weights().embed_texts
    return lambda texts: clip.embed_text(texts).cpu().numpy()


@task(name="assemble_index", cache_policy=NO_CACHE)
def assemble_index(run: Run, request: CatalogRequest, plan: BuildPlan, embedding_seconds: float) -> IndexPlace:
    """Put the shards together, check what came out, and log the figures of the build and the recall report."""
    from index_build.build import assemble
    from index_build.check import check_index
    from redream.retrieval.index import AssetIndex

    started = time.monotonic()
    with waiting("assembling the index"):
        manifest = assemble(plan)
        seconds = time.monotonic() - started
        report = check_index(AssetIndex.open(plan.index_dir, _clip(request.retrieval.clip_model)))
    tracker = Tracker.start(run.tracking, "index", {"redream.run_id": run.run_id}, parent=run.mlflow_run_id)
    tracker.log_params({**plan.settings, "catalog": plan.catalog, "clip": plan.clip_model, "recall": manifest.recall})
    figures = {
        "num_assets": manifest.num_assets,
        "num_embedded": plan.num_pending,
        "num_refused": manifest.num_refused,
        "num_bytes": manifest.num_bytes,
        "embedding_seconds": embedding_seconds,
        "assembly_seconds": seconds,
        "assets_per_second": plan.num_pending / max(embedding_seconds, 1e-9),
        **report.figures(),
    }
    tracker.log_final({f"index/{name}": float(value) for name, value in figures.items()})
    _log_report(tracker, report, manifest.dropped)
    tracker.finish()
    return given_index(plan.index_dir)


def _log_report(tracker: Tracker, report: IndexReport, dropped: Mapping[str, int]) -> None:
    tracker.log_text(json.dumps({**asdict(report), "dropped": dropped}, indent=1), "index_check.json")


def check(index_dir: str, clip_model: str, num_queries: int) -> IndexReport:
    """Check an index by its every byte and a sample of searches."""
    from index_build.check import check_index
    from redream.retrieval.index import AssetIndex

    with waiting("checking the index"):
        return check_index(AssetIndex.open(index_dir, _clip(clip_model)), num_queries)


@contextmanager
def _embedder(model: str, label: str) -> Iterator[Clip]:
    """Hold a device's slot with the model on it; between shards the model waits in the machine's memory."""
    with device_slot(slots_folder(), trains=False, on_wait=lambda reason: say(f"{label}: {reason}")) as device:
        if device == "cpu":
            yield _clip(model)
            return
        with _on_gpu:
            try:
                yield _clip(model).to(device)
            finally:
                _clip(model).to("cpu")


@lru_cache(maxsize=1)
def _clip(model: str) -> Clip:
    """Load the model once per process, for all of its shards."""
    from redream.clip import Clip

    return Clip(model)


@lru_cache(maxsize=1)
def _views(request: CatalogRequest) -> ViewSource:
    from index_build.download import fetch_mesh
    from index_build.views import PublishedViews, RenderedViews
    from redream.meshes.assets import load_mesh

    image_size = _clip(request.retrieval.clip_model).image_size
    if request.renders:
        return PublishedViews(request.renders, image_size)
    fetch = partial(fetch_mesh, verify=partial(load_mesh, limits=request.mesh), config=request.download)
    return RenderedViews(request.retrieval.num_index_views, image_size, fetch, request.mesh)
