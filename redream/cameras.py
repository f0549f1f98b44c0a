"""Cameras and rays: the one place that knows axes and angles.

World: right-handed, +z up, the object at the origin with its front facing +x. `azimuth_deg` is 0 in front (+x) and
grows towards +y, in [-180, 180); `elevation_deg` is positive above the horizon. `c2w` is camera-to-world in the OpenGL
sense: the camera looks along its -z, +y is up. Pixel centres lie at +0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from redream.devices import send
from redream.settings import CameraConfig


@dataclass(frozen=True, eq=False)
class Camera:
    """A batch of perspective cameras with square pixels that share one image size in pixels."""

    c2w: Float[Tensor, "batch 4 4"]
    fovy_deg: Float[Tensor, " batch"]
    height: int
    width: int

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Camera:
        """Select cameras; an integer keeps the batch axis."""
        chosen = slice(index, index + 1 or None) if isinstance(index, int) else index
        return Camera(self.c2w[chosen], self.fovy_deg[chosen], self.height, self.width)

    @property
    def intrinsics(self) -> Float[Tensor, "batch 3 3"]:
        """Pinhole matrices in pixels; y points down in the image, as usual for pixel coordinates."""
        focal = 0.5 * self.height / torch.tan(0.5 * torch.deg2rad(self.fovy_deg))
        K = torch.zeros(len(self), 3, 3, dtype=self.c2w.dtype, device=self.c2w.device)
        K[:, 0, 0] = K[:, 1, 1] = focal
        K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = 0.5 * self.width, 0.5 * self.height, 1.0
        return K

    def to(self, device: torch.device | str) -> Camera:
        device = torch.device(device)
        return Camera(send(self.c2w, device), send(self.fovy_deg, device), self.height, self.width)


@dataclass(frozen=True, eq=False)
class Rays:
    """World-space rays; `directions` are unit vectors."""

    origins: Float[Tensor, "*rays 3"]
    directions: Float[Tensor, "*rays 3"]


def look_at(eye: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 4 4"]:
    """Return the c2w of cameras at `eye` that look at the origin with world +z up.

    Straight above or below, where "up" is undefined, the image's top points away from the front (-x).
    """
    backward = torch.nn.functional.normalize(eye, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=eye.dtype, device=eye.device).expand_as(eye)
    is_polar = backward[:, 2:].abs() > 1 - 1e-6
    away = torch.tensor([-1.0, 0.0, 0.0], dtype=eye.dtype, device=eye.device).expand_as(eye)
    up = torch.where(is_polar, away, up)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, backward), dim=-1)
    c2w = torch.eye(4, dtype=eye.dtype, device=eye.device).repeat(eye.shape[0], 1, 1)
    c2w[:, :3, 0] = right
    c2w[:, :3, 1] = torch.linalg.cross(backward, right)
    c2w[:, :3, 2] = backward
    c2w[:, :3, 3] = eye
    return c2w


def cameras_at(
    azimuth_deg: Float[Tensor, " batch"],
    elevation_deg: Float[Tensor, " batch"],
    camera_distance: Float[Tensor, " batch"],
    fovy_deg: Float[Tensor, " batch"],
    size: int,
) -> Camera:
    """Place cameras on spheres around the origin; `size` is the square image's side in pixels."""
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    toward = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1)
    return Camera(look_at(toward * camera_distance[:, None]), fovy_deg, size, size)


def orbit(num_views: int, elevation_deg: float, camera_distance: float, fovy_deg: float, size: int) -> Camera:
    """Return `num_views` cameras evenly around the object, the first in front; the first is not repeated at the end."""
    azimuth = torch.arange(num_views) * (360.0 / num_views)
    full = torch.full_like
    return cameras_at(
        azimuth, full(azimuth, elevation_deg), full(azimuth, camera_distance), full(azimuth, fovy_deg), size
    )


def sample_cameras(config: CameraConfig, num: int, size: int, generator: torch.Generator) -> Camera:
    """Draw training cameras: half of the elevations uniform in angle, half uniform on the sphere (threestudio)."""

    def uniform(low: float, high: float) -> Float[Tensor, " num"]:
        return low + (high - low) * torch.rand(num, generator=generator)

    elevation = sample_elevations(config.elevation_deg, num, generator)
    azimuth = uniform(-180.0, 180.0)
    return cameras_at(azimuth, elevation, uniform(*config.camera_distance), uniform(*config.fovy_deg), size)


def sample_elevations(
    elevation_deg: tuple[float, float], num: int, generator: torch.Generator
) -> Float[Tensor, " num"]:
    """Draw elevations in degrees from a range, half of them uniform in angle and half uniform on the sphere."""
    low, high = elevation_deg
    in_angle = low + (high - low) * torch.rand(num, generator=generator)
    bottom, top = math.sin(math.radians(low)), math.sin(math.radians(high))
    on_sphere = torch.rad2deg(torch.asin(bottom + (top - bottom) * torch.rand(num, generator=generator)))
    return torch.where(torch.rand(num, generator=generator) < 0.5, in_angle, on_sphere)


def camera_angles(camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Return azimuth [-180, 180) and elevation in degrees and the distance to the origin, each [B]."""
    eye = camera.c2w[:, :3, 3]
    distance = eye.norm(dim=-1)
    azimuth = torch.rad2deg(torch.atan2(eye[:, 1], eye[:, 0]))
    azimuth = torch.where(azimuth >= 180.0, azimuth - 360.0, azimuth)
    return azimuth, torch.rad2deg(torch.asin((eye[:, 2] / distance).clamp(-1, 1))), distance


def camera_rays(camera: Camera) -> Rays:
    """Return one ray through every pixel centre, shaped [B, H, W, 3]."""
    kwargs = {"dtype": camera.c2w.dtype, "device": camera.c2w.device}
    y, x = torch.meshgrid(
        torch.arange(camera.height, **kwargs) + 0.5, torch.arange(camera.width, **kwargs) + 0.5, indexing="ij"
    )
    half_height = torch.tan(0.5 * torch.deg2rad(camera.fovy_deg))[:, None, None]
    x = (x - 0.5 * camera.width) / (0.5 * camera.height) * half_height
    y = -(y - 0.5 * camera.height) / (0.5 * camera.height) * half_height
    local = torch.nn.functional.normalize(torch.stack([x, y, -torch.ones_like(x)], dim=-1), dim=-1)
    directions = torch.einsum("bij,bhwj->bhwi", camera.c2w[:, :3, :3], local)
    return Rays(camera.c2w[:, None, None, :3, 3].expand_as(directions), directions)


def view_name(azimuth_deg: float, elevation_deg: float, config: CameraConfig) -> str:
    """Name a view `front`, `side`, `back` or `overhead`, as the view-dependent prompts do (DreamFusion, Sec. 3.2)."""
    if elevation_deg > config.overhead_above_deg:
        return "overhead"
    off_front = abs((azimuth_deg + 180.0) % 360.0 - 180.0)
    if off_front <= config.front_within_deg:
        return "front"
    return "back" if off_front >= 180.0 - config.back_within_deg else "side"
