"""Views and meshes of other systems: read as they are meant, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from redream.metrics.foreign import load_views, measure_mesh, measure_views
from redream.presets import mini

CPU = "cpu"


def save(folder: Path, shades: list[int], size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Path:
    folder.mkdir(exist_ok=True)
    for number, shade in enumerate(shades):
        Image.new("L", size, shade).convert(mode).save(folder / f"{number}.png")
    return folder


def test_views_are_read_in_the_order_of_their_numbers_as_squares_in_0_to_1(tmp_path: Path):
    shades = [20 * number for number in range(12)]
    views = load_views(save(tmp_path / "views", shades), 16, 1.0)
    assert views.shape == (12, 3, 16, 16)
    assert torch.allclose(views.mean(dim=(1, 2, 3)), torch.tensor(shades) / 255, atol=1e-6)


def test_alpha_is_put_before_the_background(tmp_path: Path):
    for number in range(2):
        Image.new("RGBA", (16, 16), (255, 0, 0, 128 * number)).save(tmp_path / f"{number}.png")
    clear, half = load_views(tmp_path, 16, 0.0)
    assert clear.abs().max() == 0 and abs(half[0].mean() - 128 / 255) < 0.01


def test_the_middle_of_a_wide_view_is_taken(tmp_path: Path):
    for number in range(2):
        picture = np.zeros((16, 48, 3), np.uint8)
        picture[:, 16:32] = 255
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    assert load_views(tmp_path, 16, 1.0).min() == 1


def test_a_video_is_its_frames(tmp_path: Path):
    frames = np.stack([np.full((64, 64, 3), shade, np.uint8) for shade in (40, 120, 200)])
    iio.imwrite(tmp_path / "turn.mp4", frames, fps=3)
    views = load_views(tmp_path / "turn.mp4", 16, 1.0)
    assert views.shape[0] == 3 and torch.allclose(
        views.mean(dim=(1, 2, 3)) * 255, torch.tensor([40.0, 120, 200]), atol=4
    )


def test_what_cannot_be_measured_is_refused_in_one_sentence(tmp_path: Path):
    (tmp_path / "noise.mp4").write_bytes(b"no video")
    unequal = save(tmp_path / "unequal", [0, 1])
    Image.new("RGB", (8, 8)).save(unequal / "2.png")
    damaged = save(tmp_path / "damaged", [0, 1])
    (damaged / "1.png").write_bytes(b"\x89PNG")
    for path, reason in [
        (tmp_path / "absent", "give a folder"),
        (save(tmp_path / "single", [0]), "it has 1 views"),
        (unequal, "different sizes .8x8, 40x32."),
        (damaged, "1.png is not a readable picture"),
        (tmp_path / "noise.mp4", "not a readable video"),
    ]:
        with pytest.raises(ValueError, match=reason) as refusal:
            load_views(path, 16, 1.0)
        assert "\n" not in str(refusal.value)


def test_a_mesh_scores_as_the_views_of_its_orbit_do(tmp_path: Path):
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.glb")
    by_mesh = measure_mesh(tmp_path / "box.glb", "a grey box", mini(), CPU)
    assert by_mesh.num_views == mini().evaluation.num_views and by_mesh.wrong_front_share is not None
    by_views = measure_views(save(tmp_path / "views", [128] * 4), "a grey box", mini(), CPU)
    assert by_views.wrong_front_share is None and by_views.summary().keys() < by_mesh.summary().keys()
    assert max(by_views.a_lpips.values()) < 1e-6 < min(by_mesh.a_lpips.values())  # equal views do not change
