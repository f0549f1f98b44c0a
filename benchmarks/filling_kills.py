"""A search that must fetch 30 objects from a bad server, and 50 kills while an index gets its pictures.

The server is on this machine: a fifth of its answers are errors, hang-ups, cut files or stalls. The index is built from
captions of the miniature's objects, filled by forks that are killed at random moments, and its ranking is then compared
with that of the complete index.

    python -m benchmarks.filling_kills [--objects 30] [--kills 50]
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np

from index_build.build import assemble, build_index, embed_caption_shard, plan_build
from index_build.catalogs.catalog import Catalog
from index_build.filling import Budget, fill
from index_build.views import RenderedViews
from redream.clip import Clip
from redream.meshes.reading.client import stop_server
from redream.mini.catalog import write_catalog
from redream.records import Asset
from redream.retrieval.index import AssetIndex
from redream.settings import DownloadConfig, MeshLimits, RetrievalConfig
from tests.index_build.hostile_server import Answer, content, hang_up, serving, stall, status

CONFIG = RetrievalConfig(num_index_views=4, num_recall=100)
PROMPTS = ("a red thing", "a blue chair", "a truck with six wheels")


def bad(body: bytes, seed: int) -> Answer:
    """Answer with a body, but for one time in five with something else."""
    rng = np.random.default_rng(seed)
    faults = [status(503), hang_up, content(body[: len(body) // 2], stated=len(body)), stall(body, 2.0)]

    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        (faults[rng.integers(len(faults))] if rng.random() < 0.2 else content(body))(handler, count)

    return answer


def catalog_of(folder: Path, num: int) -> Catalog:
    """Return some of the miniature's objects in the places of Objaverse's cache."""
    from index_build.catalogs.opening import read_catalog

    write_catalog(folder / "mini", seed=0, num_variants=1)
    place = folder / "complete" / "glbs" / "000-000"
    place.mkdir(parents=True)
    assets: list[Asset] = []
    for asset in read_catalog(folder / "mini")[:num]:
        path = place / f"{asset.asset_id}.glb"
        path.write_bytes(Path(asset.mesh_path).read_bytes())
        assets.append(replace(asset, mesh_path=str(path), border=""))
    return Catalog(name="bench", root=str(place), assets=assets, dropped={}, digest=lambda asset: asset.asset_id)


def add_all(folder: Path, server_url: str, clip: Clip) -> list[str]:
    """Add every picture that the prompts lack, and return the reasons of those that failed."""
    index = open_captioned(folder, clip)
    rows = list(dict.fromkeys(row for prompt in PROMPTS for row in index.lacking(prompt, CONFIG.num_recall)))
    download = DownloadConfig(base_url=server_url, stall_timeout=1.0, total_timeout=30.0, first_pause=0.05)
    budget = Budget(objects=10_000, num_bytes=2**40, seconds=180.0)
    return [each.reason for each in fill(index, rows, clip, download, MeshLimits(), budget) if each.reason]


def open_captioned(folder: Path, clip: Clip) -> AssetIndex:
    return AssetIndex.open(folder / "index", clip, asset_root=folder / "cache" / "glbs" / "000-000")


def build_captioned(folder: Path, catalog: Catalog, clip: Clip) -> None:
    plan = plan_build(catalog, clip, CONFIG, RenderedViews(4, clip.image_size), folder / "index", False)
    for number in range(plan.num_shards):
        list(embed_caption_shard(plan, number, lambda texts: clip.embed_text(texts).cpu().numpy()))
    assemble(plan)


def rankings(index: AssetIndex) -> list[list[tuple[str, float, bool]]]:
    found = (index.search(prompt, CONFIG.num_recall, 30).neighbors for prompt in PROMPTS)
    return [[(n.asset.asset_id, n.score, n.is_weak) for n in neighbors] for neighbors in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    clip, rng = Clip("mini:clip-retrieval"), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place, serving() as server:
        folder = Path(place)
        catalog = catalog_of(folder, arguments.objects)
        list(build_index(catalog, clip, CONFIG, RenderedViews(4, clip.image_size), folder / "whole"))
        wanted = rankings(AssetIndex.open(folder / "whole", clip))
        for number, asset in enumerate(catalog.assets):
            path = f"/glbs/000-000/{asset.asset_id}.glb"
            server.answers[path] = bad(Path(asset.mesh_path).read_bytes(), number)
        build_captioned(folder / "once", catalog, clip)
        started = time.monotonic()
        reasons = add_all(folder / "once", server.url, clip)
        seconds = time.monotonic() - started
        is_equal = rankings(open_captioned(folder / "once", clip)) == wanted
        print(f"{arguments.objects} objects fetched, rendered, embedded: {seconds:.1f} s, {len(reasons)} failed")
        print(f"ranks as the complete index: {is_equal}", flush=True)
        build_captioned(folder / "killed", catalog, clip)
        stop_server()
        counts = []
        for _ in range(arguments.kills):
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                add_all(folder / "killed", server.url, clip)
                os._exit(0)
            time.sleep(rng.uniform(0.1, 2.0))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            counts.append(len(open_captioned(folder / "killed", clip).pictures.rows()))
        is_growing = counts == sorted(counts)
        add_all(folder / "killed", server.url, clip)
        is_equal = rankings(open_captioned(folder / "killed", clip)) == wanted
        parts = list((folder / "killed" / "index" / "pictures").glob("*"))
        print(f"{arguments.kills} kills: pictures after each {counts}, never fewer: {is_growing}")
        print(
            f"then completed, ranks as the complete index: {is_equal}; beside the log: {sorted(p.name for p in parts)}"
        )
        stop_server()


if __name__ == "__main__":
    main()
