"""The index as a flow: a catalog is opened, embedded shard by shard, and put together; the miniature's is one stage."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.requests.parameters import (
    CatalogName,
    HiddenPlace,
    Licenses,
    Place,
    PresetName,
    Prompts,
    Settings,
    ViewsName,
)
from flows.requests.request import DEFAULT_OUT, checked_config, checked_out, checked_runner
from redream.settings import RetrievalConfig
from tasks.indexing import (
    CatalogRequest,
    IndexPlace,
    add_pictures,
    assemble_index,
    build_lock,
    built_index,
    embed_shard,
    given_index,
    index_miniature,
    plan_index,
    wanted_pictures,
)
from tasks.machinery.devices import SMALL_GIB, asked_device, find_gpus
from tasks.machinery.progress import track
from tasks.runs.run import Run, open_run

ONE_THREAD_RUNNER: Any = ThreadPoolTaskRunner(max_workers=1)  # its generics do not fit its own decorator's


@flow(name="build_index", flow_run_name="index of {catalog}", task_runner=ONE_THREAD_RUNNER)
def build_index(
    catalog: CatalogName = "mini",
    preset: PresetName = "mini",
    settings: Settings = {},
    captions: Place = "",
    licenses: Licenses = [],
    renders: Place = "",
    views: ViewsName = "all",
    warm: Prompts = [],
    index: Place = "",
    out: HiddenPlace = DEFAULT_OUT,
) -> IndexPlace:
    """Build the index of a catalog, or bring it up to date.

    Args:
        catalog: mini, objaverse, or a folder of meshes on the worker's machine.
        preset: its retrieval CLIP embeds captions and views.
        settings: overrides such as `{"retrieval.num_index_views": 4}`.
        captions: CSV of captions; empty for what the meshes say of themselves.
        licenses: keep only assets under these, such as cc0 and by; empty keeps all.
        renders: folder of Cap3D's published renders, to embed these instead of own ones.
        views: all, or none to embed captions alone; searches then add the pictures that they need.
        warm: with views none, prompts whose candidates get their pictures now.
        index: folder of the index; by default below `out`, and for the miniature in the store.
        out: folder of runs and stage outputs, on the worker's machine.
    """
    config = checked_config(preset, "redream", settings)
    parameters = {"catalog": catalog, "preset": preset, "settings": settings, "captions": captions}
    parameters |= {"licenses": licenses, "renders": renders, "views": views, "warm": warm, "index": index}
    folder = checked_out(out)
    with open_run("build_index", f"index of {catalog}", 0, config, parameters, folder) as run:
        if catalog == "mini" and not index and views == "all":
            return built_index(index_miniature.submit(run, config.retrieval).result())
        request = CatalogRequest(
            catalog=catalog,
            captions=captions or None,
            licenses=tuple(licenses),
            renders=renders,
            has_pictures=views == "all",
            index_dir=index or str(default_index(folder, catalog)),
            cache_dir=str(folder / "cache"),
            retrieval=config.retrieval,
            download=config.download,
            mesh=config.mesh,
        )
        with build_lock(request.index_dir):
            plan = plan_index(run, request)
            started = time.monotonic()
            with asking_for_gpus():
                shards = [embed_shard.submit(request, plan, number) for number in range(plan.num_shards)]
            num_reused = plan.num_assets - plan.num_pending if plan.has_pictures else 0
            total = plan.num_assets if plan.has_pictures else plan.num_pending
            for _ in track(_assets_of(shards), "index", total, num_reused):
                pass
            built = assemble_index(run, request, plan, time.monotonic() - started)
        if not warm:
            return built
        with asking_for_gpus():
            parts = [add_pictures.submit(request, part) for part in wanted_pictures(run, request, warm)]
        for _ in track(_assets_of(parts), "pictures", None):
            pass
        return given_index(request.index_dir)


def default_index(out: Path, catalog: str) -> Path:
    """Return where the index of a catalog lies if no place is named; folders of one name are told apart."""
    if not Path(catalog).is_dir():
        return out / "indexes" / catalog
    place = Path(catalog).resolve()
    return out / "indexes" / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


def task_runner(name: str, address: str = "") -> TaskRunner[Any]:
    """Return the runner of a build's shards: this process, or a Dask or Ray cluster, by default one of its own."""
    if checked_runner(name) == "local":
        return ThreadPoolTaskRunner(max_workers=1)
    try:
        if name == "dask":
            from prefect_dask import DaskTaskRunner  # pyright: ignore[reportMissingImports]  # an extra

            return DaskTaskRunner(address=address or None, cluster_kwargs=None if address else _own_cluster())
        from prefect_ray import RayTaskRunner  # pyright: ignore[reportMissingImports]  # an extra

        return RayTaskRunner(address=address or None, init_kwargs={} if address else {"include_dashboard": False})
    except ImportError as error:
        raise ValueError(f"--runner {name} needs more packages: pip install 'redream[{name}]'") from error


def _own_cluster() -> dict[str, Any]:
    """Return the options of a Dask cluster on this machine: a worker for each GPU, or without any, Dask's default."""
    num_gpus = len(find_gpus(SMALL_GIB).gpus)
    return {"threads_per_worker": 1} | ({"n_workers": num_gpus, "resources": {"GPU": 1}} if num_gpus else {})


def asking_for_gpus() -> AbstractContextManager[Any]:
    """Let each task that is submitted here ask the flow's cluster for a GPU, if the cluster has any.

    Ray hides the GPUs from tasks that do not ask. Dask knows only what its workers were started with, by
    `dask worker --resources GPU=1`; whatever it does, no two processes of a machine take the same GPU's slot.
    """
    context = FlowRunContext.get()
    runner: Any = context.task_runner if context is not None else None
    if asked_device() == "cpu":
        return nullcontext()
    if type(runner).__name__ == "RayTaskRunner":
        import ray  # pyright: ignore[reportMissingImports]  # an extra
        from prefect_ray.context import remote_options  # pyright: ignore[reportMissingImports]  # an extra

        return remote_options(num_gpus=1) if ray.cluster_resources().get("GPU", 0) >= 1 else nullcontext()
    if type(runner).__name__ == "DaskTaskRunner":
        import dask  # pyright: ignore[reportMissingImports]  # an extra

        workers = runner.client.scheduler_info()["workers"].values()
        has_gpus = any(worker["resources"].get("GPU", 0) >= 1 for worker in workers)
        return dask.annotate(resources={"GPU": 1}) if has_gpus else nullcontext()
    return nullcontext()


def find_index(run: Run, index: str, config: RetrievalConfig) -> IndexPlace:
    """Return the index that the user named, or else the miniature's own, built where it is missing."""
    return given_index(index) if index else built_index(index_miniature.submit(run, config).result())


def _assets_of(shards: Sequence[PrefectFuture[int]]) -> Iterator[None]:
    """Yield once per asset as shards end, in any order; those that failed are reported when the others are done."""
    failed = None
    for shard in as_completed(list(shards)):
        try:
            num_assets = shard.result()
        except Exception as error:
            failed = failed or error
        else:
            yield from (None for _ in range(num_assets))
    if failed is not None:
        raise failed
