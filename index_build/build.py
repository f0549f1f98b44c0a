"""Build an index: every asset rendered, views and captions embedded, written in the form that `AssetIndex.open` reads.

The index is written aside and renamed when complete, so that a folder of its name is always a whole index.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from index_build import views
from index_build.embeddings import embed_captions, embed_views
from redream.assets import Asset
from redream.clip import Clip
from redream.config import RetrievalConfig
from redream.retrieval import IndexManifest, content_hash, write_assets, write_manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexStep:
    """One asset done; the last step carries the manifest of the finished index."""

    done: int
    total: int
    asset_id: str
    manifest: IndexManifest | None = None


def build_index(assets: list[Asset], clip: Clip, config: RetrievalConfig, out_dir: str | Path) -> Iterator[IndexStep]:
    """Render and embed assets one by one and write their index to `out_dir`, which must be new or empty."""
    out_dir = Path(out_dir)
    _check(assets, out_dir)
    cameras = views.index_cameras(config.num_index_views, clip.image_size)
    text = embed_captions(assets, clip)
    image = torch.empty_like(text)
    manifest = None
    for i, asset in enumerate(assets):
        image[i] = embed_views(views.render_index_views(asset, cameras), clip)
        if i + 1 == len(assets):
            manifest = write_index(out_dir, assets, text, image, clip.identity, _settings(config, clip))
        yield IndexStep(done=i + 1, total=len(assets), asset_id=asset.asset_id, manifest=manifest)


def write_index(
    out_dir: Path,
    assets: list[Asset],
    text: Float[Tensor, "assets dim"],
    image: Float[Tensor, "assets dim"],
    clip_model: str,
    settings: dict[str, int | float],
) -> IndexManifest:
    """Write an index of embedded assets aside and rename it to `out_dir`."""
    asset_root = Path(os.path.commonpath([Path(asset.mesh_path).resolve().parent for asset in assets]))
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    try:
        write_assets(aside / "assets.jsonl", assets, asset_root)
        embeddings = {"text": text.cpu().contiguous(), "image": image.cpu().contiguous()}
        save_file(embeddings, aside / "embeddings.safetensors")
        manifest = IndexManifest(
            index_dir=str(out_dir),
            clip_model=clip_model,
            embedding_dim=text.shape[1],
            num_assets=len(assets),
            content_hash=content_hash(aside),
            asset_root=str(asset_root),
            settings=settings,
            versions={name: version(name) for name in ("open_clip_torch", "torch", "pyrender", "trimesh")},
        )
        write_manifest(aside / "manifest.json", manifest)
        aside.chmod(0o755)  # mkdtemp's folder is private
        if out_dir.exists():
            out_dir.rmdir()  # empty, as checked
        aside.rename(out_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # nothing is left there after the rename
    return manifest


def _check(assets: list[Asset], out_dir: Path) -> None:
    if not assets:
        raise ValueError("an index needs at least one asset")
    if len({asset.asset_id for asset in assets}) != len(assets):
        raise ValueError("two assets of the index share an asset_id; every asset needs its own")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(f"{out_dir} exists and is not empty; remove it or name another folder for the index")


def _settings(config: RetrievalConfig, clip: Clip) -> dict[str, int | float]:
    return {
        "num_index_views": config.num_index_views,
        "image_size": clip.image_size,
        "elevation_deg": views.ELEVATION_DEG,
        "camera_distance": views.CAMERA_DISTANCE,
        "fovy_deg": views.FOVY_DEG,
        "background": views.BACKGROUND,
    }
