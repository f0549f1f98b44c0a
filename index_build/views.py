"""The views of an asset that its image embedding is made from: own renders, or those that Cap3D published.

Own renders go round the asset over white at the CLIP's own size. Cap3D's (Luo et al., 2023; the dataset's folder
`RenderedImage_perobj_zips`) are zip files of zip files: `.../<uid>.zip` holds `00000.png` and so on beside masks,
depths and cameras, which are not read. Both are opened for a shard at a time.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from PIL import Image

from redream.cameras import Camera, orbit
from redream.images import composite, to_images
from redream.meshes.assets import DEFAULT_LIMITS, AssetError, load_mesh, normalize_mesh
from redream.records import Asset
from redream.render.mesh import MeshRenderer, mesh_renderer
from redream.settings import MeshLimits

ELEVATION_DEG = 15.0
CAMERA_DISTANCE = 1.5  # an object of radius 0.5 then fills 87 % of the image's height
FOVY_DEG = 45.0
BACKGROUND = 1.0
MESH_LIMITS = "mesh_limits"  # the setting that decides whether a mesh opens, and not what it looks like

MAX_IMAGE_PIXELS = 4096 * 4096
MAX_ARCHIVE_BYTES = 256 * 2**20  # of one asset's renders
MAX_IMAGE_BYTES = 64 * 2**20  # unpacked, of one file of an archive
PUBLISHED_VIEWS = 20  # of an asset, fewer where some are blank
_PUBLISHED_IMAGE = re.compile(r"(?:.*/)?\d+\.(?:png|jpe?g)")

Views = Float[torch.Tensor, "views 3 height width"]
ViewMaker = Callable[[Asset], Views]


class RenderedViews:
    """Own renders.

    Args:
        fetch: brings a mesh to this machine, where it may not lie yet, and returns its path.
    """

    def __init__(
        self,
        num_views: int,
        image_size: int,
        fetch: Callable[[str], Path] = Path,
        limits: MeshLimits = DEFAULT_LIMITS,
    ) -> None:
        self.num_views = num_views
        self.image_size = image_size
        self._fetch = fetch
        self._limits = limits

    def settings(self) -> dict[str, Any]:
        """Return what decides how an asset looks, and the limits within which it opens, as the manifest states it."""
        return {
            "views": "rendered",
            "num_views": self.num_views,
            "image_size": self.image_size,
            "elevation_deg": ELEVATION_DEG,
            "camera_distance": CAMERA_DISTANCE,
            "fovy_deg": FOVY_DEG,
            "background": BACKGROUND,
            MESH_LIMITS: asdict(self._limits),
        }

    def digest(self, asset: Asset) -> str:
        """Return what own renders follow from beside the mesh, whose digest the catalog has."""
        return asset.up_axis

    @contextmanager
    def open(self) -> Iterator[ViewMaker]:
        """Yield a function that renders assets with one OpenGL context."""
        cameras = index_cameras(self.num_views, self.image_size)
        with mesh_renderer(self.image_size, self.image_size) as render:

            def views(asset: Asset) -> Views:
                scene = load_mesh(self._fetch(asset.mesh_path), self._limits, asset.up_axis, asset.border)
                return render_index_views(scene, cameras, render)

            yield views


class PublishedViews:
    """Cap3D's renders from the zip files of a folder of the user's."""

    def __init__(self, folder: str | Path, image_size: int) -> None:
        self.folder = Path(folder)
        self.image_size = image_size
        self.num_views = PUBLISHED_VIEWS
        self._places: dict[str, tuple[str, str]] = {}  # uid: archive, member
        self._digests: dict[str, str] = {}
        archives = sorted(self.folder.glob("*.zip"))
        if not archives:
            raise ValueError(f"{folder} holds no zip files; name the folder of Cap3D's RenderedImage_perobj_zips")
        for path in archives:
            with _open_zip(path) as archive:
                for entry in archive.infolist():
                    if entry.filename.endswith(".zip"):
                        uid = Path(entry.filename).stem
                        self._places[uid] = (path.name, entry.filename)
                        self._digests[uid] = f"{entry.CRC:08x}-{entry.file_size}"

    def settings(self) -> dict[str, Any]:
        return {"views": "published", "image_size": self.image_size, "background": BACKGROUND}

    def digest(self, asset: Asset) -> str:
        """Return what changes with an asset's published renders."""
        return self._digests.get(asset.asset_id, "")

    @contextmanager
    def open(self) -> Iterator[ViewMaker]:
        """Yield a function that reads the images of assets; each archive is opened once."""
        with ExitStack() as stack:
            archives: dict[str, zipfile.ZipFile] = {}

            def views(asset: Asset) -> Views:
                if asset.asset_id not in self._places:
                    raise AssetError(f"{asset.asset_id}: no published renders in {self.folder}")
                name, member = self._places[asset.asset_id]
                if name not in archives:
                    archives[name] = stack.enter_context(_open_zip(self.folder / name))
                return _published_images(archives[name], member, self.image_size)

            yield views


ViewSource = RenderedViews | PublishedViews


def index_cameras(num_views: int, image_size: int) -> Camera:
    return orbit(num_views, ELEVATION_DEG, CAMERA_DISTANCE, FOVY_DEG, image_size)


def render_index_views(scene: trimesh.Scene, cameras: Camera, render: MeshRenderer) -> Views:
    """Render a scene as it is found, its front wherever it may be."""
    return to_images(composite(render(normalize_mesh(scene), cameras), BACKGROUND))


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} cannot be read as a zip file ({error}); download it again") from error


def _published_images(archive: zipfile.ZipFile, member: str, image_size: int) -> Views:
    """Read the images of one asset's zip file; blank ones, which Cap3D warns of, are left out."""
    try:
        if archive.getinfo(member).file_size > MAX_ARCHIVE_BYTES:
            raise AssetError(f"{Path(member).name}: the file is larger than {MAX_ARCHIVE_BYTES >> 20} MiB.")
        with archive.open(member) as content, zipfile.ZipFile(io.BytesIO(content.read())) as images:
            entries = sorted(
                (entry for entry in images.infolist() if _PUBLISHED_IMAGE.fullmatch(entry.filename)),
                key=lambda entry: entry.filename,
            )
            if any(entry.file_size > MAX_IMAGE_BYTES for entry in entries):
                raise AssetError(f"{Path(member).name}: an image is larger than {MAX_IMAGE_BYTES >> 20} MiB.")
            pixels = [_over_white(images.read(entry), image_size) for entry in entries]
    except AssetError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, Image.DecompressionBombError) as error:
        raise AssetError(f"{Path(member).name}: its published renders are unreadable ({error}).") from error
    shown = [image for image in pixels if image.max() > image.min()]
    if not shown:
        raise AssetError(f"{Path(member).name}: its published renders are blank.")
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).contiguous()


def _over_white(content: bytes, image_size: int) -> Float[np.ndarray, "height width 3"]:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        if image.width * image.height > MAX_IMAGE_PIXELS or image.width != image.height:
            raise ValueError(f"one has {image.width}x{image.height} pixels; square ones up to 4096 are read")
        rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(white, rgba).convert("RGB")
    resized = flat.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32) / 255.0
