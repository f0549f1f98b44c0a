"""What the orchestration costs: `redream generate` against the same stages called directly, both in fresh processes.

The direct program calls the library's functions one after the other, with neither Prefect nor MLflow, store nor page.
`generate` runs three times: with a new database, with the same database and another seed, and with nothing left to do.
The preset is `smoke`, for the difference does not depend on how long stages take. Run as
`python -m benchmarks.overhead`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a red owl"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--direct", nargs=3, metavar=("INDEX", "ASSETS", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    if arguments.direct:
        run_directly(*map(Path, arguments.direct), arguments.preset)
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), arguments.preset)
    print("\n".join(f"{name:<24}{seconds:7.1f} s" for name, seconds in figures.items()))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(scratch: Path, preset: str) -> dict[str, float]:
    """Return seconds; the index is built before, and lies in the store of what is timed."""
    redream = [sys.executable, "-m", "flows.command"]
    built = [*redream, "index", "build", "--preset", preset, "--out", str(scratch / "index"), "--json"]
    place = json.loads(subprocess.run(built, check=True, capture_output=True, text=True).stdout)
    shutil.copytree(scratch / "index" / "store", scratch / "out" / "store")
    directly = [sys.executable, "-m", "benchmarks.overhead", "--preset", preset]
    directly += ["--direct", place["index_dir"], place["asset_root"]]

    def generate(seed: int) -> list[str]:
        options = ["--preset", preset, "--seed", str(seed), "--out", str(scratch / "out"), "--json"]
        return [*redream, "generate", PROMPT, *options]

    # The first call of each kind would also fill the disk's cache and compile kernels: a direct one goes ahead unseen.
    _seconds([*directly, str(scratch / "unseen")])
    figures = {"direct": _seconds([*directly, str(scratch / "direct")])}
    figures["new database"] = _seconds(generate(0))
    figures["same database"] = _seconds(generate(1))
    figures["nothing to do"] = _seconds(generate(1))
    return {
        **figures,
        "overhead, new database": figures["new database"] - figures["direct"],
        "overhead, same database": figures["same database"] - figures["direct"],
    }


def run_directly(index_dir: Path, asset_root: Path, folder: Path, preset: str) -> None:
    """Call every stage of a run once."""
    import torch

    from redream.cameras import camera_angles, orbit, sample_cameras
    from redream.clip import Clip
    from redream.distill import loop
    from redream.export import export_mesh, save_turntable
    from redream.images import composite, to_images
    from redream.meshes.assets import load_mesh, normalize_mesh, turn_mesh
    from redream.metrics.a_lpips import ALpips
    from redream.metrics.perceptual import PerceptualNet
    from redream.metrics.report import evaluate_views
    from redream.orientation import find_front, ring_cameras
    from redream.presets import PRESETS
    from redream.prior.adaptation import adapt_prior, sample_views
    from redream.prior.stable_diffusion import StableDiffusionPrior
    from redream.render.mesh import AssetViews, render_mesh
    from redream.retrieval.index import AssetIndex

    config = PRESETS[preset]()
    folder.mkdir(parents=True)
    clip = Clip(config.retrieval.clip_model)
    retrieval = config.retrieval
    found = AssetIndex.open(index_dir, clip, asset_root).search(PROMPT, retrieval.num_recall, retrieval.num_assets)
    generator = torch.Generator().manual_seed(0)
    views, captions, scenes = [], [], []
    for neighbor in found.neighbors:
        scene = normalize_mesh(load_mesh(neighbor.asset.mesh_path), config.render.object_radius)
        ring = to_images(composite(render_mesh(scene, ring_cameras(config.orientation, clip.image_size)), 1.0))
        front = find_front(ring, neighbor.asset.caption, clip, config.orientation)
        scenes.append(turn_mesh(scene, -front.azimuth_deg))
        camera = sample_cameras(config.camera, config.render.num_views, config.render.image_size, generator)
        views.append(AssetViews(render_mesh(scenes[-1], camera), camera))
        captions.append(neighbor.asset.caption)

    def advance(prior: StableDiffusionPrior, state: loop.DistillState, until_step: int) -> None:
        for _ in loop.distill(state, prior, PROMPT, views, config.distill, config.field, config.camera, until_step):
            pass

    prior = StableDiffusionPrior(config.prior)
    state = loop.create_state(prior, views, config.distill, config.field, seed=0)
    advance(prior, state, config.distill.warm_up_steps)
    state.save(folder)
    prior = StableDiffusionPrior(config.prior)
    sample_views(prior, PROMPT, config.distill.guidance_scale, config.adaptation, seed=0)
    grey = config.distill.background_grey
    for _ in adapt_prior(prior, views, captions, config.adaptation, config.camera, grey, generator):
        pass
    sample_views(prior, PROMPT, config.distill.guidance_scale, config.adaptation, seed=0)
    state = loop.create_state(prior, views, config.distill, config.field, seed=0)
    state.load(folder)
    advance(prior, state, config.distill.num_steps)

    particle, e = state.particles[0], config.evaluation
    clips = {model: Clip(model) for model in e.clip_models}
    a_lpips = [ALpips(backbone) for backbone in e.lpips_backbones]
    camera = orbit(e.num_views, e.elevation_deg, e.camera_distance, e.fovy_deg, e.image_size)
    large = orbit(e.num_views, e.elevation_deg, e.camera_distance, e.fovy_deg, config.export.turntable_size)
    with torch.no_grad():
        rgb = composite(particle.render(camera, config.field), e.background)
        turntable = composite(particle.render(large, config.field), e.background)
    judge = (PerceptualNet.load(e.judge), camera_angles(camera)[0])
    evaluate_views(PROMPT, to_images(rgb), clips, a_lpips, e.close_loop, judge)
    export_mesh(particle.field.density_and_color, config.export, config.field.radius, folder / "mesh.glb")
    for scene in scenes:
        render_mesh(scene, large[::2])
    save_turntable(folder / "turntable.mp4", turntable, config.export.turntable_fps)


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
