"""The method, every stage once, without orchestration: read this first, then the functions that it calls.

The flow (`flows/generate.py`) does the same with a store, retries and tracking around each stage.
`tests/flows/test_generate.py` holds both to the same field, mesh and metrics, bit for bit.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from redream.cameras import camera_angles, orbit, sample_cameras
from redream.clip import Clip
from redream.distill import loop
from redream.distill.particle import Particle
from redream.export import export_mesh, provenance
from redream.images import composite, to_images
from redream.meshes.assets import load_asset, normalize_mesh, turn_mesh
from redream.metrics.a_lpips import ALpips
from redream.metrics.perceptual import PerceptualNet
from redream.metrics.report import EvaluationReport, evaluate_views
from redream.orientation import front_of, ring_cameras
from redream.prior.adaptation import adapt_prior
from redream.prior.frozen import FrozenModel
from redream.prior.stable_diffusion import StableDiffusionPrior
from redream.render.mesh import AssetViews, render_mesh
from redream.retrieval.index import AssetIndex
from redream.retrieval.licenses import is_allowed
from redream.seeds import stage_seed
from redream.settings import RunConfig


def generate(prompt: str, config: RunConfig, index_dir: Path | str, folder: Path, seed: int = 0) -> EvaluationReport:
    """Write `mesh.glb` and `particle.safetensors` for a prompt, and return how the object scores.

    Args:
        index_dir: an index built with `config.retrieval.clip_model`.
        folder: an empty folder, which also gets the adapter and the state after the warm-up.
    """
    clip = Clip(config.retrieval.clip_model)
    index, asked = AssetIndex.open(index_dir, clip), config.retrieval
    allows = partial(is_allowed, codes=asked.licenses) if asked.licenses else None
    among = index.matching(asked.where, asked.table, asked.age_restricted)
    found = (
        index.chosen(prompt, asked.use)
        if asked.use
        else index.search(
            prompt, asked.num_recall, asked.num_assets, allows, asked.leave_out, among, asked.max_likeness
        )
    )
    neighbors = found.taken(config.retrieval.take_weak)
    if not neighbors:
        raise ValueError(f"no asset of the index fits {prompt!r}; without assets the method is vsd")
    captions = [neighbor.asset.caption for neighbor in neighbors]

    # Sec. 5.1 and App. B: turn every asset to its front, and render it from random cameras.
    generator = torch.Generator().manual_seed(stage_seed(seed, "render"))
    views = []
    for neighbor in neighbors:
        mesh = load_asset(neighbor.asset, config.mesh)
        ring = composite(render_mesh(normalize_mesh(mesh, 0.5), ring_cameras(config.orientation, clip.image_size)), 1.0)
        front = front_of(neighbor.asset, to_images(ring), clip, config.orientation)
        camera = sample_cameras(config.camera, config.render.num_views, config.render.image_size, generator)
        scene = normalize_mesh(mesh, config.render.object_radius)
        views.append(AssetViews(render_mesh(turn_mesh(scene, -front.azimuth_deg), camera), camera))

    # Eqs. 3 and 4: the first steps, with the plain prior and the retrieval velocity.
    frozen = FrozenModel(config.prior)
    _distill(prompt, config, frozen, views, folder, seed, until_step=config.distill.warm_up_steps)

    # Eq. 5: adapt the prior to the assets.
    if config.distill.use_adapter:
        prior = StableDiffusionPrior(config.prior, frozen=frozen)
        generator = torch.Generator().manual_seed(stage_seed(seed, "adapt"))
        background = config.distill.background_grey
        for _ in adapt_prior(prior, views, captions, config.adaptation, config.camera, background, generator):
            pass
        prior.save_adapter(folder / "adapter")

    # Eq. 2 with the adapted prior, and the regulariser of App. B.
    particle = _distill(prompt, config, frozen, views, folder, seed, until_step=config.distill.num_steps)

    save_file(particle.state_dict(), folder / "particle.safetensors")
    mesh, origin = folder / "mesh.glb", provenance(prompt, neighbors)
    export_mesh(particle.field.density_and_color, config.export, config.field.radius, mesh, origin)
    return _evaluate(prompt, config, particle)


def _distill(
    prompt: str,
    config: RunConfig,
    frozen: FrozenModel,
    views: list[AssetViews],
    folder: Path,
    seed: int,
    until_step: int,
) -> Particle:
    """Optimise from the start or, once there has been a warm-up, from the state after it."""
    prior = StableDiffusionPrior(config.prior, frozen=frozen)
    is_warm = (folder / "warm_up").is_dir()
    if (folder / "adapter").is_dir():
        prior.load_adapter(folder / "adapter")
    state = loop.create_state(prior, views, config.distill, config.field, stage_seed(seed, "distill"))
    if is_warm:
        state.load(folder / "warm_up")
    for _ in loop.distill(
        state, prior, prompt, views, config.distill, config.field, config.camera, until_step, config.own
    ):
        pass
    state.save(folder / ("distilled" if is_warm else "warm_up"))
    return state.particles[0]


def _evaluate(prompt: str, config: RunConfig, particle: Particle) -> EvaluationReport:
    """Score the orbit of Sec. 4 by models that had no part in making the object."""
    views = config.evaluation
    camera = orbit(views.num_views, views.elevation_deg, views.camera_distance, views.fovy_deg, views.image_size)
    batches = [camera[start : start + 8] for start in range(0, len(camera), 8)]
    with torch.no_grad():
        rgb = torch.cat([composite(particle.render(each, config.field), views.background) for each in batches])
    clips = {model: Clip(model) for model in views.clip_models}
    a_lpips = [ALpips(backbone) for backbone in views.lpips_backbones]
    judge = (PerceptualNet.load(views.judge), camera_angles(camera)[0]) if views.judge else None
    return evaluate_views(prompt, to_images(rgb), clips, a_lpips, views.close_loop, judge)
