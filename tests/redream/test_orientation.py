"""Laws of the orientation: on score matrices with a planted front, and on renders planted through a tiny CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from redream.cameras import camera_angles
from redream.clip import Clip
from redream.meshes.assets import load_mesh, turn_mesh
from redream.meshes.scenes import scene_vertices
from redream.orientation import choose_front, find_front, front_evidence, ring_cameras, stated_front
from redream.records import FrontAxis, UpAxis
from redream.settings import OrientationConfig

NUM_POSES = 24


def planted_scores(front_deg: float, strength: float = 0.1, num_poses: int = NUM_POSES) -> Float[Tensor, "poses 3"]:
    """Return the scores of a model that sees front, side and back within 45 degrees of where they are."""
    azimuth = torch.arange(num_poses, dtype=torch.float64) * 360 / num_poses
    off = (azimuth - front_deg + 180) % 360 - 180
    is_front, is_back = off.abs() <= 45, off.abs() >= 135
    return 0.2 + strength * torch.stack([is_front, ~is_front & ~is_back, is_back], dim=-1).double()


def off_by(found_deg: float, true_deg: float) -> float:
    return abs((found_deg - true_deg + 180) % 360 - 180)


@settings(deadline=None)  # a law about angles, not about the speed of a busy machine
@given(front_deg=st.floats(-180, 180), num_poses=st.integers(8, 48))
def test_a_planted_front_is_found_at_any_azimuth(front_deg: float, num_poses: int):
    orientation = choose_front(front_evidence(planted_scores(front_deg, num_poses=num_poses)), 0.01)
    assert orientation.has_clear_front
    assert off_by(orientation.azimuth_deg, front_deg) <= 360 / num_poses + 1e-6
    assert -180 <= orientation.azimuth_deg < 180


@settings(deadline=None)
@given(steps=st.integers(0, NUM_POSES - 1), seed=st.integers(0, 100))
def test_turning_the_ring_turns_the_front_with_it(steps: int, seed: int):
    scores = torch.randn(NUM_POSES, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = choose_front(front_evidence(scores), -1.0)
    after = choose_front(front_evidence(scores.roll(steps, dims=0)), -1.0)
    assert off_by(after.azimuth_deg, before.azimuth_deg + steps * 360 / NUM_POSES) < 1e-6
    assert after.margin == pytest.approx(before.margin, abs=1e-12)
    np.testing.assert_allclose(np.roll(before.scores, steps), after.scores, atol=1e-12)


@pytest.mark.parametrize(
    ("up_axis", "front_axis"),
    [*(("+Y", front) for front in ("+X", "-X", "+Z", "-Z")), *(("+Z", front) for front in ("+X", "-X", "+Y", "-Y"))],
)
def test_a_front_that_is_stated_faces_the_front(up_axis: UpAxis, front_axis: FrontAxis, tmp_path: Path):
    place = np.eye(3)["XYZ".index(front_axis[1])] * (1 if front_axis[0] == "+" else -1)
    mesh = trimesh.creation.box((0.1, 0.1, 0.1))
    mesh.apply_translation(place)
    mesh.export(tmp_path / "mesh.ply")
    found = load_mesh(tmp_path / "mesh.ply", up_axis=up_axis)
    scene = turn_mesh(found, -stated_front(front_axis, up_axis).azimuth_deg)
    np.testing.assert_allclose(scene_vertices(scene).mean(axis=0), [1, 0, 0], atol=1e-6)


def test_a_mesh_that_is_kept_is_not_turned_and_an_axis_that_points_up_is_refused():
    kept = stated_front("keep", "+Y")
    assert kept.azimuth_deg == 0 and not kept.has_clear_front
    with pytest.raises(ValueError, match="stands on"):
        stated_front("+Y", "+Y")


def test_a_prompt_or_a_pose_that_always_scores_higher_changes_nothing(generator: torch.Generator):
    scores = torch.randn(NUM_POSES, 3, generator=generator, dtype=torch.float64)
    prompt_bias = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    pose_bias = torch.randn(NUM_POSES, 1, generator=generator, dtype=torch.float64)
    plain, biased = front_evidence(scores), front_evidence(scores + prompt_bias + pose_bias)
    torch.testing.assert_close(plain - plain.mean(), biased - biased.mean())


def test_swapping_front_and_back_flips_the_orientation():
    scores = planted_scores(60.0)
    flipped = choose_front(front_evidence(scores.flip(-1)), 0.01)
    assert off_by(flipped.azimuth_deg, -120.0) < 1e-6


def test_one_deceptive_pose_does_not_outvote_the_ring():
    scores = planted_scores(0.0)
    scores[12, 0] += 0.15  # by itself the highest front score, seen from behind
    assert int(scores[:, 0].argmax()) == 12
    assert choose_front(front_evidence(scores), 0.001).azimuth_deg == 0.0


def test_flat_scores_have_no_clear_front():
    orientation = choose_front(front_evidence(torch.full((NUM_POSES, 3), 0.25)), 0.001)
    assert not orientation.has_clear_front and orientation.azimuth_deg == 0.0
    assert orientation.margin == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("symmetry", [2, 4, 24])
def test_symmetric_objects_have_no_clear_front(symmetry: int):
    turned = [planted_scores(90.0 + 360 * k / symmetry) for k in range(symmetry)]
    orientation = choose_front(front_evidence(torch.stack(turned).mean(dim=0)), 1e-6)
    assert orientation.margin == pytest.approx(0, abs=1e-9)
    assert not orientation.has_clear_front and orientation.azimuth_deg == 0.0


def test_the_margin_is_a_cosine_and_grows_with_the_scores():
    weak, strong = (choose_front(front_evidence(planted_scores(30.0, strength)), 0.0) for strength in (0.1, 0.2))
    assert strong.margin == pytest.approx(2 * weak.margin)
    assert 0 < weak.margin < 0.1


def test_the_ring_starts_in_front_and_goes_round_at_one_elevation():
    config = OrientationConfig(num_poses=8, elevation_deg=15.0)
    azimuth, elevation, _ = camera_angles(ring_cameras(config, 32))
    torch.testing.assert_close(azimuth % 360, torch.arange(8) * 45.0, atol=1e-3, rtol=0)
    torch.testing.assert_close(elevation, torch.full((8,), 15.0), atol=1e-3, rtol=0)


def test_find_front_scores_the_renders_in_the_order_of_the_ring(tiny_clip_folder: Path, generator: torch.Generator):
    clip, config = Clip(str(tiny_clip_folder)), OrientationConfig(num_poses=NUM_POSES, min_margin=-1.0)
    images = torch.rand(NUM_POSES, 3, 16, 16, generator=generator)
    before = find_front(images, "an owl.", clip, config)
    after = find_front(images.roll(5, dims=0), "an owl", clip, config)
    assert off_by(after.azimuth_deg, before.azimuth_deg + 5 * 360 / NUM_POSES) < 1e-6
    assert len(before.scores) == NUM_POSES and max(before.scores) <= 1


def test_renders_of_another_ring_are_refused(tiny_clip_folder: Path):
    with pytest.raises(ValueError, match="24"):
        find_front(torch.zeros(7, 3, 16, 16), "an owl", Clip(str(tiny_clip_folder)), OrientationConfig(num_poses=24))


class ViewWords(Clip):
    """A CLIP that knows the words front, side and back, and nothing else of a prompt."""

    def __init__(self, front_deg: float, num_poses: int) -> None:
        self.front_deg, self.num_poses, self.prompts = front_deg, num_poses, []

    def embed_text(self, texts: list[str]) -> Float[Tensor, "texts dim"]:
        self.prompts += texts
        return torch.tensor([[float(word in text) for word in ("front", "side", "back")] for text in texts])

    def embed_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        pose_deg = torch.round(images[:, 0, 0, 0] * self.num_poses) * 360 / self.num_poses
        off = (pose_deg - self.front_deg + 180) % 360 - 180
        return torch.stack([off.abs() <= 45, (off.abs() > 45) & (off.abs() < 135), off.abs() >= 135], dim=-1).float()


@pytest.mark.parametrize("front_deg", [0.0, 75.0, -120.0])
def test_a_model_that_knows_only_the_view_words_finds_the_planted_front(front_deg: float):
    images = (torch.arange(NUM_POSES) / NUM_POSES)[:, None, None, None].expand(-1, 3, 4, 4)
    clip = ViewWords(front_deg, NUM_POSES)
    found = find_front(images, "an owl.", clip, OrientationConfig(num_poses=NUM_POSES))
    assert found.has_clear_front and off_by(found.azimuth_deg, front_deg) < 1e-3
    assert found.margin > 0.3
    assert all("an owl" in prompt and "owl." not in prompt for prompt in clip.prompts) and len(set(clip.prompts)) == 9
