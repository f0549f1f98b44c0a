"""The adaptation stage: the 2D prior learns the retrieved assets' views (ReDream, Eq. 5).

An output holds `adapter/` (LoRA and view prefixes as safetensors), `steps.jsonl`, and `samples/`: what the prior draws
of the prompt for each view prefix, before and after.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.seeds import stage_seed
from redream.settings import RunConfig
from redream.weights import weights_digest
from tasks.machinery.progress import stopping_inside_steps
from tasks.machinery.shared_prior import shared_prior
from tasks.machinery.store import Output, stage_key
from tasks.rendering import load_all_views
from tasks.runs.run import Run
from tasks.runs.stage import (
    RETRIES,
    RETRY_DELAYS,
    Work,
    is_passing,
    loading,
    run_stage,
    share_cores,
)

if TYPE_CHECKING:
    from redream.prior.adaptation import AdaptStep, Progress
    from redream.prior.stable_diffusion import StableDiffusionPrior

STAGE_VERSION = 1
VIEW_NAMING = ("front_within_deg", "back_within_deg", "overhead_above_deg")


@task(
    name="adapt",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def adapt(run: Run, views: Output, config: RunConfig, num_concurrent: int) -> Output:
    """Adapt the prior to the assets' views and captions."""
    inputs = {"views": views.digest, "prior": weights_digest(config.prior.model, config.prior.config)}
    settings = {
        "adaptation": config.adaptation,
        # The cameras came with the views; only the names of views are new.
        "camera": {name: getattr(config.camera, name) for name in VIEW_NAMING},
        "background_grey": config.distill.background_grey,
        **config.prior.identity(),
        "prompt": run.prompt,
        "seed": run.seed,
    }

    def produce(work: Work) -> dict[str, object]:
        with loading:
            import torch

            from redream.prior.adaptation import adapt_prior

        share_cores(num_concurrent)
        with loading:
            prior = shared_prior(config.prior, work.device)
        with stopping_inside_steps(work.device):
            _save_samples(prior, run, config, work, "before")
            steps = adapt_prior(
                prior,
                load_all_views(views),
                views.result["captions"],
                config.adaptation,
                config.camera,
                config.distill.background_grey,
                torch.Generator().manual_seed(stage_seed(run.seed, "adapt")),
                progress=_progress(work),
                extending=loading,
            )
            for step in work.follow(steps, 1 + config.adaptation.num_steps, _figures):
                work.metrics["num_steps"] = step.step
                if step.is_best and step.held_out_loss is not None:
                    work.metrics["held_out_loss"] = step.held_out_loss
            prior.save_adapter(work.folder / "adapter")
            _save_samples(prior, run, config, work, "after")
        work.tracker.log_artifacts([work.folder / "adapter"])
        return {"num_steps": int(work.metrics["num_steps"])}

    key = stage_key("adapt", STAGE_VERSION, settings, inputs)
    return run_stage(run, key, asdict(config.adaptation), produce, needs="training")


def _progress(work: Work) -> Progress:
    return lambda items, label: work.track(items, len(items), f"{work.stage}: {label}")


def _figures(step: AdaptStep) -> dict[str, float | None]:
    skipped = float(step.num_skipped) if step.num_skipped else None
    loss = step.loss if math.isfinite(step.loss) else None
    return {"loss": loss, "held_out_loss": step.held_out_loss, "skipped": skipped}


def _save_samples(prior: StableDiffusionPrior, run: Run, config: RunConfig, work: Work, moment: str) -> None:
    """Draw the prompt from each side; before and after start from the same noise."""
    from redream.images import image_grid, save_png, to_rgb, to_uint8
    from redream.prior.adaptation import sample_views
    from redream.prior.prompts import VIEW_NAMES

    (work.folder / "samples").mkdir(exist_ok=True)
    if config.adaptation.num_samples_per_view == 0:
        return
    seed = stage_seed(run.seed, "samples")
    images = sample_views(prior, run.prompt, config.adaptation, seed, _progress(work))
    rows = to_rgb(images).split(config.adaptation.num_samples_per_view)
    for view, row in zip(VIEW_NAMES, rows, strict=False):  # nothing is drawn from overhead
        grid = image_grid(row, columns=len(row))
        save_png(work.folder / "samples" / f"{view}_{moment}.png", grid)
        work.tracker.log_image(to_uint8(grid), key=f"adapt/{view}", step=int(moment == "after"))
