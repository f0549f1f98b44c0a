"""The distillation stages: warm-up towards the retrieved assets (Eqs. 3 and 4), then the rest with the adapted prior.

Both outputs hold the loop's full state (`state/`), each particle alone (`particle_<number>.safetensors`) and
`steps.jsonl`; the second stage continues from the first one's state. While they run they save their state every minute,
and start from it after they were killed.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.method_settings import MethodSettings
from redream.methods import METHODS as FACTS
from redream.methods import unused_settings
from redream.seeds import stage_seed
from redream.settings import DistillConfig, FieldConfig, RunConfig
from redream.weights import weights_digest
from tasks.machinery.progress import Stopped, StoppedInside, stopping_inside_steps
from tasks.machinery.shared_prior import forget_prior, shared_prior
from tasks.machinery.store import Output, StageKey, stage_key
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
    from redream.distill.loop import DistillStep
    from redream.distill.particle import Particle
    from redream.distill.state import DistillState

STAGE_VERSION = 2
CHECKPOINT_EVERY_SECONDS = 60.0
NUM_PREVIEWS = 10
PREVIEW_AZIMUTHS = 4
PREVIEWS = "previews"  # folder of pictures in a run's folder
OF_INITIALISATION = ("lambda_ret_rgb", "lambda_ret_opacity", "variational_sees_assets")
SWITCHED_OFF = {"negative_prompt": "", "weighting": "sds"}  # as runs before these settings were made
OF_LEARNED_BACKGROUND = ("random_background_probability", "lr_background")


@task(
    name="warm_up",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def warm_up(run: Run, views: Output, config: RunConfig, num_concurrent: int) -> Output:
    """Run the first steps with the unadapted prior and the retrieval velocity."""
    settings = reaching_settings(config.distill, "warm_up")
    key = _key("warm_up", run, config, settings, {"views": views.digest})

    def produce(work: Work) -> dict[str, object]:
        share_cores(num_concurrent)
        end = config.distill.warm_up_steps
        with stopping_inside_steps(work.device):
            return _distill(run, config, work, views, start=None, adapter=None, until_step=end)

    return run_stage(run, key, {**asdict(config.distill), **asdict(config.field)}, produce, needs="training")


@task(
    name="distill",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def distill(run: Run, views: Output | None, warm: Output | None, adapter: Output | None, config: RunConfig) -> Output:
    """Optimise the particles to the end; methods without retrieval start from nothing."""
    found = {"views": views, "warm_up": warm, "adapter": adapter}
    inputs = {name: output.digest for name, output in found.items() if output is not None}

    def produce(work: Work) -> dict[str, object]:
        share_cores(1)
        end = config.distill.num_steps
        try:
            with stopping_inside_steps(work.device):
                return _distill(run, config, work, views, start=warm, adapter=adapter, until_step=end)
        finally:
            forget_prior()  # no later stage uses it

    key = _key("distill", run, config, reaching_settings(config.distill, "distill"), inputs)
    return run_stage(run, key, {**asdict(config.distill), **asdict(config.field)}, produce, needs="training")


def load_particles(output: Output, config: FieldConfig, device: str) -> list[Particle]:
    """Read the particles of a finished distillation."""
    from redream.distill import particle

    return particle.load_particles(output.path("state"), config, device)


def reaching_settings(config: DistillConfig, stage: str) -> dict[str, Any]:
    """Return the settings of distillation that can change a stage's result, cut to the steps that it takes."""
    has_assets = FACTS[config.method].uses_assets
    is_warm_up = stage == "warm_up"
    begin = config.warm_up_steps if has_assets and not is_warm_up else 0
    end = config.warm_up_steps if is_warm_up else config.num_steps
    settings: dict[str, Any] = asdict(config)
    # What an earlier stage did is in the inputs' content: the warm-up's state, or whether there is an adapter.
    unused = {"num_steps", "warm_up_steps", "use_adapter"}
    names = [f"distill.{name}" for name in settings]
    unused |= {name.partition(".")[2] for name in unused_settings(config.method, names)}
    unused |= {name for name, plain in SWITCHED_OFF.items() if settings[name] == plain}
    unused |= set(OF_LEARNED_BACKGROUND) if config.background == "grey" else {"background_grey"}
    if not is_warm_up:
        unused |= {"use_initialisation", *OF_INITIALISATION}
    elif not config.use_initialisation:
        unused |= set(OF_INITIALISATION)
    if config.delta_every == 0:
        unused |= {"delta_every", "delta_weight"}
    if not any(config.lambda_opacity_entropy(step) > 0 for step in range(begin, end)):
        unused |= {"lambda_opacity_entropy"}
    for change, later in (("anneal_from_step", "annealed_max_t"), ("high_resolution_from_step", "high_resolution")):
        settings[change] = max(begin, settings[change])
        unused |= {change, later} if settings[change] >= end else set()
    if settings["high_resolution_from_step"] == begin:
        unused |= {"low_resolution"}
    return {"until_step": end, **{name: value for name, value in settings.items() if name not in unused}}


