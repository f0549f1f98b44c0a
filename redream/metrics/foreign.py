"""Results of other systems, measured as ours are: a mesh, or views as a folder of pictures or a video."""

from __future__ import annotations

import re
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from redream.cameras import camera_angles, orbit
from redream.clip import Clip
from redream.images import composite, to_images
from redream.meshes.assets import load_mesh, normalize_mesh
from redream.metrics.a_lpips import ALpips
from redream.metrics.perceptual import PerceptualNet
from redream.metrics.report import EvaluationReport, evaluate_views
from redream.render.mesh import render_mesh
from redream.settings import RunConfig

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".webm", ".gif", ".mov")
MAX_VIEWS = 2000
MAX_PIXELS = 4096 * 4096  # of a picture


def measure_mesh(path: Path | str, prompt: str, config: RunConfig, device: str) -> EvaluationReport:
    """Measure a mesh from the cameras of the evaluation; it is scaled as retrieved assets are.

    Its front is taken to be where its format has it (+z for glTF), which only the share of wrong fronts depends on.

    Raises:
        ValueError: the mesh is refused.
    """
    asked = config.evaluation
    scene = normalize_mesh(load_mesh(path, config.mesh), config.render.object_radius)
    camera = orbit(asked.num_views, asked.elevation_deg, asked.camera_distance, asked.fovy_deg, asked.image_size)
    images = to_images(composite(render_mesh(scene, camera), asked.background))
    judge = PerceptualNet.load(asked.judge, torch.device(device)) if asked.judge else None
    judged = (judge, camera_angles(camera)[0]) if judge is not None else None
    return _measured(prompt, images, config, torch.device(device), judged)


def measure_views(path: Path | str, prompt: str, config: RunConfig, device: str) -> EvaluationReport:
    """Measure views that another system has drawn, in the order of its orbit.

    Where their cameras stood is not known, so that wrong fronts are not counted.

    Raises:
        ValueError: there are fewer than two readable views, or of unequal sizes.
    """
    images = load_views(Path(path), config.evaluation.image_size, config.evaluation.background)
    return _measured(prompt, images, config, torch.device(device), None)


def load_views(path: Path, size: int, background: float) -> Float[Tensor, "batch 3 size size"]:
    """Read a folder of pictures, ordered by the numbers in their names, or a video.

    Pictures are put before `background` where they have alpha, cut to their middle square, and scaled to `size`.

    Raises:
        ValueError: there are fewer than two readable views, or of unequal sizes.
    """
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix.lower() in PICTURES), key=_natural)
        views = [_opened(file) for file in files[: MAX_VIEWS + 1]]
    elif path.suffix.lower() in VIDEOS and path.is_file():
        views = _frames(path)
    else:
        raise ValueError(
            f"--views {path}: give a folder of {', '.join(PICTURES)} files, or a video ({', '.join(VIDEOS)})"
        )
    if not 2 <= len(views) <= MAX_VIEWS:
        raise ValueError(f"--views {path}: it has {len(views)} views; 2 to {MAX_VIEWS} can be measured")
    if len(sizes := {view.size for view in views}) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        raise ValueError(f"--views {path}: the views have different sizes ({shown}); one object has views of one size")
    return to_images(torch.stack([_squared(view, size, background) for view in views]))


def _measured(
    prompt: str,
    images: Float[Tensor, "batch 3 height width"],
    config: RunConfig,
    device: torch.device,
    judge: tuple[PerceptualNet, Float[Tensor, " batch"]] | None,
) -> EvaluationReport:
    asked = config.evaluation
    clips = {model: Clip(model, device) for model in asked.clip_models}
    a_lpips = [ALpips(backbone, device) for backbone in asked.lpips_backbones]
    return evaluate_views(prompt, images, clips, a_lpips, asked.close_loop, judge)


def _natural(file: Path) -> tuple[tuple[int, int | str], ...]:
    """Order `2.png` before `10.png`."""
    parts = re.split(r"(\d{1,18})", file.name)
    return tuple((0, int(part)) if number % 2 else (1, part) for number, part in enumerate(parts))


def _opened(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{file} has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read")
            return ImageOps.exif_transpose(image).convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is not a readable picture ({error})") from None


def _frames(path: Path) -> list[Image.Image]:
    frames = []
    try:
        for frame in iio.imiter(path, plugin="pillow" if path.suffix.lower() == ".gif" else "FFMPEG"):
            if len(frames) > MAX_VIEWS or frame.shape[0] * frame.shape[1] > MAX_PIXELS:
                raise ValueError(f"{path} has too many or too large frames; at most {MAX_VIEWS} are read")
            frames.append(Image.fromarray(frame).convert("RGBA"))
    except (OSError, RuntimeError, IndexError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable video ({' '.join(str(error).split())[:200]})") from None
    return frames


def _squared(view: Image.Image, size: int, background: float) -> Float[Tensor, "size size 3"]:
    side = min(view.size)
    left, top = (view.width - side) // 2, (view.height - side) // 2
    grey = round(255 * background)
    whole = Image.new("RGBA", view.size, (grey, grey, grey, 255))
    whole.alpha_composite(view)
    cut = whole.convert("RGB").crop((left, top, left + side, top + side))
    if side != size:
        cut = cut.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(cut).copy()).float() / 255
