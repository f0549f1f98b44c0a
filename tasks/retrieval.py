"""The retrieval stage: from a prompt to the nearest assets, or from the user's own meshes to the same records.

An output holds a copy of each retrieved mesh and `retrieval.json`, with mesh paths relative to its folder.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.records import Asset, Neighbor, Retrieval, UpAxis
from redream.settings import DownloadConfig, MeshLimits, RetrievalConfig, RunConfig
from redream.weights import weights_digest
from tasks.machinery.progress import track
from tasks.machinery.searching import IndexPlace, search
from tasks.machinery.store import Output, file_digest, stage_key, write_json
from tasks.runs.run import Run
from tasks.runs.stage import RETRIES, RETRY_DELAYS, Work, is_passing, run_stage

STAGE_VERSION = 5
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
    inputs = {"index": index.content_hash, "clip": weights_digest(config.clip_model)}
    settings = {
        "prompt": run.prompt,
        "num_recall": config.num_recall,
        "num_assets": config.num_assets,
        "licenses": config.licenses,
        "use": config.use,
        "leave_out": config.leave_out,
        "take_weak": config.take_weak,
    }

    def produce(work: Work) -> dict[str, object]:
        found = search(index, run.prompt, config).neighbors
        taken = [neighbor for neighbor in found if config.take_weak or not neighbor.is_weak]
        retrieval = Retrieval(prompt=run.prompt, neighbors=tuple(taken))
        fetch_meshes(retrieval, download, limits)
        return {**_save(retrieval, work), "weak": [asdict(neighbor) for neighbor in found if neighbor not in taken]}

    return run_stage(run, stage_key("retrieve", STAGE_VERSION, settings, inputs), settings, produce)


@task(name="take_assets", cache_policy=NO_CACHE)
def take_assets(run: Run, mesh_paths: list[str], limits: MeshLimits, up_axis: UpAxis = "+Y") -> Output:
    """Start from the user's own meshes instead: the paper's enhancement of given 3D data."""
    from redream.meshes.assets import load_mesh

    for path in mesh_paths:
        load_mesh(path, limits, up_axis)  # refuses what is no mesh, with the reason, before anything of it is read here
    inputs = {
        f"asset_{number}_{place}": file_digest(file)
        for number, path in enumerate(mesh_paths)
        for place, file in enumerate(mesh_files(Path(path)))
    }
    settings = {"prompt": run.prompt, "up_axis": up_axis}

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
        return _save(Retrieval(prompt=run.prompt, neighbors=tuple(neighbors)), work)

    return run_stage(run, stage_key("take_assets", STAGE_VERSION, settings, inputs), settings, produce)


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
        neighbors.append(Neighbor(asset=replace(asset, mesh_path=str(output.path(asset.mesh_path))), **entry))
    return Retrieval(prompt=content["prompt"], neighbors=tuple(neighbors))


def mesh_files(path: Path) -> list[Path]:
    """Return a mesh file and the files that it names, such as buffers and textures, as far as they lie below it."""
    path = path.resolve()
    named: list[str] = []
    if path.suffix.lower() in (".glb", ".gltf"):
        from redream.meshes.reading.gltf import named_files

        named = [unquote(uri) for uri in named_files(path.read_bytes()) if "\0" not in unquote(uri)]
    elif path.suffix.lower() == ".obj":
        libraries = _named_after(path, ("mtllib",))
        named = libraries + [
            texture
            for library in libraries
            if (path.parent / library).is_file()
            for texture in _named_after(path.parent / library, ("map_", "norm", "bump"))
        ]
    root = path.parent
    files = [root / name for name in dict.fromkeys(named)]
    return [path, *(file for file in files if file.resolve().is_relative_to(root) and file.is_file())]


def _named_after(path: Path, keywords: tuple[str, ...]) -> list[str]:
    """Return the file names in lines of OBJ and MTL files that start with a keyword; options stand before a name."""
    lines = (line.strip().partition(" ") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    rests = [rest.strip() for word, _, rest in lines if word.lower().startswith(keywords) and rest.strip()]
    return [rest if (path.parent / rest).is_file() else rest.split()[-1] for rest in rests]


def _save(retrieval: Retrieval, work: Work) -> dict[str, object]:
    kept = []
    for number, neighbor in enumerate(retrieval.neighbors):
        mesh_path = Path(neighbor.asset.mesh_path).resolve()
        for file in mesh_files(mesh_path):
            copy = work.folder / str(number) / os.path.relpath(file, mesh_path.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        name = f"{number}/{mesh_path.name}"
        kept.append(replace(neighbor, asset=replace(neighbor.asset, mesh_path=name)))
        work.metrics[f"score_{number}"] = neighbor.score
        work.metrics[f"text_score_{number}"] = neighbor.text_score
        work.metrics[f"lexical_score_{number}"] = neighbor.lexical_score
    write_json(work.folder / "retrieval.json", replace(retrieval, neighbors=tuple(kept)))
    work.tracker.log_artifacts([work.folder / "retrieval.json"])
    return {"neighbors": [asdict(neighbor) for neighbor in kept]}
