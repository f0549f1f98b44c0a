"""The export stage: what a person opens. An output holds `mesh.glb`, `turntable.mp4` and `page.html`.

With several particles the first one is exported to these names, and each to `mesh_<number>.glb`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.config import RunConfig, flatten
from tasks.distillation import load_particles
from tasks.evaluation import load_reports, render_orbit
from tasks.orientation import load_aligned
from tasks.progress import track
from tasks.runs import Run, record_result
from tasks.slots import choose_device
from tasks.stage import RETRIES, RETRY_DELAYS, STEPS_FILE, Work, is_passing, run_stage, share_cores
from tasks.store import Output, stage_key

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from redream.page import PageContent, PageCurve, PageMetric, PageSamples

STAGE_VERSION = 2
DELIVERED = ("page.html", "turntable.mp4", "mesh.glb")  # into the run's own folder
ASSET_VIEWS = 60  # of each asset's turntable
NO_CURVES = ("step", "t", "particle")  # drawn at random in every step
MINI_NOTE = (
    "Figures with mini models come from the miniature's own small networks. They compare runs of the miniature "
    "with each other, and with nothing else."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a page is made of; methods without retrieval have no assets and no adapter."""

    particles: Output
    report: Output
    retrieval: Output | None = None
    orientation: Output | None = None
    warm_up: Output | None = None
    adapter: Output | None = None

    def present(self) -> dict[str, Output]:
        named = {name: getattr(self, name) for name in self.__slots__}
        return {name: output for name, output in named.items() if output is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a run made, as the command shows it."""

    run_id: str
    prompt: str
    metrics: dict[str, float]
    neighbors: list[dict[str, Any]]
    page: str
    turntable: str
    mesh: str
    stages: dict[str, str]  # computed or cached
    mlflow_run_id: str


@task(
    name="export",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def export(run: Run, made_of: Inputs, config: RunConfig) -> Output:
    """Write the meshes, the turntable and the page."""
    settings = {"config": config, "prompt": run.prompt, "seed": run.seed}
    inputs = {name: output.digest for name, output in made_of.present().items()}

    def produce(work: Work) -> dict[str, object]:
        from redream.export import export_mesh, save_turntable, side_by_side
        from redream.images import to_uint8
        from redream.page import write_page

        share_cores(1)
        device = choose_device()
        particles = load_particles(made_of.particles, config.field, device)
        extras = {"prompt": run.prompt, "generator": "ReDream", "retrieved_assets": _attribution(made_of)}
        for number, particle in enumerate(track(particles, "meshes", len(particles))):
            export_mesh(
                particle.field.density_and_color,
                config.export,
                config.field.radius,
                work.folder / f"mesh_{number}.glb",
                extras,
                device,
            )
        shutil.copyfile(work.folder / "mesh_0.glb", work.folder / "mesh.glb")
        orbits = [render_orbit(particle, config, config.export.turntable_size, "turntable") for particle in particles]
        assets = _asset_orbits(made_of, config)
        save_turntable(work.folder / "turntable.mp4", side_by_side([*orbits, *assets]), config.export.turntable_fps)
        write_page(work.folder / "page.html", _page(run, made_of, config, work, to_uint8(orbits[0][0]), assets))
        return {"num_particles": len(particles)}

    return run_stage(run, stage_key("export", STAGE_VERSION, settings, inputs), asdict(config.export), produce)


def deliver(run: Run, made_of: Inputs, exported: Output) -> Made:
    """Copy what a person opens into the run's folder and close the run's record with its figures."""
    for name in DELIVERED:
        aside = run.folder / f".{name}"
        shutil.copyfile(exported.path(name), aside)
        os.replace(aside, run.folder / name)
    neighbors = _neighbors(made_of)
    files = [run.folder / name for name in DELIVERED]
    record = record_result(run, made_of.report.metrics, {"neighbors": neighbors}, files)
    page, turntable, mesh = (str(file) for file in files)
    return Made(
        run_id=run.run_id,
        prompt=run.prompt,
        metrics=made_of.report.metrics,
        neighbors=neighbors,
        page=page,
        turntable=turntable,
        mesh=mesh,
        mlflow_run_id=run.mlflow_run_id,
        stages={name: entry["state"] for name, entry in record["stages"].items()},
    )


def _neighbors(made_of: Inputs) -> list[dict[str, Any]]:
    """Return the retrieved assets with their scores and where their fronts were found."""
    if made_of.retrieval is None or made_of.orientation is None:
        return []
    found = zip(
        load_aligned(made_of.retrieval, made_of.orientation).neighbors,
        made_of.orientation.result["orientations"],
        strict=True,
    )
    return [
        {**asdict(neighbor), "margin": entry["margin"], "has_clear_front": entry["has_clear_front"]}
        for neighbor, entry in found
    ]


def _attribution(made_of: Inputs) -> list[dict[str, str]]:
    names = ("asset_id", "caption", "source", "license", "author")
    return [{name: entry["asset"][name] for name in names} for entry in _neighbors(made_of)]


def _asset_orbits(made_of: Inputs, config: RunConfig) -> list[Tensor]:
    """Render each retrieved asset, turned to the front, on the orbit of the evaluation."""
    if made_of.retrieval is None or made_of.orientation is None:
        return []
    from redream.assets import load_asset, normalize_mesh, turn_mesh
    from redream.cameras import orbit
    from redream.images import composite
    from redream.render.mesh import render_mesh

    views = config.evaluation
    camera = orbit(
        ASSET_VIEWS, views.elevation_deg, views.camera_distance, views.fovy_deg, config.export.turntable_size
    )
    neighbors = load_aligned(made_of.retrieval, made_of.orientation).neighbors
    orbits = []
    for neighbor in track(neighbors, "assets' turntables", len(neighbors)):
        scene = normalize_mesh(load_asset(neighbor.asset, config.mesh), config.render.object_radius)
        rendering = render_mesh(turn_mesh(scene, -neighbor.azimuth_offset_deg), camera)
        orbits.append(composite(rendering, views.background))
    return orbits


def _page(
    run: Run, made_of: Inputs, config: RunConfig, work: Work, poster: np.ndarray, assets: list[Tensor]
) -> PageContent:
    from redream.images import to_uint8
    from redream.page import PageContent, PageNeighbor

    neighbors = []
    for entry, frames in zip(_neighbors(made_of), assets, strict=True):
        kept = {name: entry["asset"][name] for name in ("asset_id", "caption", "license", "author", "source")}
        neighbors.append(
            PageNeighbor(
                **kept,
                thumbnail=_png(to_uint8(frames[0])),
                score=entry["score"],
                text_score=entry["text_score"],
                azimuth_deg=entry["azimuth_offset_deg"],
                margin=entry["margin"],
                has_clear_front=entry["has_clear_front"],
            )
        )
    metrics = _page_metrics(made_of)
    return PageContent(
        prompt=run.prompt,
        mesh_glb=(work.folder / "mesh.glb").read_bytes(),
        poster=_png(poster),
        turntable_mp4=(work.folder / "turntable.mp4").read_bytes(),
        subtitle=f"{config.distill.method}, {config.distill.num_steps} steps, seed {run.seed}",
        neighbors=neighbors,
        metrics=metrics,
        curves=_curves(made_of),
        samples=_samples(made_of),
        settings=flatten(config),
        versions={"prior": config.prior.model, **{name: output.key[:16] for name, output in made_of.present().items()}},
        notes=[MINI_NOTE] if any(metric.model.startswith("mini:") for metric in metrics) else [],
    )


def _page_metrics(made_of: Inputs) -> list[PageMetric]:
    from redream.page import PageMetric

    metrics = []
    reports = load_reports(made_of.report)
    for number, report in enumerate(reports):
        particle = f", particle {number}" if len(reports) > 1 else ""
        for model, value in report["clip_score"].items():
            metrics.append(
                PageMetric(
                    name=f"CLIP score{particle}",
                    model=model,
                    value=value,
                    is_higher_better=True,
                    values=tuple(report["clip_score_per_view"][model]),
                )
            )
        for model, value in report["a_lpips"].items():
            metrics.append(
                PageMetric(
                    name=f"A-LPIPS{particle}",
                    model=model,
                    value=value,
                    is_higher_better=False,
                    values=tuple(report["a_lpips_per_pair"][model]),
                )
            )
        if report["wrong_front_share"] is not None:
            metrics.append(
                PageMetric(
                    name=f"false fronts{particle}",
                    model="judge",
                    is_higher_better=False,
                    value=report["wrong_front_share"],
                    note="share of the views from behind",
                )
            )
    return metrics


def _curves(made_of: Inputs) -> list[PageCurve]:
    """Return every loss that a loop recorded, over its steps."""
    from redream.page import PageCurve

    curves = []
    for output in made_of.present().values():
        if not output.path(STEPS_FILE).is_file():
            continue
        entries = [json.loads(line) for line in output.path(STEPS_FILE).read_text().splitlines()]
        for name in dict.fromkeys(name for entry in entries for name in entry if name not in NO_CURVES):
            found = [entry for entry in entries if name in entry]
            steps, values = tuple(entry["step"] for entry in found), tuple(float(entry[name]) for entry in found)
            curves.append(PageCurve(name=f"{output.stage}: {name}", steps=steps, values=values))
    return curves


def _samples(made_of: Inputs) -> list[PageSamples]:
    from redream.page import PageSamples

    if made_of.adapter is None:
        return []
    return [
        PageSamples(
            view_name=path.name.removesuffix("_before.png"),
            before=path.read_bytes(),
            after=path.with_name(path.name.replace("_before", "_after")).read_bytes(),
        )
        for path in sorted(made_of.adapter.path("samples").glob("*_before.png"))
    ]


def _png(rgb: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    return buffer.getvalue()
