"""Laws of the exported mesh and turntable, on fields known in closed form."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor
from trimesh.visual import TextureVisuals

import redream.export
from index_build.catalogs.opening import open_catalog
from redream.export import (
    DensityAndColor,
    export_mesh,
    field_surface,
    provenance,
    save_turntable,
    side_by_side,
)
from redream.meshes.assets import load_mesh, scene_parts
from redream.records import Asset, Neighbor
from redream.settings import ExportConfig

RADIUS = 0.55
CONFIG = ExportConfig(mesh_resolution=48, density_threshold=10.0)
CELL = 2 * RADIUS / CONFIG.mesh_resolution


def solid(signed_distance) -> DensityAndColor:
    """A field whose density passes the threshold where the signed distance is zero; colours tell the octant."""

    def density_and_color(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        sigmas = CONFIG.density_threshold * torch.exp((-signed_distance(positions) * 60).clamp(-20, 4))
        return sigmas, torch.where(positions > 0, 0.8, 0.2)

    return density_and_color


def ball(center: tuple[float, float, float], radius: float):
    return lambda positions: (positions - torch.tensor(center)).norm(dim=-1) - radius


def union(*shapes):
    return lambda positions: torch.stack([shape(positions) for shape in shapes]).amin(dim=0)


BALL = solid(ball((0.0, 0.0, 0.0), 0.4))


def read_glb(path: Path) -> tuple[dict, np.ndarray]:
    content = path.read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    tree = json.loads(content[20 : 20 + length])
    count = tree["accessors"][0]["count"]
    return tree, np.frombuffer(content, "<f4", 3 * count, 28 + length).reshape(count, 3)


def test_a_balls_surface_lies_within_one_cell_of_its_radius():
    surface = field_surface(BALL, CONFIG, RADIUS)
    distance = np.linalg.norm(surface.vertices, axis=1)
    assert np.abs(distance - 0.4).max() < CELL
    assert np.abs(distance - 0.4).mean() < 0.1 * CELL  # log-density is linear here, so interpolation is nearly exact


def test_a_balls_volume_is_right_and_its_surface_is_closed():
    surface = field_surface(BALL, CONFIG, RADIUS)
    assert surface.is_watertight
    assert surface.volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.02)


def test_normals_have_unit_length_and_point_outwards():
    surface = field_surface(BALL, CONFIG, RADIUS)
    outward = surface.vertices / np.linalg.norm(surface.vertices, axis=1, keepdims=True)
    assert np.allclose(np.linalg.norm(surface.vertex_normals, axis=1), 1, atol=1e-5)
    assert ((surface.vertex_normals * outward).sum(axis=1) > 0.9).all()
    assert ((surface.face_normals * surface.triangles_center).sum(axis=1) > 0).all()


def test_colours_survive_the_file_by_octant(tmp_path: Path):
    export_mesh(BALL, CONFIG, RADIUS, tmp_path / "ball.glb")
    ((mesh, matrix),) = scene_parts(load_mesh(tmp_path / "ball.glb"))
    positions = trimesh.transform_points(mesh.vertices, matrix)
    assert isinstance(mesh.visual, TextureVisuals)
    colors = mesh.visual.vertex_attributes["color"][:, :3] / 255.0
    clear = (np.abs(positions) > CELL).all(axis=1)
    assert clear.sum() > 1000
    np.testing.assert_allclose(colors[clear], np.where(positions[clear] > 0, 0.8, 0.2), atol=2 / 255)


def test_colours_are_those_inside_the_surface(tmp_path: Path):
    """Outside it the density is nothing, and the colour whatever the network says there."""
    red, blue = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])

    def red_within_blue(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        sigmas, _ = BALL(positions, directions)
        return sigmas, torch.where((positions.norm(dim=-1) < 0.4)[:, None], red, blue)

    export_mesh(red_within_blue, CONFIG, RADIUS, tmp_path / "ball.glb")
    ((mesh, _),) = scene_parts(load_mesh(tmp_path / "ball.glb"))
    assert isinstance(mesh.visual, TextureVisuals)
    colors = mesh.visual.vertex_attributes["color"][:, :3]
    assert (colors == [255, 0, 0]).all(axis=1).mean() > 0.99


def test_the_front_of_the_world_is_plus_z_in_gltf_and_up_is_y(tmp_path: Path):
    field = solid(union(ball((0.0, 0.0, 0.0), 0.2), ball((0.3, 0.0, 0.0), 0.1), ball((0.0, 0.0, 0.3), 0.15)))
    export_mesh(field, CONFIG, RADIUS, tmp_path / "nosed.glb")
    _, positions = read_glb(tmp_path / "nosed.glb")
    np.testing.assert_allclose(positions.max(axis=0), [0.2, 0.45, 0.4], atol=CELL)
    np.testing.assert_allclose(positions.min(axis=0), [-0.2, -0.2, -0.2], atol=CELL)


def test_the_file_loads_back_into_the_world_axes_it_came_from(tmp_path: Path):
    field = solid(union(ball((0.0, 0.0, 0.0), 0.2), ball((0.3, 0.0, 0.0), 0.1)))
    export_mesh(field, CONFIG, RADIUS, tmp_path / "nosed.glb")
    np.testing.assert_allclose(load_mesh(tmp_path / "nosed.glb").bounds[1], [0.4, 0.2, 0.2], atol=CELL)


def test_the_file_opens_in_trimesh_with_colours_and_outward_winding(tmp_path: Path):
    export_mesh(BALL, CONFIG, RADIUS, tmp_path / "ball.glb")
    scene = trimesh.load_scene(tmp_path / "ball.glb")
    (mesh,) = scene.geometry.values()
    assert mesh.volume > 0 and mesh.is_watertight
    assert len(mesh.visual.vertex_attributes["color"]) == len(mesh.vertices)


def test_the_file_declares_what_it_holds(tmp_path: Path):
    prompt = 'a "quoted" owl </script>\u202e\n'
    export_mesh(BALL, CONFIG, RADIUS, tmp_path / "ball.glb", extras={"prompt": prompt, "license": "CC0"})
    tree, positions = read_glb(tmp_path / "ball.glb")
    assert tree["asset"]["extras"] == {"prompt": prompt, "license": "CC0"}
    np.testing.assert_allclose(tree["accessors"][0]["min"], positions.min(axis=0))
    assert all(view["byteOffset"] % 4 == 0 for view in tree["bufferViews"])
    content = (tmp_path / "ball.glb").read_bytes()
    assert struct.unpack_from("<I", content, 8)[0] == len(content)
    assert [p.name for p in tmp_path.iterdir()] == ["ball.glb"]


def test_a_field_that_fills_its_box_gets_a_closed_surface_within_the_box():
    surface = field_surface(solid(lambda positions: torch.full(positions.shape[:1], -1.0)), CONFIG, RADIUS)
    assert surface.is_watertight and np.abs(surface.vertices).max() <= RADIUS + 1e-6
    assert surface.volume == pytest.approx((2 * RADIUS) ** 3, rel=0.01)
    assert np.allclose(np.linalg.norm(surface.vertex_normals, axis=1), 1, atol=1e-5)


def test_specks_go_and_parts_of_a_fair_size_stay():
    body, part, speck = ball((-0.2, 0.0, 0.0), 0.25), ball((0.3, 0.0, 0.0), 0.12), ball((0.3, 0.4, 0.4), 0.04)
    surface = field_surface(solid(union(body, part, speck)), CONFIG, RADIUS)
    assert len(surface.split()) == 2
    assert surface.bounds[1][1] < 0.3


def test_an_inner_cavity_is_filled():
    def shell(positions: Tensor) -> Tensor:
        return (positions.norm(dim=-1) - 0.3).abs() - 0.08

    surface = field_surface(solid(shell), CONFIG, RADIUS)
    assert len(surface.split()) == 1
    assert np.linalg.norm(surface.vertices, axis=1).min() > 0.3


def test_the_mesh_does_not_depend_on_how_points_are_chunked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    export_mesh(BALL, CONFIG, RADIUS, tmp_path / "one.glb")
    monkeypatch.setattr(redream.export, "POINTS_PER_CHUNK", 1009)
    export_mesh(BALL, CONFIG, RADIUS, tmp_path / "two.glb")
    assert (tmp_path / "one.glb").read_bytes() == (tmp_path / "two.glb").read_bytes()


def test_an_empty_field_is_refused_with_its_largest_density(tmp_path: Path):
    def faint(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full(positions.shape[:1], 3.25), torch.zeros_like(positions)

    with pytest.raises(ValueError, match=r"largest density is 3\.25.*density_threshold"):
        export_mesh(faint, CONFIG, RADIUS, tmp_path / "nothing.glb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_field_is_refused(value: float):
    def diverged(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(positions[:, 0] > 0.5, value, 20.0), torch.zeros_like(positions)

    with pytest.raises(ValueError, match="not finite"):
        field_surface(diverged, CONFIG, RADIUS)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_a_turntable_decodes_to_the_same_frames(height: int, width: int, tmp_path: Path):
    frames = torch.zeros(9, height, width, 3)
    for i in range(9):
        frames[i, :, : 7 * i + 4] = torch.tensor([0.9, 0.5, 0.1])
    save_turntable(tmp_path / "turn.mp4", frames, fps=10)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "turn.mp4"))
    meta = next(reader)
    size = (width + width % 2, height + height % 2)
    decoded = [np.frombuffer(frame, np.uint8).reshape(size[1], size[0], 3) for frame in reader]
    assert meta["size"] == size and meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 10 and len(decoded) == 9
    for i, frame in enumerate(decoded):
        assert np.abs(frame[:height, :width] / 255.0 - frames[i].numpy()).mean() < 0.03
    assert [p.name for p in tmp_path.iterdir()] == ["turn.mp4"]


def test_bytes_and_rgb_give_the_same_turntable(tmp_path: Path, generator: torch.Generator):
    frames = torch.randint(0, 256, (3, 16, 16, 3), generator=generator, dtype=torch.uint8)
    save_turntable(tmp_path / "bytes.mp4", frames.numpy(), fps=5)
    save_turntable(tmp_path / "rgb.mp4", frames / 255.0, fps=5)
    assert (tmp_path / "bytes.mp4").read_bytes() == (tmp_path / "rgb.mp4").read_bytes()


def test_a_turntable_without_frames_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one frame"):
        save_turntable(tmp_path / "none.mp4", torch.zeros(0, 8, 8, 3), fps=5)


def test_side_by_side_keeps_the_first_and_scales_the_others_to_its_height(generator: torch.Generator):
    first, wide = torch.rand(6, 20, 10, 3, generator=generator), torch.full((6, 40, 80, 3), 0.25)
    joined = side_by_side([first, wide])
    assert joined.shape == (6, 20, 10 + 40, 3)
    torch.testing.assert_close(joined[:, :, :10], first)
    torch.testing.assert_close(joined[:, :, 10:], torch.full((6, 20, 40, 3), 0.25))


def test_side_by_side_turns_every_object_once_in_the_same_time():
    long = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 2, 2, 3)
    short = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 2, 3)
    assert side_by_side([long, short])[:, 0, 2, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert side_by_side([short, long])[:, 0, 2, 0].tolist() == [0, 3, 6, 9]


def test_mesh_stands_on_the_ground_as_high_as_asked(tmp_path: Path):
    field = solid(union(ball((0.1, 0.0, 0.0), 0.2), ball((0.1, 0.0, 0.25), 0.1)))
    config = replace(CONFIG, origin="bottom", height=30.0, unit="cm")
    export_mesh(field, config, RADIUS, tmp_path / "snowman.glb")
    _, positions = read_glb(tmp_path / "snowman.glb")
    low, high = positions.min(axis=0), positions.max(axis=0)
    assert low[1] == pytest.approx(0.0, abs=1e-6) and high[1] == pytest.approx(0.3, rel=1e-5)  # glTF is in metres
    np.testing.assert_allclose((low + high)[[0, 2]], 0.0, atol=1e-6)


def test_largest_part_alone_is_kept_when_asked():
    field = solid(union(ball((-0.2, 0.0, 0.0), 0.2), ball((0.3, 0.0, 0.0), 0.15)))
    assert field_surface(field, CONFIG, RADIUS).bounds[1][0] > 0.4
    assert field_surface(field, replace(CONFIG, largest_part=True), RADIUS).bounds[1][0] < 0.05


def test_a_result_in_a_folder_of_meshes_is_captioned_by_its_prompt_and_credited_by_its_sources(tmp_path: Path):
    asset = Asset(
        asset_id="f00d",
        mesh_path="",
        caption="a truck",
        source="example.org",
        license="CC-BY-4.0",
        author="Ada",
    )
    origin = provenance("a blue truck", [Neighbor(asset=asset, score=0.3, text_score=0.2)])
    export_mesh(BALL, CONFIG, RADIUS, tmp_path / "x.glb", origin)
    (found,) = open_catalog(str(tmp_path), None, (), cache_dir=tmp_path / "cache").assets
    assert (found.caption, found.author, found.license) == ("a blue truck", "Ada", "CC-BY-4.0")
    assert found.source == "example.org"
    assert read_glb(tmp_path / "x.glb")[0]["asset"]["copyright"] == "after a truck by Ada (CC-BY-4.0)"
