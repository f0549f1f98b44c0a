import math

import pytest
import torch

from redream.cameras import Camera, camera_angles, camera_rays, cameras_at, look_at, orbit, sample_cameras, view_name
from redream.settings import CameraConfig


def one_camera(azimuth: float, elevation: float, distance: float = 2.0, fovy: float = 60.0, size: int = 4):
    azimuths, elevations, distances, fovys = torch.tensor([[azimuth], [elevation], [distance], [fovy]]).float()
    return cameras_at(azimuths, elevations, distances, fovys, size)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "eye"),
    [
        (0, 0, (2, 0, 0)),
        (90, 0, (0, 2, 0)),
        (-180, 0, (-2, 0, 0)),
        (-90, 0, (0, -2, 0)),
        (0, 90, (0, 0, 2)),
        (0, -90, (0, 0, -2)),
    ],
)
def test_six_named_cameras_stand_where_the_conventions_say(azimuth, elevation, eye) -> None:
    camera = one_camera(azimuth, elevation)
    assert torch.allclose(camera.c2w[0, :3, 3], torch.tensor(eye, dtype=torch.float32), atol=1e-6)
    assert torch.allclose(-camera.c2w[0, :3, 2], -torch.tensor(eye) / 2.0, atol=1e-6)  # looks at the origin along -z


def test_camera_matrices_are_rotations_with_world_up_in_the_upper_half(generator) -> None:
    camera = sample_cameras(CameraConfig(), 64, 8, generator)
    rotation = camera.c2w[:, :3, :3]
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(64, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(64), atol=1e-5)
    assert (rotation[:, 2, 1] > 0).all() and torch.allclose(rotation[:, 2, 0], torch.zeros(64), atol=1e-6)


def test_orbit_then_angles_round_trips() -> None:
    azimuth, elevation, distance = camera_angles(orbit(8, 15.0, 1.5, 45.0, 4))
    assert torch.allclose(azimuth, torch.tensor([0.0, 45, 90, 135, -180, -135, -90, -45]), atol=1e-3)
    assert torch.allclose(elevation, torch.full((8,), 15.0), atol=1e-3)
    assert torch.allclose(distance, torch.full((8,), 1.5), atol=1e-5)


def test_orbit_of_120_views_does_not_repeat_its_first_view_at_the_end() -> None:
    eyes = orbit(120, 15.0, 1.5, 45.0, 4).c2w[:, :3, 3]
    steps = (eyes - eyes.roll(1, 0)).norm(dim=-1)
    assert torch.allclose(steps, steps[0].expand(120), atol=1e-5) and steps[0] > 0.01


def test_rays_of_opposite_cameras_are_opposite_through_the_middle() -> None:
    front, back = camera_rays(one_camera(30, 0, size=5)), camera_rays(one_camera(210, 0, size=5))
    assert torch.allclose(front.directions[0, 2, 2], -back.directions[0, 2, 2], atol=1e-6)


def test_rays_are_unit_and_span_the_field_of_view() -> None:
    rays = camera_rays(one_camera(0, 0, fovy=60.0, size=256))
    assert torch.allclose(rays.directions.norm(dim=-1), torch.ones(1, 256, 256), atol=1e-6)
    top, bottom = rays.directions[0, 0, 128], rays.directions[0, -1, 128]
    angle = math.degrees(math.acos(float(top @ bottom)))
    assert angle == pytest.approx(60.0, abs=0.3) and top[2] > 0 > bottom[2]  # row 0 is up


def test_image_x_grows_to_the_viewers_right() -> None:
    # Seen from the front (+x), the viewer's right is +y.
    rays = camera_rays(one_camera(0, 0, size=8))
    assert rays.directions[0, 4, 7, 1] > 0 > rays.directions[0, 4, 0, 1]


