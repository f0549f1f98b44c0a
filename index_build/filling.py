"""Add the pictures that an index built from captions lacks: fetch, render and embed assets within a budget.

Meshes are fetched by several threads and rendered in the caller's, one by one as they arrive. Every picture is in the
index's log as soon as it is embedded, so that whatever ends this early loses the objects that were under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from index_build.download import DownloadError, fetch_mesh
from index_build.embeddings import embed_together
from index_build.views import RenderedViews, ViewMaker
from redream.clip import Clip
from redream.meshes.assets import AssetError, load_mesh
from redream.meshes.reading.refusal import ReaderFailed
from redream.records import Asset
from redream.retrieval.index import AssetIndex
from redream.settings import DownloadConfig, MeshLimits

FETCHED_TOGETHER = 8


@dataclass(kw_only=True, slots=True)
class Budget:
    """What may still be fetched; what was used is taken off, so that several rounds share one budget."""

    objects: int
    num_bytes: int
    seconds: float

    @property
    def is_spent(self) -> bool:
        return self.objects <= 0 or self.num_bytes <= 0 or self.seconds <= 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled:
    """An asset whose picture was wanted; `reason` says why there is none, or is empty."""

    asset_id: str
    reason: str = ""


def fill(
    index: AssetIndex, rows: Sequence[int], clip: Clip, download: DownloadConfig, limits: MeshLimits, budget: Budget
) -> Iterator[Filled]:
    """Add the pictures of some rows of an index, those at the front first; `index.refresh()` then knows them.

    Ends with the budget: seconds on the clock and one object's rendering at most, and bytes but for the files that were
    under way when they ran out. What was not reached is not yielded.
    """
    views = RenderedViews(_setting(index, "num_views"), _setting(index, "image_size"), limits=limits)
    ends = time.monotonic() + budget.seconds
    log = index.pictures.log
    assert log is not None
    remaining = list(rows)[: budget.objects]
    pool = ThreadPoolExecutor(FETCHED_TOGETHER, thread_name_prefix="fetch")
    under_way: dict[Future[tuple[Path, int]], int] = {}
    try:
        with views.open() as render:
            while (remaining and budget.num_bytes > 0) or under_way:
                while remaining and budget.num_bytes > 0 and len(under_way) < FETCHED_TOGETHER:
                    row = remaining.pop(0)
                    bounded = _bounded(download, budget.num_bytes, ends - time.monotonic())
                    under_way[pool.submit(_fetch, index.assets[row], bounded, limits)] = row
                budget.seconds = ends - time.monotonic()
                done, _ = wait(under_way, timeout=max(budget.seconds, 0.0), return_when=FIRST_COMPLETED)
                if not done:  # out of time
                    return
                for fetched in done:
                    row = under_way.pop(fetched)
                    budget.objects -= 1
                    yield _added(index, row, fetched, render, clip, budget)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        budget.seconds = ends - time.monotonic()


def _added(
    index: AssetIndex,
    row: int,
    fetched: Future[tuple[Path, int]],
    render: ViewMaker,
    clip: Clip,
    budget: Budget,
) -> Filled:
    """Render and embed a mesh that arrived, and write its vectors, or the lasting reason why there are none."""
    asset, log = index.assets[row], index.pictures.log
    key = index.assets.table["key"][row].as_py()
    assert log is not None
    try:
        path, num_bytes = fetched.result()
        budget.num_bytes -= num_bytes
        (vectors,) = embed_together([render(replace(asset, mesh_path=str(path)))], clip, index.manifest.num_views)
    except (DownloadError, ReaderFailed) as error:  # another attempt may succeed
        return Filled(asset_id=asset.asset_id, reason=str(error))
    except AssetError as error:
        log.refuse(key, str(error))
        return Filled(asset_id=asset.asset_id, reason=str(error))
    log.add(key, vectors.cpu().numpy().astype(np.float16))
    return Filled(asset_id=asset.asset_id)


def _fetch(asset: Asset, config: DownloadConfig, limits: MeshLimits) -> tuple[Path, int]:
    """Return the place of a mesh and how many bytes it took to bring it there."""
    was_there = Path(asset.mesh_path).is_file()
    verify: Callable[[Path], Any] = partial(load_mesh, limits=limits)
    path = fetch_mesh(asset.mesh_path, verify, config)
    return path, 0 if was_there else path.stat().st_size


def _bounded(config: DownloadConfig, num_bytes: int, seconds: float) -> DownloadConfig:
    """Return the settings of a download that ends within what is left."""
    seconds = max(seconds, 0.01)
    return replace(
        config,
        max_bytes=min(config.max_bytes, max(num_bytes, 1)),
        total_timeout=min(config.total_timeout, seconds),
        stall_timeout=min(config.stall_timeout, seconds),
    )


def _setting(index: AssetIndex, name: str) -> int:
    value = index.manifest.settings.get(name)
    if index.manifest.settings.get("views") != "rendered" or type(value) is not int or not 1 <= value <= 4096:
        raise ValueError(f"index {index.manifest.index_dir} does not say how its pictures are made; build it again")
    return value
