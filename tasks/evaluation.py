"""The evaluation stage: each particle from all sides, scored by models that had no part in making it.

An output holds `report.json` with every value, `views.csv` with those of each view, and one contact sheet per particle.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.settings import RunConfig
from redream.weights import weights_digest
from tasks.distillation import load_particles
from tasks.machinery.progress import track, waiting
from tasks.machinery.store import Output, stage_key, write_json
from tasks.runs.run import Run
from tasks.runs.stage import RETRIES, RETRY_DELAYS, Work, is_passing, loading, run_stage, share_cores

if TYPE_CHECKING:
    from torch import Tensor

    from redream.cameras import Camera
    from redream.distill.particle import Particle
    from redream.metrics.report import EvaluationReport

STAGE_VERSION = 3
VIEWS_PER_BATCH = 8
MODEL_SETTINGS = ("clip_models", "lpips_backbones", "judge")


@task(
    name="evaluate",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def evaluate(run: Run, particles: Output, config: RunConfig, num_concurrent: int = 1) -> Output:
    """Render every particle on the orbit and score the views; `num_concurrent` stages share the cores meanwhile."""
    inputs = {"particles": particles.digest}
    models = [*config.evaluation.clip_models, *config.evaluation.lpips_backbones, config.evaluation.judge]
    inputs |= {f"model_{i}": weights_digest(model) for i, model in enumerate(models)}  # names may be paths
    views = {name: value for name, value in asdict(config.evaluation).items() if name not in MODEL_SETTINGS}
    settings = {"evaluation": views, "field": config.field.identity(), "prompt": run.prompt}

    def produce(work: Work) -> dict[str, object]:
        with loading:
            from redream.cameras import camera_angles
            from redream.clip import Clip
            from redream.images import image_grid, save_png, to_images
            from redream.metrics.a_lpips import ALpips
            from redream.metrics.perceptual import PerceptualNet
            from redream.metrics.report import evaluate_views

        share_cores(num_concurrent)
        with waiting("loading the evaluation models"):
            clips = {model: Clip(model, work.device) for model in config.evaluation.clip_models}
            a_lpips = [ALpips(backbone, work.device) for backbone in config.evaluation.lpips_backbones]
            judge = PerceptualNet.load(config.evaluation.judge, work.device) if config.evaluation.judge else None
        azimuth_deg, _, _ = camera_angles(_orbit(config, config.evaluation.image_size))
        reports = []
        with loading:
            fields = load_particles(particles, config.field, work.device)
        for number, particle in enumerate(fields):
            rgb = render_orbit(particle, config, config.evaluation.image_size, "evaluate")
            judged = (judge, azimuth_deg) if judge is not None else None
            close_loop = config.evaluation.close_loop
            reports.append(evaluate_views(run.prompt, to_images(rgb), clips, a_lpips, close_loop, judged))
            save_png(work.folder / sheet_name(number), image_grid(rgb[:: max(1, len(rgb) // 12)], columns=6))
        work.metrics.update(_mean_summary(reports))
        write_json(work.folder / "report.json", reports)
        _write_views(work.folder / "views.csv", reports, azimuth_deg.tolist())
        work.tracker.log_artifacts(sorted(work.folder.iterdir()))
        return {"num_particles": len(reports)}

    key = stage_key("evaluate", STAGE_VERSION, settings, inputs)
    return run_stage(run, key, asdict(config.evaluation), produce, needs="device")


def sheet_name(number: int) -> str:
    """Return the name of the picture of a particle from all sides."""
    return f"orbit_{number}.png"


def render_orbit(particle: Particle, config: RunConfig, size: int, label: str) -> Tensor:
    """Render the orbit of the evaluation, [V, H, W, 3] before its background."""
    import torch

    from redream.images import composite

    views = config.evaluation
    camera = _orbit(config, size).to(particle.asset_index.device)
    starts = range(0, len(camera), VIEWS_PER_BATCH)
    batches = [camera[start : start + VIEWS_PER_BATCH] for start in starts]
    with torch.no_grad():
        return torch.cat(
            [
                composite(particle.render(batch, config.field), views.background).cpu()
                for batch in track(batches, label, len(batches))
            ]
        )


def _orbit(config: RunConfig, size: int) -> Camera:
    from redream.cameras import orbit

    views = config.evaluation
    return orbit(views.num_views, views.elevation_deg, views.camera_distance, views.fovy_deg, size)


def load_reports(output: Output) -> list[dict[str, Any]]:
    """Read the reports of all particles, each an `EvaluationReport` as JSON."""
    return json.loads(output.path("report.json").read_text())


def _mean_summary(reports: list[EvaluationReport]) -> dict[str, float]:
    summaries = [report.summary() for report in reports]
    return {name: sum(summary[name] for summary in summaries) / len(summaries) for name in summaries[0]}


def _write_views(path: Path, reports: list[EvaluationReport], azimuth_deg: list[float]) -> None:
    """Write a line for each view, which MLflow shows as a table; A-LPIPS is that of the view and the next."""
    from redream.metrics.report import metric_keys

    with path.open("w", newline="") as file:
        table = csv.writer(file)
        for number, report in enumerate(reports):
            clips, distances = report.clip_score_per_view, report.a_lpips_per_pair
            scores = dict(zip(metric_keys("clip", clips), clips.values(), strict=True))
            scores |= zip(metric_keys("lpips", distances), distances.values(), strict=True)
            if number == 0:
                table.writerow(["particle", "view", "azimuth_deg", *scores])
            for view, azimuth in enumerate(azimuth_deg):
                shown = [f"{values[view]:.4f}" if view < len(values) else "" for values in scores.values()]
                table.writerow([number, view, f"{azimuth:.1f}", *shown])
