"""The contact sheet of a search: what `redream search --html` writes, and `generate --confirm` asks about."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

from redream.records import Asset, Retrieval
from redream.settings import RunConfig
from tasks.machinery.progress import track

# An object of radius 0.5 seen from the right of its front and a little from above, in world units and degrees.
AZIMUTH_DEG, ELEVATION_DEG, DISTANCE, FOVY_DEG = 30.0, 20.0, 1.5, 45.0
PIXELS = 320


def write_sheet(path: Path, retrieval: Retrieval, config: RunConfig) -> None:
    """Write the contact sheet of what was found; meshes that are not here are downloaded first."""
    from redream.pages.contact_sheet import SheetAsset, write_contact_sheet
    from redream.retrieval.licenses import attribution

    assets = []
    for neighbor in track(retrieval.neighbors, "pictures", len(retrieval.neighbors)):
        picture, reason = _picture(neighbor.asset, config)
        assets.append(
            SheetAsset(
                asset_id=neighbor.asset.asset_id,
                caption=neighbor.asset.caption,
                credit=attribution(neighbor.asset),
                score=neighbor.score,
                text_score=neighbor.text_score,
                lexical_score=neighbor.lexical_score,
                is_weak=neighbor.is_weak,
                picture=picture,
                reason=reason,
            )
        )
    write_contact_sheet(path, retrieval.prompt, assets)


def _picture(asset: Asset, config: RunConfig) -> tuple[bytes, str]:
    """Render an asset as a JPEG, or say why it cannot be."""
    import torch
    from PIL import Image

    from index_build.download import DownloadError, fetch_mesh
    from redream.cameras import cameras_at
    from redream.images import composite, to_uint8
    from redream.meshes.assets import AssetError, load_asset, load_mesh, normalize_mesh
    from redream.render.mesh import render_mesh

    try:
        fetch_mesh(asset.mesh_path, partial(load_mesh, limits=config.mesh), config.download)
        scene = normalize_mesh(load_asset(asset, config.mesh), config.render.object_radius)
    except (AssetError, DownloadError) as error:
        return b"", str(error)
    azimuth, elevation, distance, fovy = torch.tensor([AZIMUTH_DEG, ELEVATION_DEG, DISTANCE, FOVY_DEG]).split(1)
    camera = cameras_at(azimuth, elevation, distance, fovy, PIXELS)
    buffer = io.BytesIO()
    pixels = to_uint8(composite(render_mesh(scene, camera), 1.0)[0])
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue(), ""
