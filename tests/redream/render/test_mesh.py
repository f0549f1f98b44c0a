"""Laws of `redream.render.mesh`: axes, coverage, depth, light, and that no surface turns invisible."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial

from redream.cameras import Camera, camera_rays, cameras_at, orbit
from redream.colors import linear_to_srgb, srgb_to_linear
from redream.images import Rendering, composite
from redream.meshes.assets import load_mesh, turn_mesh
from redream.render.mesh import AssetViews, RendererUnavailable, gl_renderer, load_views, render_mesh, save_views

RED, GREEN, BLUE = (220, 30, 30), (30, 180, 60), (40, 70, 210)
YELLOW, CYAN, PURPLE = (220, 200, 40), (40, 190, 200), (150, 50, 170)
FACES = {(1, 0, 0): RED, (-1, 0, 0): GREEN, (0, 1, 0): BLUE, (0, -1, 0): YELLOW, (0, 0, 1): CYAN, (0, 0, -1): PURPLE}
DISTANCE, FOVY = 2.0, 40.0


@pytest.fixture(scope="module", autouse=True)
def opengl() -> None:
    try:
        gl_renderer()
    except RendererUnavailable as error:
        pytest.skip(str(error))


def view(azimuth_deg: float = 0.0, elevation_deg: float = 0.0, size: int = 64) -> Camera:
    azimuth, elevation, distance, fovy = torch.tensor([azimuth_deg, elevation_deg, DISTANCE, FOVY]).split(1)
    return cameras_at(azimuth, elevation, distance, fovy, size)


def colored_box(half: float = 0.25, colors: dict[tuple, tuple] = FACES) -> trimesh.Trimesh:
    box = trimesh.creation.box((2 * half,) * 3)
    normals = [tuple(np.rint(normal).astype(int)) for normal in box.face_normals]
    box.visual = ColorVisuals(box, face_colors=np.array([(*colors[normal], 255) for normal in normals], dtype=np.uint8))
    return box


def painted(mesh: trimesh.Trimesh, color: tuple[int, int, int] = RED) -> trimesh.Trimesh:
    mesh.visual = ColorVisuals(mesh, vertex_colors=np.tile(np.array([*color, 255], np.uint8), (len(mesh.vertices), 1)))
    return mesh


def plain_box(color: tuple[int, int, int] = RED, half: float = 0.25) -> trimesh.Trimesh:
    return painted(trimesh.creation.box((2 * half,) * 3), color)


def center_color(rendering: Rendering, index: int = 0) -> np.ndarray:
    _, height, width, _ = rendering.rgb.shape
    return 255 * rendering.rgb[index, height // 2, width // 2].numpy()


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "seen"),
    [
        (0, 0, (1, 0, 0)),
        (90, 0, (0, 1, 0)),
        (180, 0, (-1, 0, 0)),
        (270, 0, (0, -1, 0)),
        (0, 90, (0, 0, 1)),
        (0, -90, (0, 0, -1)),
    ],
)
def test_each_camera_sees_the_face_that_looks_at_it(azimuth_deg: float, elevation_deg: float, seen: tuple) -> None:
    rendering = render_mesh(trimesh.Scene(colored_box()), view(azimuth_deg, elevation_deg))
    # Within 15 % of the nominal colour: a face seen head on is lit almost fully.
    np.testing.assert_allclose(center_color(rendering), FACES[seen], atol=0.15 * 255)
    nearest = min(FACES.values(), key=lambda color: np.abs(np.array(color) - center_color(rendering)).sum())
    assert nearest == FACES[seen]


@pytest.mark.parametrize("azimuth_deg", [0, 90, 200])
def test_up_is_at_the_top_of_the_image(azimuth_deg: float) -> None:
    box = plain_box(half=0.05)
    box.apply_translation([0, 0, 0.4])
    rows = render_mesh(trimesh.Scene(box), view(azimuth_deg)).opacity[0, ..., 0].sum(dim=1)
    assert rows[:24].sum() > 0
    assert rows[24:].sum() == 0


def test_seen_from_the_front_left_of_the_object_is_right_in_the_image() -> None:
    box = plain_box(half=0.05)
    box.apply_translation([0, 0.4, 0])
    columns = render_mesh(trimesh.Scene(box), view()).opacity[0, ..., 0].sum(dim=0)
    assert columns[40:].sum() > 0
    assert columns[:40].sum() == 0


def test_pixels_and_rays_agree() -> None:
    """A camera ray, followed for the rendered depth, ends on the surface that the pixel shows."""
    generator = torch.Generator().manual_seed(3)
    angles = 360 * torch.rand(4, generator=generator), 60 * torch.rand(4, generator=generator)
    camera = cameras_at(*angles, torch.full((4,), DISTANCE), torch.tensor([30.0, 35.0, 40.0, 45.0]), size=48)
    rendering = render_mesh(trimesh.Scene(plain_box()), camera)
    rays = camera_rays(camera)
    points = rays.origins + rendering.depth * rays.directions
    largest = points.abs().amax(dim=-1)[(rendering.opacity[..., 0] == 1)]
    # A pixel's depth comes from one of its samples, up to half a pixel beside its centre, on oblique faces.
    half_pixel = DISTANCE * math.tan(math.radians(22.5)) / 48
    assert (largest - 0.25).abs().max() < 2 * half_pixel
    assert (largest - 0.25).abs().mean() < 0.5 * half_pixel


def test_depth_of_the_front_face_is_the_distance_less_half_the_extent() -> None:
    camera = view(size=64)
    rendering = render_mesh(trimesh.Scene(plain_box()), camera)
    cosine = -(camera_rays(camera).directions * camera.c2w[:, None, None, :3, 2]).sum(dim=-1, keepdim=True)
    along_axis = (rendering.depth * cosine)[rendering.opacity == 1]
    torch.testing.assert_close(along_axis, torch.full_like(along_axis, DISTANCE - 0.25), atol=1e-4, rtol=0)


def test_depth_and_opacity_are_zero_where_nothing_is() -> None:
    rendering = render_mesh(trimesh.Scene(plain_box()), view())
    assert rendering.opacity[0, 0, 0] == 0
    assert rendering.depth[rendering.opacity == 0].abs().max() == 0
    assert rendering.rgb[0, 0, 0].abs().max() == 0


def test_coverage_equals_the_projected_area() -> None:
    rendering = render_mesh(trimesh.Scene(plain_box()), view(size=128))
    side = 0.25 / (DISTANCE - 0.25) / math.tan(math.radians(FOVY / 2)) * 128
    assert rendering.opacity.sum().item() == pytest.approx(side**2, rel=0.01)
    assert rendering.opacity[0, 64, 64] == 1


def test_edges_are_premultiplied() -> None:
    """At a silhouette the colour falls with the coverage, so compositing needs no halo."""
    rendering = render_mesh(trimesh.Scene(trimesh.creation.icosphere(4, radius=0.4)), view(size=64))
    is_edge = (rendering.opacity > 0) & (rendering.opacity < 1)
    assert is_edge.sum() > 20
    assert (rendering.rgb <= rendering.opacity + 1e-6).all()
    over_grey = composite(rendering, 0.5)[is_edge.expand_as(rendering.rgb)]
    assert over_grey.min() > 0.4


def test_inverted_winding_changes_nothing() -> None:
    camera = orbit(4, 20.0, DISTANCE, FOVY, 64)
    right = trimesh.creation.icosphere(2, radius=0.4)
    inverted = right.copy()
    inverted.invert()
    expected, actual = (render_mesh(trimesh.Scene(mesh), camera) for mesh in (right, inverted))
    assert (expected.rgb - actual.rgb).abs().max() < 2.5 / 255
    torch.testing.assert_close(expected.opacity, actual.opacity)
    torch.testing.assert_close(expected.depth, actual.depth, atol=1e-4, rtol=0)


def test_a_mirrored_instance_looks_like_a_mirrored_mesh() -> None:
    camera = view(30.0, 20.0)
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])
    mesh = colored_box()
    mesh.apply_translation([0, 0.1, 0])
    instance = trimesh.Scene()
    instance.add_geometry(mesh, transform=mirror)
    baked = colored_box(colors={**FACES, (0, 1, 0): YELLOW, (0, -1, 0): BLUE})
    baked.apply_translation([0, -0.1, 0])
    torch.testing.assert_close(render_mesh(instance, camera).rgb, render_mesh(trimesh.Scene(baked), camera).rgb)


def test_an_open_sheet_is_seen_from_both_sides() -> None:
    corners = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]]) * 0.3
    sheet = painted(trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False))
    rendering = render_mesh(trimesh.Scene(sheet), orbit(2, 0.0, DISTANCE, FOVY, 64))
    torch.testing.assert_close(rendering.rgb[0], rendering.rgb[1].flip(1), atol=1.1 / 255, rtol=0)
    assert rendering.opacity[0].mean() > 0.1


def test_of_many_pieces_the_inverted_ones_are_repaired_alone() -> None:
    pieces = [plain_box(half=0.1).apply_translation([0, side, 0]) for side in (-0.25, 0.25)]
    camera = view(30.0, 20.0)
    expected = render_mesh(trimesh.Scene(trimesh.util.concatenate(pieces)), camera)
    pieces[1].invert()
    actual = render_mesh(trimesh.Scene(trimesh.util.concatenate(pieces)), camera)
    torch.testing.assert_close(actual.rgb, expected.rgb, atol=2.1 / 255, rtol=0)
    torch.testing.assert_close(actual.depth, expected.depth)


def test_light_moves_with_the_camera() -> None:
    """Turning object and camera together gives the same picture, so no side has a light of its own."""
    mesh = trimesh.creation.annulus(0.2, 0.4, 0.3)
    expected = render_mesh(trimesh.Scene(mesh), view(0.0, 25.0)).rgb
    for azimuth_deg in (90.0, 180.0, 270.0):
        turned = render_mesh(turn_mesh(trimesh.Scene(mesh), azimuth_deg), view(azimuth_deg, 25.0)).rgb
        assert (turned - expected).abs().mean() < 1e-3


def test_shading_shows_shape() -> None:
    ball = painted(trimesh.creation.icosphere(4, radius=0.4), (200, 200, 200))
    rgb = render_mesh(trimesh.Scene(ball), view(size=64)).rgb[0, ..., 0]
    assert rgb[26, 32] > rgb[44, 32] + 0.05  # lit from above
    assert 0.6 < rgb[44, 32] / rgb[26, 32] < 0.95


def test_shared_vertices_of_a_box_keep_flat_faces() -> None:
    rgb = render_mesh(trimesh.Scene(plain_box()), view(size=64)).rgb[0, 26:38, 26:38]
    assert (rgb - rgb[0, 0]).abs().max() == 0


def test_face_vertex_and_material_colors_mean_the_same() -> None:
    by_face, by_vertex, by_material = plain_box(), plain_box(), plain_box()
    by_face.visual = ColorVisuals(by_face, face_colors=np.tile([*RED, 255], (12, 1)))
    linear = np.append(srgb_to_linear(np.array(RED) / 255.0), 1.0)
    by_material.visual = TextureVisuals(material=PBRMaterial(baseColorFactor=linear))
    by_vertex, by_face, by_material = (
        center_color(render_mesh(trimesh.Scene(mesh), view())) for mesh in (by_vertex, by_face, by_material)
    )
    np.testing.assert_allclose(by_face, by_vertex, atol=1)
    np.testing.assert_allclose(by_material, by_vertex, atol=6)  # trimesh keeps factors in 8 linear bits


def test_a_glb_with_linear_vertex_colors_shows_their_srgb(tmp_path: Path) -> None:
    red, green, blue = np.rint(255 * srgb_to_linear(np.array(RED) / 255.0)).astype(int).tolist()
    plain_box((red, green, blue)).export(tmp_path / "box.glb")
    rendering = render_mesh(load_mesh(tmp_path / "box.glb"), view())
    np.testing.assert_allclose(center_color(rendering), RED, atol=0.15 * 255)


def textured_sheet(image: Image.Image, **material: Any) -> trimesh.Trimesh:
    """A sheet in the plane x = 0 that shows an image upright to the front camera."""
    corners = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]]) * 0.3
    sheet = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    sheet.visual = TextureVisuals(uv=uv, material=PBRMaterial(baseColorTexture=image, **material))
    return sheet


def test_textures_are_upright_and_keep_their_colors() -> None:
    image = Image.new("RGB", (64, 64), RED)
    image.paste(BLUE, (0, 0, 32, 32))  # top left
    rgb = 255 * render_mesh(trimesh.Scene(textured_sheet(image)), view(size=64)).rgb[0].numpy()
    np.testing.assert_allclose(rgb[26, 26], BLUE, atol=0.15 * 255)
    for row, column in ((26, 38), (38, 26), (38, 38)):
        np.testing.assert_allclose(rgb[row, column], RED, atol=0.15 * 255)


@pytest.mark.parametrize(
    ("mode", "alpha", "opacity"),
    [("OPAQUE", 0, 1.0), ("OPAQUE", 10, 1.0), ("MASK", 100, 0.0), ("MASK", 200, 1.0), ("BLEND", 128, 0.5)],
)
def test_texture_alpha_follows_the_alpha_mode(mode: str, alpha: int, opacity: float) -> None:
    sheet = textured_sheet(Image.new("RGBA", (8, 8), (*RED, alpha)), alphaMode=mode)
    rendering = render_mesh(trimesh.Scene(sheet), view(size=64))
    assert rendering.opacity[0, 32, 32].item() == pytest.approx(opacity, abs=0.13)
    assert (rendering.rgb <= rendering.opacity + 1e-6).all()


def test_an_opaque_texture_shows_its_colours_where_its_alpha_is_zero() -> None:
    sheet = textured_sheet(Image.new("RGBA", (8, 8), (*BLUE, 0)), alphaMode="OPAQUE")
    np.testing.assert_allclose(center_color(render_mesh(trimesh.Scene(sheet), view())), BLUE, atol=0.15 * 255)


@pytest.mark.parametrize("glow", [(0.0, 0.5, 0.0), (0.3, 0.0, 0.2)])
def test_what_is_black_and_glows_has_the_colour_of_its_glow(glow: tuple[float, ...]) -> None:
    sheet = textured_sheet(Image.new("RGB", (8, 8), (0, 0, 0)), emissiveFactor=glow)
    color = center_color(render_mesh(trimesh.Scene(sheet), view()))
    np.testing.assert_allclose(color, 255 * linear_to_srgb(np.array(glow)), atol=2)


def test_a_glow_is_where_its_texture_is() -> None:
    glow = Image.new("RGB", (64, 64), (0, 0, 0))
    glow.paste((255, 255, 255), (0, 0, 32, 64))  # the left half
    sheet = textured_sheet(Image.new("RGB", (8, 8), (0, 0, 0)), emissiveTexture=glow, emissiveFactor=(0.0, 1.0, 0.0))
    rgb = render_mesh(trimesh.Scene(sheet), view(size=64)).rgb[0].numpy()
    np.testing.assert_allclose(rgb[32, 26], [0, 1, 0], atol=0.02)
    np.testing.assert_allclose(rgb[32, 38], [0, 0, 0], atol=0.02)


def test_transparent_before_opaque_is_opaque() -> None:
    glass = textured_sheet(Image.new("RGBA", (8, 8), (*BLUE, 128)), alphaMode="BLEND")
    glass.apply_translation([0.4, 0, 0])
    rendering = render_mesh(trimesh.Scene([plain_box(), glass]), view(size=64))
    assert rendering.opacity[0, 32, 32] == 1
    color = center_color(rendering)
    assert RED[0] > color[0] > BLUE[0]
    assert RED[2] < color[2] < BLUE[2]


def test_two_views_equal_two_single_views() -> None:
    scene, camera = trimesh.Scene(colored_box()), orbit(2, 10.0, DISTANCE, FOVY, 32)
    both = render_mesh(scene, camera)
    for index in range(2):
        one = render_mesh(scene, camera[index])
        assert torch.equal(one.rgb[0], both.rgb[index])
        assert torch.equal(one.opacity[0], both.opacity[index])
        assert torch.equal(one.depth[0], both.depth[index])


def test_images_need_not_be_square_or_of_even_size() -> None:
    square = view(size=33)
    wide = Camera(square.c2w, square.fovy_deg, height=33, width=57)
    scene = trimesh.Scene(colored_box())
    expected, actual = render_mesh(scene, square), render_mesh(scene, wide)
    assert actual.rgb.shape == (1, 33, 57, 3)
    torch.testing.assert_close(actual.opacity[:, :, 12:45], expected.opacity, atol=0.3, rtol=0)
    assert actual.opacity.sum().item() == pytest.approx(expected.opacity.sum().item(), rel=0.01)


def test_views_beside_the_object_are_empty_not_an_error() -> None:
    box = plain_box()
    box.apply_translation([50, 0, 0])
    assert render_mesh(trimesh.Scene(box), view()).opacity.sum() == 0


def test_size_and_place_do_not_matter_when_the_camera_follows() -> None:
    camera = view(40.0, 20.0)
    c2w = camera.c2w.clone()
    c2w[:, :3, 3] *= 1e-4
    tiny = colored_box(half=0.25e-4)
    small = render_mesh(trimesh.Scene(tiny), Camera(c2w, camera.fovy_deg, 64, 64))
    usual = render_mesh(trimesh.Scene(colored_box()), camera)
    assert (small.rgb - usual.rgb).abs().mean() < 0.01
    torch.testing.assert_close(1e4 * small.depth.sum(), usual.depth.sum(), rtol=0.01, atol=0)


def test_threads_get_what_the_main_thread_gets() -> None:
    scene, camera = trimesh.Scene(colored_box()), orbit(3, 10.0, DISTANCE, FOVY, 32)
    expected = render_mesh(scene, camera)
    with ThreadPoolExecutor(3) as pool:
        renderings = list(pool.map(lambda _: render_mesh(scene, camera), range(6)))
    assert all(torch.equal(rendering.rgb, expected.rgb) for rendering in renderings)
    assert torch.equal(render_mesh(scene, camera).rgb, expected.rgb)


def test_saved_views_come_back(tmp_path: Path) -> None:
    camera = orbit(3, 10.0, DISTANCE, FOVY, 32)
    views = AssetViews(render_mesh(trimesh.Scene(colored_box()), camera), camera)
    save_views(tmp_path / "views", views)
    loaded = load_views(tmp_path / "views")
    assert torch.equal(loaded.rendering.rgb, views.rendering.rgb)
    assert torch.equal(loaded.rendering.opacity, views.rendering.opacity)
    torch.testing.assert_close(loaded.rendering.depth, views.rendering.depth, atol=1e-3, rtol=0)
    assert torch.equal(loaded.camera.c2w, camera.c2w)
    assert torch.equal(loaded.camera.fovy_deg, camera.fovy_deg)
    assert (loaded.camera.height, loaded.camera.width, len(loaded)) == (32, 32, 3)
    with Image.open(tmp_path / "views" / "contact.png") as contact:
        assert contact.size == (64, 64)


def test_a_machine_without_gl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ["PYOPENGL_PLATFORM"] != "egl":
        pytest.skip("this run does not use EGL")
    monkeypatch.setenv("EGL_DEVICE_ID", "99")
    with pytest.raises(RendererUnavailable, match="EGL_DEVICE_ID is 99.*leave it out"):
        render_mesh(trimesh.Scene(plain_box()), view())
    monkeypatch.delenv("EGL_DEVICE_ID")
    assert render_mesh(trimesh.Scene(plain_box()), view()).opacity.sum() > 0


def test_diffusers_can_be_loaded_after_the_first_render():
    """Mesa's LLVM and Triton's once killed the process when a run's first stage was a render."""
    script = (
        "import trimesh; from redream.cameras import orbit; from redream.render.mesh import render_mesh;"
        "render_mesh(trimesh.Scene(trimesh.creation.box((1, 1, 1))), orbit(1, 15.0, 3.0, 45.0, 16));"
        "import redream.prior.stable_diffusion"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
