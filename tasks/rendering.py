"""The rendering stage: every retrieved asset from many cameras, its front turned to +x. An output holds one folder of
views per asset, in the order of the retrieval."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.seeds import stage_seed
from redream.settings import CameraConfig, MeshLimits, RenderConfig
from tasks.machinery.store import Output, stage_key
from tasks.orientation import load_aligned
from tasks.runs.run import Run
from tasks.runs.stage import RETRIES, RETRY_DELAYS, Work, is_passing, run_stage

if TYPE_CHECKING:
    from redream.render.mesh import AssetViews

STAGE_VERSION = 3


@task(
    name="render",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def render(
    run: Run, retrieval: Output, orientation: Output, config: RenderConfig, cameras: CameraConfig, limits: MeshLimits
) -> Output:
    """Render the retrieved assets from cameras drawn uniformly in azimuth."""
    inputs = {"retrieval": retrieval.digest, "orientation": orientation.digest}
    # Where a view begins to be called front or overhead decides no camera.
    ranges = {name: getattr(cameras, name) for name in ("camera_distance", "fovy_deg", "elevation_deg")}
    settings = {"render": config, "camera": ranges, "seed": run.seed}

    def produce(work: Work) -> dict[str, object]:
        import torch

        from redream.cameras import sample_cameras
        from redream.meshes.assets import load_asset, normalize_mesh, turn_mesh
        from redream.render.mesh import AssetViews, gl_renderer, render_mesh, save_views

        work.facts["renderer"] = gl_renderer()
        generator = torch.Generator().manual_seed(stage_seed(run.seed, "render"))
        neighbors = load_aligned(retrieval, orientation).neighbors
        for number, neighbor in enumerate(work.track(neighbors, len(neighbors))):
            scene = normalize_mesh(load_asset(neighbor.asset, limits), config.object_radius)
            camera = sample_cameras(cameras, config.num_views, config.image_size, generator)
            views = AssetViews(render_mesh(turn_mesh(scene, -neighbor.azimuth_offset_deg), camera), camera)
            save_views(work.folder / f"asset_{number}", views)
            work.tracker.log_artifacts([work.folder / f"asset_{number}" / "contact.png"], f"asset_{number}")
        work.metrics["num_views"] = config.num_views * len(neighbors)
        return {"num_assets": len(neighbors), "captions": [n.asset.caption for n in neighbors]}

    key = stage_key("render", STAGE_VERSION, settings, inputs)
    return run_stage(run, key, {**asdict(config), **asdict(cameras)}, produce)


def load_all_views(views: Output) -> list[AssetViews]:
    """Read the views of every asset, in the order of the retrieval."""
    from redream.render.mesh import load_views

    return [load_views(views.path(f"asset_{number}")) for number in range(views.result["num_assets"])]
