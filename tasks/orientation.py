"""The orientation stage: where each retrieved asset has its front. An output holds `orientation.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.records import Retrieval
from redream.settings import MeshLimits, OrientationConfig
from redream.weights import weights_digest
from tasks.machinery.store import Output, stage_key, write_json
from tasks.retrieval import load_retrieval
from tasks.runs.run import Run
from tasks.runs.stage import RETRIES, RETRY_DELAYS, Work, is_passing, run_stage

STAGE_VERSION = 3
OBJECT_RADIUS = 0.5  # that the ring of poses is made for, world units


@task(
    name="align",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def align(run: Run, retrieval: Output, clip_model: str, config: OrientationConfig, limits: MeshLimits) -> Output:
    """Find the front of every retrieved asset."""
    inputs = {"retrieval": retrieval.digest, "clip": weights_digest(clip_model)}
    settings = asdict(config)

    def produce(work: Work) -> dict[str, object]:
        from redream.clip import Clip
        from redream.images import composite, image_grid, to_images, to_uint8
        from redream.meshes.assets import load_asset, normalize_mesh
        from redream.orientation import front_of, ring_cameras
        from redream.render.mesh import gl_renderer, render_mesh

        clip = Clip(clip_model, work.device)
        camera = ring_cameras(config, clip.image_size)
        work.facts["renderer"] = gl_renderer()
        neighbors = load_retrieval(retrieval).neighbors
        found = []
        for number, neighbor in enumerate(work.track(neighbors, len(neighbors))):
            scene = normalize_mesh(load_asset(neighbor.asset, limits), OBJECT_RADIUS)
            rgb = composite(render_mesh(scene, camera), 1.0)
            orientation = front_of(neighbor.asset, to_images(rgb), clip, config)
            found.append({"asset_id": neighbor.asset.asset_id, **asdict(orientation)})
            work.metrics[f"margin_{number}"] = orientation.margin
            work.tracker.log_image(to_uint8(image_grid(rgb, columns=8)), key="align/ring", step=number)
        write_json(work.folder / "orientation.json", found)
        return {"orientations": [{name: entry[name] for name in entry if name != "scores"} for entry in found]}

    key = stage_key("align", STAGE_VERSION, settings, inputs)
    return run_stage(run, key, settings, produce, needs="device")


def load_aligned(retrieval: Output, orientation: Output) -> Retrieval:
    """Read the retrieved assets with the azimuth where each one's front was found."""
    found = {entry["asset_id"]: entry for entry in json.loads(orientation.path("orientation.json").read_text())}
    loaded = load_retrieval(retrieval)
    aligned = [replace(n, azimuth_offset_deg=found[n.asset.asset_id]["azimuth_deg"]) for n in loaded.neighbors]
    return replace(loaded, neighbors=tuple(aligned))
