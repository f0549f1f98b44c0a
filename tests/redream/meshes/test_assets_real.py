"""Real assets that this project did not make: geometry and colour against what others measured and drew."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pytest
import torch
import trimesh
from jaxtyping import Float
from PIL import Image

from redream.cameras import orbit
from redream.meshes.assets import load_mesh, normalize_mesh
from redream.meshes.scenes import scene_parts, scene_vertices
from redream.render.mesh import render_mesh

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
# The sheet's tiles: five assets in a row, two views each, names above.
TILE_WIDTH, TILE_HEIGHT, CAPTION_HEIGHT, COLUMNS = 340, 186, 34, 5
MASKED = {"grey-snapper"}  # its COLOR_0 is a shader's mask, says the table; the sheet multiplies it in, to black


def rows() -> list[dict[str, str]]:
    if not (SHARED / "assets.csv").is_file():
        return [{"uid": "absent"}]
    with (SHARED / "assets.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def present(row: dict[str, str]) -> Path:
    if row["uid"] == "absent":
        pytest.skip("the shared real assets are not on this machine")
    return SHARED / row["path"]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["uid"])
def test_real_assets_have_the_triangles_vertices_and_parts_of_the_table(row: dict[str, str]) -> None:
    parts = scene_parts(load_mesh(present(row)))
    assert sum(len(mesh.faces) for mesh, _ in parts) == int(row["triangles"])
    if row["mesh_instances"]:
        assert len(parts) == int(row["mesh_instances"])
        assert sum(len(mesh.vertices) for mesh, _ in parts) == int(row["vertices"])


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["uid"])
def test_real_assets_have_the_bounds_that_trimesh_finds(row: dict[str, str]) -> None:
    """trimesh's own reader is right about these files, apart from the one that it cannot read."""
    vertices = scene_vertices(load_mesh(present(row)))
    if row["uid"] == "box-meshopt":
        np.testing.assert_allclose([vertices.min(axis=0), vertices.max(axis=0)], [[-0.5] * 3, [0.5] * 3], atol=1e-4)
        return
    expected = scene_vertices(trimesh.load_scene(present(row)))[:, [2, 0, 1]]
    bounds = np.array([vertices.min(axis=0), vertices.max(axis=0)])
    scale = np.ptp(expected, axis=0).max()
    np.testing.assert_allclose(bounds, [expected.min(axis=0), expected.max(axis=0)], atol=1e-6 * scale)


@pytest.mark.parametrize(("number", "row"), list(enumerate(rows())), ids=lambda value: str(value)[:4])
def test_real_assets_have_the_colours_of_the_sheet_that_others_drew(number: int, row: dict[str, str]) -> None:
    path = present(row)
    up_axis = cast(Literal["+Y", "+Z"], row["up_axis"])
    rendering = render_mesh(normalize_mesh(load_mesh(path, up_axis=up_axis)), orbit(4, 20.0, 1.5, 45.0, 96))
    opacity = rendering.opacity.sum()
    assert opacity > 0
    mean = (rendering.rgb.sum(dim=(0, 1, 2)) / opacity).double().numpy()
    if row["uid"] in MASKED:
        assert mean[2] >= mean[0] > 0.1  # "blue-grey", says the caption
        return
    if row["uid"] == "box-meshopt":
        assert mean[0] > 3 * mean[1:].max()  # "a plain red cube"
        return
    with Image.open(SHARED / "contact_public.png") as sheet:
        expected = sheet_color(sheet, number)
    # Lights differ between the renderers, the sheet takes glTF's linear colours for sRGB, and it shows one side where
    # ours is the mean of four: a common hue remains.
    hue, expected_hue = mean - mean.mean(), expected - expected.mean()
    if np.linalg.norm(expected_hue) < 0.05:
        assert np.linalg.norm(hue) < 0.1
    else:
        assert hue @ expected_hue > 0.7 * np.linalg.norm(hue) * np.linalg.norm(expected_hue)
    if row["has_texture"] == "1" or row["format"] == "obj":
        np.testing.assert_allclose(mean, expected, atol=0.2)


def sheet_color(sheet: Image.Image, number: int) -> Float[np.ndarray, "3"]:
    """Return the mean colour of an asset in the contact sheet, its names and the white left out."""
    left, top = number % COLUMNS * TILE_WIDTH, number // COLUMNS * TILE_HEIGHT
    tile = np.asarray(
        sheet.convert("RGB").crop((left, top + CAPTION_HEIGHT, left + TILE_WIDTH, top + TILE_HEIGHT)), dtype=np.float64
    )
    is_drawn = tile.min(axis=2) < 250
    return tile[is_drawn].mean(axis=0) / 255.0


def test_the_mask_of_the_snapper_is_named(caplog: pytest.LogCaptureFixture) -> None:
    path = SHARED / "assets" / "grey-snapper.glb"
    if not path.is_file():
        pytest.skip("the shared real assets are not on this machine")
    with caplog.at_level(logging.WARNING):
        load_mesh(path)
    assert "mask" in caplog.text


def test_the_z_up_airliner_lies_level_with_its_nose_in_front() -> None:
    path = SHARED / "assets" / "airliner.obj"
    if not path.is_file():
        pytest.skip("the shared real assets are not on this machine")
    vertices = scene_vertices(load_mesh(path, up_axis="+Z"))
    length, span, height = np.ptp(vertices, axis=0)
    assert height < 0.5 * min(length, span)
    opacity = render_mesh(normalize_mesh(load_mesh(path, up_axis="+Z")), orbit(1, 0.0, 1.5, 45.0, 64)).opacity[
        0, ..., 0
    ]
    wide = (opacity > 0.5).any(dim=0).sum()
    high = (opacity > 0.5).any(dim=1).sum()
    assert torch.gt(wide, 2 * high)