def test_intrinsics_project_every_ray_back_to_its_pixel_centre() -> None:
    height, width = 5, 9
    eye = torch.tensor([[1.5, 0.6, 0.4], [-0.3, -2.0, 1.0]])
    camera = Camera(look_at(eye), torch.tensor([40.0, 70.0]), height, width)
    rays = camera_rays(camera)
    assert rays.directions.shape == (2, height, width, 3)
    local = torch.einsum("bji,bhwj->bhwi", camera.c2w[:, :3, :3], rays.directions) * torch.tensor([1.0, -1.0, -1.0])
    pixels = torch.einsum("bij,bhwj->bhwi", camera.intrinsics, local)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    expected = torch.stack([x, y], dim=-1).expand(2, -1, -1, -1)
    torch.testing.assert_close(pixels[..., :2] / pixels[..., 2:], expected, atol=1e-4, rtol=0)


def test_the_field_of_view_is_that_of_the_height_in_images_of_any_shape() -> None:
    camera = Camera(look_at(torch.tensor([[2.0, 0.0, 0.0]])), torch.tensor([60.0]), 4, 12)
    focal = camera.intrinsics[0, 1, 1]
    assert float(focal) == pytest.approx(2.0 / math.tan(math.radians(30.0)), rel=1e-5)
    assert camera.intrinsics[0, :2, 2].tolist() == [6.0, 2.0]


def test_elevations_are_half_uniform_in_angle_and_half_uniform_on_the_sphere(generator) -> None:
    low, high = -10.0, 80.0
    config = CameraConfig(elevation_deg=(low, high))
    _, elevation, _ = camera_angles(sample_cameras(config, 20_000, 4, generator))
    a, b = math.radians(low), math.radians(high)
    on_sphere = (b * math.sin(b) + math.cos(b) - a * math.sin(a) - math.cos(a)) / (math.sin(b) - math.sin(a))
    expected = 0.5 * (0.5 * (low + high) + math.degrees(on_sphere))
    assert float(elevation.mean()) == pytest.approx(expected, abs=0.7)  # 29.5; 35 in angle alone, 24 on the sphere
    assert abs(0.5 * (low + high) - expected) > 3


def test_sampled_cameras_keep_their_ranges_and_cover_all_azimuths(generator) -> None:
    config = CameraConfig(camera_distance=(1.2, 1.3), fovy_deg=(40.0, 50.0), elevation_deg=(-10.0, 45.0))
    camera = sample_cameras(config, 2_000, 4, generator)
    azimuth, elevation, distance = camera_angles(camera)
    assert distance.min() >= 1.2 - 1e-5 and distance.max() <= 1.3 + 1e-5
    assert elevation.min() >= -10.01 and elevation.max() <= 45.01
    assert camera.fovy_deg.min() >= 40 and camera.fovy_deg.max() <= 50
    counts = torch.histc(azimuth, 8, -180, 180)
    assert (counts - 250).abs().max() < 80


def test_sampling_is_reproducible_from_its_generator() -> None:
    draws = [sample_cameras(CameraConfig(), 5, 4, torch.Generator().manual_seed(3)).c2w for _ in range(2)]
    assert torch.equal(draws[0], draws[1])


@pytest.mark.parametrize(
    ("azimuth", "elevation", "name"),
    [
        (0, 0, "front"),
        (-30, 10, "front"),
        (31, 0, "side"),
        (-90, 0, "side"),
        (149, 0, "side"),
        (151, 0, "back"),
        (-180, 0, "back"),
        (360, 0, "front"),
        (0, 61, "overhead"),
        (180, 80, "overhead"),
        (0, -70, "front"),
        (90, -70, "side"),
        (180, -90, "back"),
    ],
)
def test_views_are_named_by_their_angles(azimuth, elevation, name) -> None:
    assert view_name(float(azimuth), float(elevation), CameraConfig()) == name


def test_indexing_keeps_the_batch_axis() -> None:
    camera = orbit(4, 0.0, 1.0, 45.0, 8)
    assert len(camera[2]) == 1 and len(camera[-1]) == 1 and len(camera[1:3]) == 2
    assert torch.equal(camera[-1].c2w, camera.c2w[3:])


def test_looking_straight_down_shows_the_front_at_the_bottom() -> None:
    c2w = look_at(torch.tensor([[0.0, 0.0, 2.0]]))
    assert torch.allclose(c2w[0, :3, 1], torch.tensor([-1.0, 0.0, 0.0]), atol=1e-6)