def own_settings(config: RunConfig) -> dict[str, Any]:
    """Return the sections that the run's method reads, and those of the estimators that are switched on."""
    own = {entry.name: getattr(config, entry.name) for entry in fields(MethodSettings)}
    used = {config.distill.method}
    used |= {"perp_neg"} if config.perp_neg.enabled else set()
    used |= {"debias"} if config.debias.score else set()
    found: dict[str, Any] = {name: asdict(section) for name, section in own.items() if name in used}
    if "mvdream" in found:
        found["mvdream"].pop("model")  # its content is among the inputs
    # These change with the share of the run that is over, in the warm-up too.
    return {**found, "num_steps": config.distill.num_steps} if found.keys() & {"sjc", "debias", "mvdream"} else found


def prior_digest(config: RunConfig) -> str:
    """Return the digest of the weights that a run's method distils from."""
    if config.distill.method == "mvdream":
        return "+".join(weights_digest(part) for part in config.mvdream.model.split("+"))
    return weights_digest(config.prior.model, config.prior.config)


def _key(stage: str, run: Run, config: RunConfig, distill: dict[str, Any], inputs: dict[str, str]) -> StageKey:
    settings = {
        "distill": distill,
        "field": config.field.identity(),
        "camera": config.camera,
        **config.prior.identity(),
        "prompt": run.prompt,
        "seed": run.seed,
        **own_settings(config),
    }
    return stage_key(stage, STAGE_VERSION, settings, {**inputs, "prior": prior_digest(config)})


def _distill(
    run: Run,
    config: RunConfig,
    work: Work,
    views: Output | None,
    start: Output | None,
    adapter: Output | None,
    until_step: int,
) -> dict[str, object]:
    with loading:
        from safetensors.torch import save_file

        from redream.distill import loop
        from redream.distill.methods.table import METHODS
        from redream.distill.state import write_checkpoint

    assets = load_all_views(views) if views is not None else []
    with loading:
        load_prior = METHODS[config.distill.method].load_prior
        prior = load_prior(config.own, work.device) if load_prior else shared_prior(config.prior, work.device)
        if adapter is not None:
            prior.load_adapter(adapter.path("adapter"))
        state = loop.create_state(prior, assets, config.distill, config.field, stage_seed(run.seed, "distill"))
    begin = 0
    if start is not None:
        state.load(start.path("state"))
        begin = state.step
    if (work.checkpoint / "state").is_dir():
        state.load(work.checkpoint / "state")
    steps = loop.distill(
        state, prior, run.prompt, assets, config.distill, config.field, config.camera, until_step, config.own
    )
    saved, saving = time.monotonic(), None
    preview_every = max(1, (until_step - begin) // NUM_PREVIEWS)
    with ThreadPoolExecutor(max_workers=1) as writer:  # checkpoints are written while the run goes on
        try:
            for step in work.follow(steps, until_step - begin, _figures):
                if step.step % preview_every == 0:
                    _save_preview(run, state, config, work, step.step)
                if time.monotonic() - saved >= CHECKPOINT_EVERY_SECONDS:
                    if saving is not None:
                        saving.result()  # raises what went wrong there
                    saving = writer.submit(write_checkpoint, state.snapshot(), work.checkpoint / "state")
                    saved = time.monotonic()
        except StoppedInside:
            raise  # the last checkpoint stands
        except Stopped:  # raised between two steps
            writer.submit(state.save, work.checkpoint / "state").result()  # after the one that is being written
            raise
    state.save(work.folder / "state")
    for number, particle in enumerate(state.particles):  # for other programs: the state holds optimisers too
        save_file(particle.state_dict(), work.folder / f"particle_{number}.safetensors")
    work.tracker.log_artifacts(sorted(work.folder.glob("particle_*.safetensors")))
    work.metrics["num_steps"] = state.step
    return {"num_steps": state.step, "num_particles": len(state.particles)}


def _figures(step: DistillStep) -> dict[str, float]:
    mean_t = sum(step.t) / len(step.t)
    skipped = {"skipped": float(step.num_skipped)} if step.num_skipped else {}
    grad_norm = {"grad_norm": step.grad_norm} if math.isfinite(step.grad_norm) else {}
    return {**step.losses, **grad_norm, "t": mean_t, "particle": float(step.particle), **skipped}


def _save_preview(run: Run, state: DistillState, config: RunConfig, work: Work, step: int) -> None:
    """Save what every particle looks like from four sides, one row each, for the run's page and for MLflow."""
    import torch

    from redream.cameras import orbit
    from redream.images import composite, image_grid, save_png, to_uint8

    views = config.evaluation
    size = min(config.distill.low_resolution, views.image_size)
    camera = orbit(PREVIEW_AZIMUTHS, views.elevation_deg, views.camera_distance, views.fovy_deg, size)
    with torch.no_grad():
        rows = [
            composite(particle.render(camera.to(particle.asset_index.device), config.field), views.background).cpu()
            for particle in state.particles
        ]
    grid = image_grid(torch.cat(rows), PREVIEW_AZIMUTHS)
    (run.folder / PREVIEWS).mkdir(exist_ok=True)
    save_png(run.folder / PREVIEWS / f"{step:06d}_{work.stage}.png", grid)
    work.tracker.log_image(to_uint8(grid), f"{work.stage}/preview", step)
