"""What the index sees of an asset."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from index_build import views
from index_build.views import PublishedViews, RenderedViews, index_cameras
from redream.cameras import camera_angles
from redream.meshes.assets import AssetError
from redream.records import Asset
from redream.settings import MeshLimits


def test_views_go_round_the_asset_evenly_and_start_in_front():
    azimuth, elevation, distance = camera_angles(index_cameras(6, 16))
    torch.testing.assert_close(azimuth % 360, torch.arange(6) * 60.0, atol=1e-3, rtol=0)
    assert elevation.std() < 1e-3 and distance.std() < 1e-5


def test_every_view_shows_the_whole_asset_before_white(assets: list[Asset]):
    with RenderedViews(4, 32).open() as render:
        rendered = [render(asset) for asset in assets]
    for images in rendered:
        assert images.shape == (4, 3, 32, 32)
        assert images.min() >= 0 and images.max() <= 1
        border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=-1)
        torch.testing.assert_close(border, torch.ones_like(border))
        assert (images < 0.95).any(dim=1).flatten(1).sum(dim=1).min() > 20


def test_a_mesh_is_fetched_before_it_is_rendered(assets: list[Asset]):
    fetched = []

    def fetch(path: str) -> Path:
        fetched.append(path)
        return Path(assets[0].mesh_path)

    with RenderedViews(2, 16, fetch).open() as render:
        render(assets[1])
    assert fetched == [assets[1].mesh_path]


def test_an_asset_stands_upright_by_its_own_up_axis_and_within_the_given_limits(tmp_path: Path):
    trimesh.creation.box((1, 1, 4)).export(tmp_path / "tower.obj")
    tower = Asset(asset_id="t", mesh_path=str(tmp_path / "tower.obj"), caption="", source="", license="", up_axis="+Z")
    lying = replace(tower, up_axis="+Y")
    with RenderedViews(1, 32).open() as render:
        tall, flat = ((render(asset) < 0.95).any(dim=1)[0] for asset in (tower, lying))
    assert tall.any(dim=1).sum() > tall.any(dim=0).sum()  # rows against columns
    assert flat.any(dim=1).sum() < tall.any(dim=1).sum()
    assert RenderedViews(1, 32).digest(tower) != RenderedViews(1, 32).digest(lying)
    few = RenderedViews(1, 32, limits=MeshLimits(triangles=11))
    with few.open() as render, pytest.raises(AssetError, match="12 triangles"):
        render(tower)


def image_bytes(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def zip_of(entries: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return content.getvalue()


def square(alpha: int, size: int = 8) -> np.ndarray:
    """Return a red square on a transparent or opaque black ground."""
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., 3] = alpha
    pixels[2:6, 2:6] = (255, 0, 0, 255)
    return pixels


@pytest.fixture
def renders(tmp_path: Path) -> Path:
    """Cap3D's form: zip files of zip files, with masks and cameras that are no views."""
    blank = np.full((8, 8, 4), 255, np.uint8)
    box = {"00001.png": image_bytes(square(0)), "00000.png": image_bytes(square(255)), "00000.json": b"{}"}
    box |= {"00000_MatAlpha.png": image_bytes(square(255)), "00002.png": image_bytes(blank)}
    entries = {
        "Cap3D_Objaverse_renderimgs/box.zip": zip_of(box),
        "Cap3D_Objaverse_renderimgs/ball.zip": zip_of({"00000.png": image_bytes(blank)}),
        "Cap3D_Objaverse_renderimgs/pipe.zip": zip_of({"00000.png": b"no image"}),
        "Cap3D_Objaverse_renderimgs/torn.zip": b"no zip",
        "Cap3D_Objaverse_renderimgs/wide.zip": zip_of({"00000.png": image_bytes(square(0, 8)[:4])}),
    }
    (tmp_path / "renders").mkdir()
    (tmp_path / "renders" / "compressed_imgs_perobj_00.zip").write_bytes(zip_of(entries))
    return tmp_path / "renders"


def named(name: str) -> Asset:
    return Asset(asset_id=name, mesh_path="", caption="", source="", license="")


def test_published_renders_are_read_in_order_over_white_without_blank_ones(renders: Path):
    with PublishedViews(renders, 8).open() as read:
        images = read(named("box"))
    assert images.shape == (2, 3, 8, 8)
    torch.testing.assert_close(images[0, :, 0, 0], torch.zeros(3))  # opaque black in the file
    torch.testing.assert_close(images[1, :, 0, 0], torch.ones(3))
    torch.testing.assert_close(images[:, :, 4, 4], torch.tensor([[1.0, 0.0, 0.0]] * 2))


@pytest.mark.parametrize(
    ("name", "words"),
    [("ball", "blank"), ("pipe", "unreadable"), ("torn", "unreadable"), ("wide", "8x4"), ("x", "no published renders")],
)
def test_published_renders_that_cannot_be_used_are_refused_by_name(name: str, words: str, renders: Path):
    with PublishedViews(renders, 8).open() as read, pytest.raises(AssetError, match=words) as refusal:
        read(named(name))
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_image_that_unpacks_to_more_than_the_limit_is_refused(renders: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views, "MAX_IMAGE_BYTES", 10)
    with PublishedViews(renders, 8).open() as read, pytest.raises(AssetError, match="larger"):
        read(named("box"))


def test_changed_renders_have_another_digest(renders: Path):
    before = PublishedViews(renders, 8)
    (renders / "compressed_imgs_perobj_00.zip").write_bytes(zip_of({"a/box.zip": zip_of({"00000.png": b"other"})}))
    after = PublishedViews(renders, 8)
    assert before.digest(named("box")) != after.digest(named("box"))
    assert after.digest(named("ball")) == ""


def test_a_folder_without_archives_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no zip files"):
        PublishedViews(tmp_path, 8)
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"a\.zip"):
        PublishedViews(tmp_path, 8)
