"""Orientation: where an asset's front is, so that it can be turned to face +x (ReDream, App. B and E.5).

The asset is rendered from a ring of poses. CLIP scores each render against the prompts "front view", "side view" and
"back view" of the asset's caption. The paper takes the pose with the highest score; here every pose votes. If the front
is at azimuth a, the view at azimuth a + d should look like a front in proportion to cos^2 d where d is within 90
degrees, like a back where it is beyond, and like a side in proportion to sin^2 d. The shares sum to one, so evidence
    E(a) = mean_d [ cos^2 d (front or back score at a + d) + sin^2 d (side score at a + d) ],
is a mean of cosines; prompts that score higher than others on every pose, and poses that score higher on every prompt,
change it by a constant. The best a wins. Its margin is E(a) minus the best E at least 90 degrees away: a round or
twofold symmetric object has none, and keeps the orientation it came with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from redream.cameras import Camera, orbit
from redream.clip import Clip
from redream.records import Asset, FrontAxis, UpAxis
from redream.settings import OrientationConfig

VIEWS = ("front", "side", "back")
TEMPLATES = ("{view} view of {caption}", "{view} view, {caption}", "{caption}, {view} view")
RIVAL_BEYOND_DEG = 90.0

# An object of radius 0.5 fills 87 % of such an image's height.
RING_DISTANCE = 1.5
RING_FOVY_DEG = 45.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Orientation:
    """Where a front was found; `azimuth_deg` is 0 where none is clear. `scores` is E for each pose of the ring."""

    azimuth_deg: float  # [-180, 180)
    margin: float  # cosine
    has_clear_front: bool
    scores: tuple[float, ...]


def find_front(
    images: Float[Tensor, "poses 3 height width"], caption: str, clip: Clip, config: OrientationConfig
) -> Orientation:
    """Find the front of an asset from its renders by `ring_cameras`, in that order."""
    if len(images) != config.num_poses:
        raise ValueError(f"orientation got {len(images)} renders; it needs the {config.num_poses} of its ring of poses")
    prompts = [t.format(view=view, caption=caption.rstrip(". ")) for view in VIEWS for t in TEMPLATES]
    similarity = clip.embed_images(images) @ clip.embed_text(prompts).T
    view_scores = similarity.reshape(len(images), len(VIEWS), len(TEMPLATES)).mean(dim=-1)
    return choose_front(front_evidence(view_scores.cpu()), config.min_margin)


def front_of(
    asset: Asset, images: Float[Tensor, "poses 3 height width"], clip: Clip, config: OrientationConfig
) -> Orientation:
    """Return where an asset's front is: as its table or the settings say, else found in its renders."""
    if stated := asset.front_axis or config.front_axis:
        return stated_front(stated, asset.up_axis)
    return find_front(images, asset.caption, clip, config)


def stated_front(front_axis: FrontAxis, up_axis: UpAxis) -> Orientation:
    """Return the orientation of a mesh whose front is known: the axis of its file that it faces, or "keep"."""
    # World (x, y, z) is glTF's (z, x, y); the axes of a file that stands on +Z are the world's.
    ahead, left = ("Z", "X") if up_axis == "+Y" else ("X", "Y")
    azimuths = {f"+{ahead}": 0.0, f"+{left}": 90.0, f"-{ahead}": -180.0, f"-{left}": -90.0, "keep": 0.0}
    if front_axis not in azimuths:
        raise ValueError(f"front axis {front_axis!r} of a mesh that stands on {up_axis}; use {', '.join(azimuths)}")
    return Orientation(azimuth_deg=azimuths[front_axis], margin=0.0, has_clear_front=front_axis != "keep", scores=())


def ring_cameras(config: OrientationConfig, image_size: int) -> Camera:
    """Return the ring of poses, the first at azimuth 0; `image_size` in pixels, best the CLIP's own."""
    return orbit(config.num_poses, config.elevation_deg, RING_DISTANCE, RING_FOVY_DEG, image_size)


def front_evidence(view_scores: Float[Tensor, "poses 3"]) -> Float[Tensor, " poses"]:
    """Return E for a front at each pose of a full ring; columns are the scores of front, side and back."""
    num_poses = len(view_scores)
    pose = torch.arange(num_poses, dtype=torch.float64)
    offset = (pose[None, :] - pose[:, None]) * (2 * torch.pi / num_poses)  # [front at, seen from]
    toward = offset.cos().to(view_scores.dtype)
    expected = torch.stack([toward.clamp(min=0) ** 2, 1 - toward**2, toward.clamp(max=0) ** 2], dim=-1)
    return torch.einsum("apv,pv->a", expected, view_scores) / num_poses


def choose_front(evidence: Float[Tensor, " poses"], min_margin: float) -> Orientation:
    """Choose the best pose of a full ring, and keep azimuth 0 where the margin is below `min_margin`."""
    spacing_deg = 360.0 / len(evidence)
    best = int(evidence.argmax())
    steps = (torch.arange(len(evidence)) - best) % len(evidence)
    away_deg = torch.minimum(steps, len(evidence) - steps) * spacing_deg
    rivals = evidence[away_deg >= RIVAL_BEYOND_DEG - 1e-3]
    margin = float(evidence[best] - rivals.max())
    has_clear_front = margin >= min_margin
    azimuth_deg = (best * spacing_deg + 180.0) % 360.0 - 180.0 if has_clear_front else 0.0
    return Orientation(
        azimuth_deg=azimuth_deg, margin=margin, has_clear_front=has_clear_front, scores=tuple(evidence.tolist())
    )
