"""The export stage: `mesh.glb`, `turntable.mp4` beside the retrieved assets' turntables, and pictures for the page.

With several particles the first one is exported to `mesh.glb`, and each to `mesh_<number>.glb`.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.settings import RunConfig
from tasks.distillation import load_particles
from tasks.evaluation import render_orbit
from tasks.machinery.progress import track
from tasks.machinery.store import Output, stage_key
from tasks.orientation import load_aligned
from tasks.runs.run import Run
from tasks.runs.stage import RETRIES, RETRY_DELAYS, Work, is_passing, loading, run_stage, share_cores

if TYPE_CHECKING:
    from torch import Tensor

    from redream.records import Neighbor

STAGE_VERSION = 5
MESH, TURNTABLE, POSTER = "mesh.glb", "turntable.mp4", "poster.png"
ASSET_VIEWS = 60  # of each asset's turntable
ORBIT_SETTINGS = ("num_views", "elevation_deg", "camera_distance", "fovy_deg", "background")


@task(
    name="export",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def export(
    run: Run,
    particles: Output,
    retrieval: Output | None,
    orientation: Output | None,
    config: RunConfig,
    num_concurrent: int = 1,
) -> Output:
    """Write the meshes and the turntable; methods without retrieval have no assets to show beside it.

    Args:
        num_concurrent: how many stages share the machine's cores meanwhile.
    """
    settings = {
        "export": config.export,
        "field": config.field.identity(),
        "orbit": {name: getattr(config.evaluation, name) for name in ORBIT_SETTINGS},
        "object_radius": config.render.object_radius,
        "mesh": config.mesh,
        "prompt": run.prompt,  # in the mesh's extras
    }
    given = {"particles": particles, "retrieval": retrieval, "orientation": orientation}
    inputs = {name: output.digest for name, output in given.items() if output is not None}

    def produce(work: Work) -> dict[str, object]:
        with loading:
            import redream.meshes.assets  # noqa: F401 (for the assets' turntables)
            import redream.render.mesh  # noqa: F401 (for the assets' turntables)
            from redream.export import export_mesh, provenance, save_turntable, side_by_side
            from redream.images import save_png
            from redream.render.mesh import gl_renderer

        share_cores(num_concurrent)
        neighbors = list(load_aligned(retrieval, orientation).neighbors) if retrieval and orientation else []
        extras = provenance(run.prompt, neighbors)
        with loading:
            fields = load_particles(particles, config.field, work.device)
        for number, particle in enumerate(track(fields, "meshes", len(fields))):
            export_mesh(
                particle.field.density_and_color,
                config.export,
                config.field.radius,
                work.folder / f"mesh_{number}.glb",
                extras,
                work.device,
            )
        shutil.copyfile(work.folder / "mesh_0.glb", work.folder / MESH)
        orbits = [render_orbit(particle, config, config.export.turntable_size, "turntable") for particle in fields]
        if neighbors:
            work.facts["renderer"] = gl_renderer()
        assets = _asset_orbits(neighbors, config)
        save_turntable(work.folder / TURNTABLE, side_by_side([*orbits, *assets]), config.export.turntable_fps)
        save_png(work.folder / POSTER, orbits[0][0])
        for number, frames in enumerate(assets):
            save_png(work.folder / thumbnail(number), frames[0])
        return {"num_particles": len(fields)}

    key = stage_key("export", STAGE_VERSION, settings, inputs)
    return run_stage(run, key, asdict(config.export), produce, needs="device")


def thumbnail(number: int) -> str:
    """Return the name of the picture of a retrieved asset's front."""
    return f"asset_{number}.png"


def _asset_orbits(neighbors: list[Neighbor], config: RunConfig) -> list[Tensor]:
    """Render each retrieved asset, turned to the front, on the orbit of the evaluation."""
    from redream.cameras import orbit
    from redream.images import composite
    from redream.meshes.assets import load_asset, normalize_mesh, turn_mesh
    from redream.render.mesh import render_mesh

    views = config.evaluation
    camera = orbit(
        ASSET_VIEWS, views.elevation_deg, views.camera_distance, views.fovy_deg, config.export.turntable_size
    )
    orbits = []
    for neighbor in track(neighbors, "assets' turntables", len(neighbors)):
        scene = normalize_mesh(load_asset(neighbor.asset, config.mesh), config.render.object_radius)
        rendering = render_mesh(turn_mesh(scene, -neighbor.azimuth_offset_deg), camera)
        orbits.append(composite(rendering, views.background))
    return orbits
