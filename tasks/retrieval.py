"""The retrieval stage: from a prompt to the nearest assets, or from the user's own meshes to the same records.

An output holds a copy of each retrieved mesh and `retrieval.json`, with mesh paths relative to its folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.records import Asset, Neighbor, Retrieval, UpAxis
from redream.settings import DownloadConfig, MeshLimits, RetrievalConfig, RunConfig
from redream.weights import weights_digest
from tasks.machinery.progress import track
from tasks.machinery.searching import IndexPlace, search
from tasks.machinery.store import Output, StageKey, file_digest, stage_key, write_json
from tasks.runs.run import Run
from tasks.runs.stage import RETRIES, RETRY_DELAYS, Work, is_passing, run_stage

STAGE_VERSION = 7
OWN_LICENSE = "the user's own"


@task(
    name="retrieve",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def retrieve(
    run: Run, index: IndexPlace, config: RetrievalConfig, download: DownloadConfig, limits: MeshLimits
) -> Output:
    """Find the assets that fit the run's prompt and keep their meshes; those of Objaverse are downloaded first.

    Weak matches are named in the result and left out, unless `retrieval.take_weak` takes them.
    """
    key = retrieved_key(run.prompt, index, config)

    def produce(work: Work) -> dict[str, object]:
        found = search(index, run.prompt, config, download, limits)
        retrieval = replace(found, neighbors=found.taken(config.take_weak))
        fetch_meshes(retrieval, download, limits)
        weak = [asdict(neighbor) for neighbor in found.neighbors if neighbor not in retrieval.neighbors]
        return {**_save(retrieval, limits, work), "weak": weak}

    return run_stage(run, key, key.identity["settings"], produce)


def retrieved_key(prompt: str, index: IndexPlace, config: RetrievalConfig) -> StageKey:
    """Return the key of what a prompt finds in an index as it is now."""
    inputs = {"index": index.content_hash, "clip": weights_digest(config.clip_model)}
    settings = {
        "prompt": prompt,
        "num_recall": config.num_recall,
        "num_assets": config.num_assets,
        "licenses": config.licenses,
        "use": config.use,
        "leave_out": config.leave_out,
        "take_weak": config.take_weak,
        "where": config.where,
        "table": file_digest(Path(config.table)) if config.table else "",
        "age_restricted": config.age_restricted,
        "max_likeness": config.max_likeness,
        "fetch": (config.fetch_objects, config.fetch_bytes, config.fetch_seconds),
    }
    return stage_key("retrieve", STAGE_VERSION, settings, inputs)


@task(name="take_assets", cache_policy=NO_CACHE)
def take_assets(run: Run, mesh_paths: list[str], limits: MeshLimits, up_axis: UpAxis = "+Y") -> Output:
    """Start from the user's own meshes instead: the paper's enhancement of given 3D data."""
    from redream.meshes.assets import load_mesh

    for path in mesh_paths:
        load_mesh(path, limits, up_axis)  # refuses what is no mesh, with the reason, before anything of it is read here
    key = taken_key(run.prompt, mesh_paths, limits, up_axis)
    inputs = key.identity["inputs"]

    def produce(work: Work) -> dict[str, object]:
        neighbors = []
        for number, path in enumerate(mesh_paths):
            asset = Asset(
                asset_id=f"own-{number}-{inputs[f'asset_{number}_0'][:12]}",
                mesh_path=path,
                caption=run.prompt,
                source=Path(path).name,
                license=OWN_LICENSE,
                up_axis=up_axis,
            )
            neighbors.append(Neighbor(asset=asset, score=1.0, text_score=1.0))
        return _save(Retrieval(prompt=run.prompt, neighbors=tuple(neighbors)), limits, work)

    return run_stage(run, key, key.identity["settings"], produce)


def taken_key(prompt: str, mesh_paths: Sequence[str], limits: MeshLimits, up_axis: UpAxis) -> StageKey:
    """Return the key of meshes by the content that they and the files they name have now."""
    from redream.meshes.assets import named_files

    inputs = {
        f"asset_{number}_{place}": file_digest(file)
        for number, path in enumerate(mesh_paths)
        for place, file in enumerate(named_files(path, limits))
    }
    return stage_key("take_assets", STAGE_VERSION, {"prompt": prompt, "up_axis": up_axis}, inputs)


def fetch_meshes(retrieval: Retrieval, config: DownloadConfig, limits: MeshLimits) -> None:
    """Download what was found and is not there yet; an index of Objaverse names more than anyone keeps."""
    from index_build.download import fetch_mesh
    from redream.meshes.assets import load_mesh

    for neighbor in track(retrieval.neighbors, "retrieve: meshes", len(retrieval.neighbors)):
        fetch_mesh(neighbor.asset.mesh_path, partial(load_mesh, limits=limits), config)


def remarks(found: Output, prompt: str, config: RunConfig) -> list[str]:
    """Say what a user should know of what was found: that nothing fits, or that an asset has another color."""
    from redream.retrieval.nouns import colors_of

    lines = []
    if not found.result["neighbors"]:
        weak = found.result.get("weak", [])
        nearest = f" (the nearest, {_called(weak[0])}, is a weak match; --use takes it)" if weak else ""
        lines.append(f"no asset of the index fits {prompt!r}{nearest}; going on without assets, as --method vsd does")
    wanted = colors_of(prompt)
    for neighbor in found.result["neighbors"]:
        has = colors_of(neighbor["asset"]["caption"])
        if wanted and has and not wanted & has:
            weight = config.distill.delta_weight if config.distill.delta_every else 0.0
            lines.append(
                f"{_called(neighbor)} is {' and '.join(sorted(has))}, the prompt says {' and '.join(sorted(wanted))}: "
                f"the prompt's color wins where distill.delta_weight is small, the asset's near 1; it is {weight:g}"
            )
    return lines


def _called(neighbor: dict[str, Any]) -> str:
    asset = neighbor["asset"]
    return f"{asset['asset_id']}, {asset['caption']!r}"


def load_retrieval(output: Output) -> Retrieval:
    """Read what a retrieval stage found; its meshes lie in the output."""
    content = json.loads(output.path("retrieval.json").read_text())
    neighbors = []
    for entry in content["neighbors"]:
        asset = Asset(**entry.pop("asset"))
        place = {"mesh_path": str(output.path(asset.mesh_path)), "border": str(output.path(asset.border))}
        neighbors.append(Neighbor(asset=replace(asset, **place), **entry))
    return Retrieval(prompt=content["prompt"], neighbors=tuple(neighbors))


def _save(retrieval: Retrieval, limits: MeshLimits, work: Work) -> dict[str, object]:
    from redream.meshes.assets import named_files

    kept = []
    for number, neighbor in enumerate(retrieval.neighbors):
        mesh_path = Path(neighbor.asset.mesh_path)
        mesh_path = mesh_path.parent.resolve() / mesh_path.name  # as its files are named, whatever links lead there
        files = named_files(mesh_path, limits, neighbor.asset.border)
        top = os.path.commonpath([file.parent for file in files])  # above the mesh where its pictures are next door
        for file in files:
            copy = work.folder / str(number) / os.path.relpath(file, top)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        name = f"{number}/{os.path.relpath(mesh_path, top)}"
        kept.append(replace(neighbor, asset=replace(neighbor.asset, mesh_path=name, border=str(number))))
        work.metrics[f"score_{number}"] = neighbor.score
        work.metrics[f"text_score_{number}"] = neighbor.text_score
        work.metrics[f"lexical_score_{number}"] = neighbor.lexical_score
    write_json(work.folder / "retrieval.json", replace(retrieval, neighbors=tuple(kept)))
    work.tracker.log_artifacts([work.folder / "retrieval.json"])
    return {"neighbors": [asdict(neighbor) for neighbor in kept]}
