"""What `mini:prior` draws, judged by a classifier trained on the truth, before and after adaptation.

Recognition: the shares of samples whose category and colour the judge names as asked, over the pairs that the catalog
leaves out. View bias: for "front", "side" and "back view of ...", the share of samples that show that view; for a few
prompts again after adapting the prior to their retrieved assets, as a run does. The judge's own accuracy on held-out
renders is printed beside. Run as `python -m benchmarks.prior_miniature [--out FILE.json] [--sheet FILE.png]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from index_build.build import build_index
from index_build.catalogs.opening import open_catalog
from index_build.views import RenderedViews
from redream.cameras import sample_cameras
from redream.clip import Clip
from redream.images import composite, image_grid, save_png, to_images, to_rgb
from redream.meshes.assets import load_mesh, normalize_mesh, turn_mesh
from redream.metrics.perceptual import PerceptualNet
from redream.mini.catalog import CATEGORIES, COLORS, catalog_pairs, write_catalog
from redream.mini.dataset import VIEWS
from redream.orientation import find_front, ring_cameras
from redream.presets import mini
from redream.prior.adaptation import adapt_prior
from redream.prior.stable_diffusion import StableDiffusionPrior, sample_images
from redream.render.mesh import AssetViews, render_mesh
from redream.retrieval.index import AssetIndex
from redream.settings import RunConfig

SAMPLES_PER_PAIR = 4
SAMPLES_PER_VIEW = 32
SAMPLE_STEPS = 25
BATCH = 64
# Left out of the catalog, so that retrieval finds relatives; none of them tuned any setting.
ADAPTED_PROMPTS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--prior", default=mini().prior.model, help="model id")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--sheet", type=Path, help="write a picture of samples, one row per category")
    parser.add_argument("--skip-adaptation", action="store_true", help="only the prior as it is")
    arguments = parser.parse_args()
    config = mini()
    prior, judge = load_prior(arguments.prior), PerceptualNet.load("mini:judge")
    result: dict[str, Any] = {"recognition": recognition(prior, judge, config, arguments.sheet)}
    print(json.dumps(result, indent=2), flush=True)
    if not arguments.skip_adaptation:
        result["views"] = view_accuracy(arguments.prior, judge, config)
        print(json.dumps(result["views"], indent=2), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def load_prior(model: str) -> StableDiffusionPrior:
    config = mini().prior
    return StableDiffusionPrior(type(config)(model=model, dtype=config.dtype))


def recognition(
    prior: StableDiffusionPrior, judge: PerceptualNet, config: RunConfig, sheet: Path | None
) -> dict[str, Any]:
    """Return the shares of samples with the right category and colour over all left-out pairs."""
    _, left_out = catalog_pairs()
    pairs = [pair for pair in left_out for _ in range(SAMPLES_PER_PAIR)]
    images = draw(prior, [_prompt(*pair) for pair in pairs], None, config.distill.guidance_scale)
    logits = judge(images)
    categories = torch.tensor([list(CATEGORIES).index(category) for category, _ in pairs])
    colors = torch.tensor([list(COLORS).index(color) for _, color in pairs])
    is_category, is_color = logits.category.argmax(1) == categories, logits.color.argmax(1) == colors
    if sheet is not None:
        save_png(sheet, image_grid(to_rgb(images), columns=4 * SAMPLES_PER_PAIR))
    weak = {
        name: round(float(share), 2)
        for index, name in enumerate(CATEGORIES)
        if (share := is_category[categories == index].float().mean()) < 0.9
    }
    return {
        "num_samples": len(pairs),
        "guidance_scale": config.distill.guidance_scale,
        "category": float(is_category.float().mean()),
        "color": float(is_color.float().mean()),
        "categories_below_90": weak,
    }


def view_accuracy(model: str, judge: PerceptualNet, config: RunConfig) -> list[dict[str, Any]]:
    """Return, per prompt, the share of samples that show the view that was asked for, before and after adaptation."""
    rng = np.random.default_rng(0)
    pairs = [pair for pair in catalog_pairs()[1] if CATEGORIES[pair[0]].has_front]
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:ADAPTED_PROMPTS]]
    clip = Clip(config.retrieval.clip_model)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_catalog(Path(folder) / "catalog")
        catalog = open_catalog(str(Path(folder) / "catalog"), cache_dir=Path(folder) / "cache")
        views = RenderedViews(config.retrieval.num_index_views, clip.image_size)
        for _ in build_index(catalog, clip, config.retrieval, views, Path(folder) / "index"):
            pass
        index = AssetIndex.open(Path(folder) / "index", clip)
        for category, color in chosen:
            prompt = _prompt(category, color)
            prior = load_prior(model)
            before = judged_views(prior, judge, prompt, config.distill.guidance_scale)
            views, captions = retrieved_views(index, clip, prompt, config)
            generator = torch.Generator().manual_seed(0)
            steps = adapt_prior(
                prior, views, captions, config.adaptation, config.camera, config.distill.background_grey, generator
            )
            num_steps = max(step.step for step in steps)
            after = judged_views(prior, judge, prompt, config.distill.guidance_scale)
            rows.append(
                {"prompt": prompt, "neighbours": captions, "num_steps": num_steps, "before": before, "after": after}
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def judged_views(
    prior: StableDiffusionPrior, judge: PerceptualNet, prompt: str, guidance_scale: float
) -> dict[str, float]:
    shares = {}
    for index, view in enumerate(VIEWS):
        images = draw(prior, [prompt] * SAMPLES_PER_VIEW, [view] * SAMPLES_PER_VIEW, guidance_scale)
        shares[view] = float((judge(images).view.argmax(1) == index).float().mean())
    return shares


def retrieved_views(
    index: AssetIndex, clip: Clip, prompt: str, config: RunConfig
) -> tuple[list[AssetViews], list[str]]:
    """Retrieve, align and render, as the stages of a run do."""
    found = index.search(prompt, config.retrieval.num_recall, config.retrieval.num_assets)
    cameras = ring_cameras(config.orientation, clip.image_size)
    generator = torch.Generator().manual_seed(0)
    views = []
    for neighbor in found.neighbors:
        scene = normalize_mesh(load_mesh(neighbor.asset.mesh_path), config.render.object_radius)
        ring = to_images(composite(render_mesh(scene, cameras), 1.0))
        front = find_front(ring, neighbor.asset.caption, clip, config.orientation)
        camera = sample_cameras(config.camera, config.render.num_views, config.render.image_size, generator)
        views.append(AssetViews(render_mesh(turn_mesh(scene, -front.azimuth_deg), camera), camera))
    return views, [neighbor.asset.caption for neighbor in found.neighbors]


def draw(
    prior: StableDiffusionPrior, prompts: list[str], views: list[str] | None, guidance_scale: float
) -> Float[Tensor, "images 3 height width"]:
    generator, images = torch.Generator().manual_seed(0), []
    with torch.no_grad():
        uncond = prior.embed([""])
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            cond = prior.embed(prompts[part], views[part] if views else None)
            images.append(sample_images(prior, cond, uncond, guidance_scale, SAMPLE_STEPS, generator))
    return torch.cat(images)


def _prompt(category: str, color: str) -> str:
    return f"{'an' if color[0] in 'aeiou' else 'a'} {color} {category}"


if __name__ == "__main__":
    main()
