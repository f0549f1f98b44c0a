"""The views of an asset that its image embedding is made from: a ring around it, over white, at the CLIP's own size."""

from __future__ import annotations

import torch
from jaxtyping import Float

from redream.assets import Asset, load_mesh, normalize_mesh
from redream.cameras import Camera, orbit
from redream.images import composite, to_images
from redream.render.mesh import render_mesh

ELEVATION_DEG = 15.0
CAMERA_DISTANCE = 1.5  # an object of radius 0.5 then fills 87 % of the image's height
FOVY_DEG = 45.0
BACKGROUND = 1.0


def index_cameras(num_views: int, image_size: int) -> Camera:
    return orbit(num_views, ELEVATION_DEG, CAMERA_DISTANCE, FOVY_DEG, image_size)


def render_index_views(asset: Asset, cameras: Camera) -> Float[torch.Tensor, "views 3 height width"]:
    """Render an asset as it is found, its front wherever it may be."""
    scene = normalize_mesh(load_mesh(asset.mesh_path))
    return to_images(composite(render_mesh(scene, cameras), BACKGROUND))
