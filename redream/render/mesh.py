"""Rasterise an asset to views with pyrender, headless (EGL, or OSMesa where PYOPENGL_PLATFORM says so).

The views are what retrieval, orientation, adaptation and the first occupancy look at, so they show shape and colour and
nothing that depends on where the camera stands: matte surfaces (a highlight would wander over the object from view to
view) under one light that is fixed to the camera, 30 degrees above its line of sight, over an ambient share of 0.45. A
back is lit exactly like a front. Surfaces are drawn from both sides and lit on the side that is seen, so inverted
winding changes nothing. Opacity is coverage (4x multisampling; transparent materials by alpha-to-coverage, which needs
no sorting); rgb is sRGB, premultiplied by it. The shaders `mesh.vert` and `mesh.frag` beside this file replace
pyrender's.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from trimesh.visual import ColorVisuals
from trimesh.visual.material import PBRMaterial

with suppress(ImportError):  # Triton is not for every platform
    # Mesa's software OpenGL loads its own LLVM for the whole process; Triton's dies if it comes after that.
    import triton  # noqa: F401

from redream.cameras import Camera, camera_rays
from redream.colors import srgb_to_linear
from redream.images import Rendering, composite, image_grid, save_png
from redream.meshes.scenes import scene_parts
from redream.render.egl import open_egl

AMBIENT = 0.45  # share of the light that comes from everywhere; the rest comes from beside the camera
CREASE_DEG = 35.0  # where a file brings no normals, edges sharper than this stay edges
GREY = 0.45  # linear colour of what has none
TEXELS_PER_PIXEL = 8  # along an axis; larger textures only cost time to upload
MAX_TEXTURE_SIZE = 2048

# A context is current only within one call, in its own thread; PyOpenGL's records of them are shared, hence turns.
_gl_lock = threading.Lock()


class RendererUnavailable(RuntimeError):
    """No OpenGL context can be made on this machine; the message says what to install."""


@dataclass(frozen=True, eq=False)
class AssetViews:
    """Renderings of one asset and the camera of each."""

    rendering: Rendering
    camera: Camera

    def __len__(self) -> int:
        return len(self.camera)


MeshRenderer = Callable[[trimesh.Scene, Camera], Rendering]


def render_mesh(scene: trimesh.Scene, camera: Camera) -> Rendering:
    """Render a scene from a batch of cameras, in 2 to 3 ms per view at 64 x 64 after 0.1 s for the context.

    Values are multiples of 1/255. Depth is measured along the ray of the pixel's centre but taken from one sample of
    the pixel, so at silhouettes it may be 0 where opacity is not.
    """
    with mesh_renderer(camera.width, camera.height) as render:
        return render(scene, camera)


@contextmanager
def mesh_renderer(width: int, height: int) -> Iterator[MeshRenderer]:
    """Yield `render_mesh` for cameras of one size with one context for all scenes, to be used in this thread only."""
    with _renderer(width, height) as (pyrender, renderer, platform):

        def render(scene: trimesh.Scene, camera: Camera) -> Rendering:
            if (camera.width, camera.height) != (width, height):
                raise ValueError(f"a renderer of {width}x{height} got cameras of {camera.width}x{camera.height}")
            surfaces = _surfaces(scene)
            with _gl_lock, _current(platform):
                rgba, depth = _draw(pyrender, renderer, surfaces, camera)
            for index in range(len(camera)):
                directions = camera_rays(camera[index]).directions[0].cpu()
                cosine = -(directions * camera.c2w[index, :3, 2].cpu()).sum(dim=-1, keepdim=True)
                depth[index] /= cosine
            return Rendering(rgba[..., :3], rgba[..., 3:], depth)

        yield render


def _draw(
    pyrender: Any, renderer: Any, surfaces: list[_Surface], camera: Camera
) -> tuple[Float[torch.Tensor, "batch height width 4"], Float[torch.Tensor, "batch height width 1"]]:
    """Return premultiplied colour, and depth along the camera's axis."""
    points = np.concatenate([surface.positions for surface in surfaces]) if surfaces else np.zeros((1, 3))
    center = 0.5 * (points.min(axis=0) + points.max(axis=0))
    radius = float(np.linalg.norm(points - center, axis=1).max())
    c2w = camera.c2w.detach().cpu().double().numpy()
    fovy = np.radians(camera.fovy_deg.detach().cpu().double().numpy())
    rgba = torch.zeros(len(camera), camera.height, camera.width, 4)
    depth = torch.zeros(len(camera), camera.height, camera.width, 1)
    # What the renderer has of the scene before is released when it meets this one.
    target = pyrender.Scene(bg_color=[0.0, 0.0, 0.0, 0.0], ambient_light=[AMBIENT] * 3)
    if surfaces:
        target.add(pyrender.Mesh(_primitives(pyrender, surfaces, max(camera.height, camera.width))))
    lens = pyrender.PerspectiveCamera(yfov=1.0, aspectRatio=camera.width / camera.height)
    lens_node = target.add(lens)
    for index in range(len(camera)):
        # Near and far hug the object, because the depth buffer has 24 bits.
        to_center = float(c2w[index, :3, 2] @ (c2w[index, :3, 3] - center))
        lens.znear = max(to_center - 1.01 * radius, 0.005 * radius)
        lens.zfar = max(to_center + 1.01 * radius, 2.0 * lens.znear)
        lens.yfov = float(fovy[index])
        target.set_pose(lens_node, c2w[index])
        color, along_axis = renderer.render(target, pyrender.RenderFlags.RGBA | pyrender.RenderFlags.OFFSCREEN)
        rgba[index] = torch.from_numpy(color / np.float32(255.0))
        depth[index, ..., 0] = torch.from_numpy(along_axis.copy())
    return rgba, depth


def save_views(folder: Path | str, views: AssetViews) -> None:
    """Write `views.safetensors` (rgba bytes, premultiplied; depth as float16) and `contact.png` over white."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rendering, camera = views.rendering, views.camera
    rgba = torch.cat([rendering.rgb, rendering.opacity], dim=-1)
    tensors = {
        "rgba": (rgba.clamp(0, 1) * 255 + 0.5).to(torch.uint8),
        "depth": rendering.depth.half(),
        "c2w": camera.c2w,
        "fovy_deg": camera.fovy_deg,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "views.safetensors")
    save_png(folder / "contact.png", image_grid(composite(rendering, 1.0), columns=math.ceil(math.sqrt(len(views)))))


def load_views(folder: Path | str) -> AssetViews:
    """Read what `save_views` wrote."""
    tensors = load_file(Path(folder) / "views.safetensors")
    rgba = tensors["rgba"].float() / 255.0
    camera = Camera(tensors["c2w"], tensors["fovy_deg"], height=rgba.shape[1], width=rgba.shape[2])
    return AssetViews(Rendering(rgba[..., :3], rgba[..., 3:], tensors["depth"].float()), camera)


def gl_renderer() -> str:
    """Name the OpenGL implementation that draws the meshes, or raise `RendererUnavailable`."""
    with _renderer(1, 1) as (_, _, platform), _gl_lock, _current(platform):
        from OpenGL import GL

        name: Any = GL.glGetString(GL.GL_RENDERER)
        return name.decode()


@contextmanager
def _renderer(width: int, height: int) -> Iterator[tuple[Any, Any, Any]]:
    """Yield pyrender, a renderer and its platform, whose context is not current; release them at the end."""
    if sys.platform == "linux":
        os.environ.setdefault("PYOPENGL_PLATFORM", "egl")  # read once, when OpenGL is first imported
        # Mesa's software rasteriser shares an image between threads that wait for each other: nothing to gain at our
        # sizes, and ten times slower where the cores are busy.
        os.environ.setdefault("LP_NUM_THREADS", "0")
    wanted = os.environ.get("PYOPENGL_PLATFORM", "the window system")
    try:
        with _gl_lock:
            import pyrender
            from OpenGL import GL
            from pyrender.shader_program import ShaderProgramCache

            platform = _open_platform(wanted, width, height)
            with _current(platform):
                # Not pyrender's OffscreenRenderer: its `delete` runs a full garbage collection, 0.3 s beside a loaded
                # network.
                renderer = pyrender.Renderer(width, height)
                renderer._program_cache = ShaderProgramCache(shader_dir=str(Path(__file__).parent))
                GL.glEnable(GL.GL_SAMPLE_ALPHA_TO_COVERAGE)
                GL.glEnable(GL.GL_SAMPLE_ALPHA_TO_ONE)
    except Exception as error:  # AttributeError, ImportError, GLError, AssertionError: PyOpenGL has no one type for it
        packages = "libosmesa6" if wanted == "osmesa" else "libegl1 libgl1-mesa-dri"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RendererUnavailable(
            f"no OpenGL context through {wanted} ({reason}); on Debian or Ubuntu run: apt-get install {packages}"
        ) from error
    try:
        yield pyrender, renderer, platform
    finally:
        with _gl_lock:
            with _current(platform):
                renderer.delete()
            _close(platform, wanted)


@contextmanager
def _current(platform: Any) -> Iterator[None]:
    """Make a context current in this thread for a while, so that a thread may have several, one after the other."""
    platform.make_current()
    try:
        yield
    finally:
        if hasattr(platform, "_egl_display"):
            from OpenGL import EGL

            EGL.eglMakeCurrent(platform._egl_display, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, EGL.EGL_NO_CONTEXT)
        else:
            platform.make_uncurrent()


def _open_platform(wanted: str, width: int, height: int) -> Any:
    if wanted == "egl":
        return open_egl(width, height)
    if wanted == "osmesa":
        from pyrender.platforms.osmesa import OSMesaPlatform as Platform
    else:
        from pyrender.platforms.pyglet_platform import PygletPlatform as Platform
    platform = Platform(width, height)
    platform.init_context()
    return platform


def _close(platform: Any, wanted: str) -> None:
    if wanted != "egl":
        platform.delete_context()
        return
    # pyrender's `delete_context` would terminate the display under other contexts of the process.
    from OpenGL import EGL

    EGL.eglDestroyContext(platform._egl_display, platform._egl_context)


# ---- a scene as few surfaces ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Look:
    """What a draw call has one of."""

    base_texture: Image.Image | None = None
    emissive_texture: Image.Image | None = None
    emissive_factor: tuple[float, ...] = (0.0, 0.0, 0.0)
    alpha_cutoff: float | None = 0.0  # texture alpha from here on is opaque, below it nothing; None blends
    is_solid: bool = False  # closed, opaque and wound outwards, so its back faces are never seen

    @property
    def key(self) -> tuple[Any, ...]:
        return id(self.base_texture), id(self.emissive_texture), self.emissive_factor, self.alpha_cutoff, self.is_solid


@dataclass(frozen=True, eq=False)
class _Surface:
    """Triangles in world coordinates that share a look."""

    positions: Float[np.ndarray, "vertices 3"]
    normals: Float[np.ndarray, "vertices 3"]
    uv: Float[np.ndarray, "vertices 2"]
    linear_rgba: Float[np.ndarray, "vertices 4"]
    faces: Int[np.ndarray, "faces 3"]
    look: _Look


def _surfaces(scene: trimesh.Scene) -> list[_Surface]:
    """Join the parts of one look: a draw call costs far more than the few triangles that most parts have."""
    groups: dict[Any, list[_Surface]] = defaultdict(list)
    for mesh, matrix in scene_parts(scene):
        for surface in _part_surfaces(mesh, matrix):
            groups[surface.look.key].append(surface)
    return [_join(group) for group in groups.values()]


def _join(group: list[_Surface]) -> _Surface:
    offsets = np.cumsum([0, *(len(surface.positions) for surface in group[:-1])])
    return _Surface(
        positions=np.concatenate([surface.positions for surface in group]),
        normals=np.concatenate([surface.normals for surface in group]),
        uv=np.concatenate([surface.uv for surface in group]),
        linear_rgba=np.concatenate([surface.linear_rgba for surface in group]),
        faces=np.concatenate([surface.faces + offset for surface, offset in zip(group, offsets, strict=True)]),
        look=group[0].look,
    )


def _part_surfaces(mesh: trimesh.Trimesh, matrix: Float[np.ndarray, "4 4"]) -> list[_Surface]:
    """Return a part's solid and its open triangles, where it has them."""
    kept, faces, normals = _shading_vertices(mesh)
    rgba, uv, look = _appearance(mesh, kept)
    # Cofactors carry normals through any matrix, mirrored or flat ones included.
    a, b, c = matrix[:3, :3]
    normals = normals @ np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)]).T
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    positions = trimesh.transform_points(np.asarray(mesh.vertices)[kept], matrix)
    surface = _Surface(positions, normals, uv, rgba, faces, look)

    # Half of the triangles of a closed surface face away; leaving them out nearly halves the time of dense meshes.
    sign = _outward_signs(positions, faces) if look.alpha_cutoff == 0.0 else np.zeros(len(faces))
    outward = np.where(sign[:, None] < 0, faces[:, ::-1], faces)
    solid = replace(surface, faces=outward[sign != 0], look=replace(look, is_solid=True))
    return [half for half in (solid, replace(surface, faces=faces[sign == 0])) if len(half.faces)]


def _shading_vertices(
    mesh: trimesh.Trimesh,
) -> tuple[Int[np.ndarray, " vertices"], Int[np.ndarray, "faces 3"], Float[np.ndarray, "vertices 3"]]:
    """Split vertices so that each has one normal; return each one's original vertex, the faces, the normals.

    Normals that came with the file are kept. Without them, shading is smooth across edges blunter than `CREASE_DEG`:
    from shared vertices a ball comes out round and a box with edges.
    """
    num_faces = len(mesh.faces)
    corners = np.asarray(mesh.faces).reshape(-1)
    if isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "face":
        return corners, np.arange(3 * num_faces).reshape(-1, 3), np.repeat(mesh.face_normals, 3, axis=0)
    if "vertex_normals" in mesh._cache:  # trimesh keeps those of the file there
        return np.arange(len(mesh.vertices)), np.asarray(mesh.faces), np.asarray(mesh.vertex_normals, dtype=np.float64)
    is_smooth = mesh.face_adjacency_angles < math.radians(CREASE_DEG)
    _, patch = _components(mesh.face_adjacency[is_smooth], num_faces)
    keys = patch.repeat(3).astype(np.int64) * len(mesh.vertices) + corners
    _, first_corner, vertex = np.unique(keys, return_index=True, return_inverse=True)
    by_area = (mesh.face_normals * mesh.area_faces[:, None]).repeat(3, axis=0)
    normals = np.stack([np.bincount(vertex, weights=by_area[:, axis]) for axis in range(3)], axis=1)
    return corners[first_corner], vertex.reshape(-1, 3), normals


def _outward_signs(
    positions: Float[np.ndarray, "vertices 3"], faces: Int[np.ndarray, "faces 3"]
) -> Float[np.ndarray, " faces"]:
    """Tell +1 for triangles of closed surfaces wound outwards, -1 inwards, 0 for those of open surfaces."""
    _, weld = np.unique(positions.astype(np.float32), axis=0, return_inverse=True)
    welded = weld.reshape(-1)[faces]
    start, end = welded.reshape(-1), np.roll(welded, -1, axis=1).reshape(-1)
    num_points = int(welded.max()) + 1
    # A surface is closed and consistently wound if each of its edges is walked as often one way as the other.
    low, high = np.minimum(start, end).astype(np.int64), np.maximum(start, end)
    _, edge = np.unique(low * num_points + high, return_inverse=True)
    balance = np.bincount(edge, weights=np.sign(end - start))
    num_pieces, piece = _components(np.stack([start, end], axis=1), num_points)
    is_open = np.bincount(piece[start], weights=balance[edge] != 0, minlength=num_pieces) > 0

    a, b, c = np.moveaxis((positions - positions.mean(axis=0))[faces], 1, 0)
    volume = np.einsum("ij,ij->i", a, np.cross(b, c))
    total = np.bincount(piece[welded[:, 0]], weights=volume, minlength=num_pieces)
    rounding = 1e-6 * np.bincount(piece[welded[:, 0]], weights=np.abs(volume), minlength=num_pieces)
    return np.where(is_open | (np.abs(total) <= rounding), 0.0, np.sign(total))[piece[welded[:, 0]]]


def _components(links: Int[np.ndarray, "links 2"], count: int) -> tuple[int, Int[np.ndarray, " count"]]:
    graph = coo_matrix((np.ones(len(links), dtype=bool), (links[:, 0], links[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)


def _appearance(
    mesh: trimesh.Trimesh, kept: Int[np.ndarray, " vertices"]
) -> tuple[Float[np.ndarray, "vertices 4"], Float[np.ndarray, "vertices 2"], _Look]:
    """Return linear colour and uv of the kept vertices, and the part's look."""
    visual: Any = mesh.visual  # colours or a texture, told apart by `kind`
    rgba = np.tile([GREY, GREY, GREY, 1.0], (len(kept), 1))
    uv = np.zeros((len(kept), 2))
    if visual.kind == "face":
        rgba[:, :3] = srgb_to_linear(np.asarray(visual.face_colors)[:, :3].repeat(3, axis=0) / 255.0)
    if visual.kind == "vertex":
        rgba[:, :3] = srgb_to_linear(np.asarray(visual.vertex_colors)[kept, :3] / 255.0)
    if visual.kind != "texture":
        return rgba, uv, _Look()

    rgba[:], look = _material_look(visual.material)
    if (colors := visual.vertex_attributes.get("color")) is not None:
        rgba *= np.concatenate([srgb_to_linear(colors[kept, :3] / 255.0), colors[kept, 3:] / 255.0], axis=1)
    if look.alpha_cutoff is not None:
        rgba[:, 3] = 1.0
    if visual.uv is None or len(visual.uv) != len(mesh.vertices):
        return rgba, uv, replace(look, base_texture=None, emissive_texture=None)
    return rgba, np.asarray(visual.uv)[kept, :2], look


def _material_look(material: Any) -> tuple[Float[np.ndarray, " 4"], _Look]:
    """Return the linear base colour and the look of a trimesh material, glTF's or the older kind of OBJ."""
    if not isinstance(material, PBRMaterial):
        simple = material.to_simple() if hasattr(material, "to_simple") else material
        diffuse = srgb_to_linear(np.asarray(simple.diffuse, dtype=np.float64)[:3] / 255.0)
        return np.append(diffuse, 1.0), _Look(base_texture=simple.image)
    base_color = np.ones(4)
    if material.baseColorFactor is not None:
        base_color = np.asarray(material.baseColorFactor, dtype=np.float64) / 255.0
    elif material.baseColorTexture is None:
        base_color[:3] = GREY
    mask_cutoff = 0.5 if material.alphaCutoff is None else float(material.alphaCutoff)
    cutoffs = {"BLEND": None, "MASK": mask_cutoff}
    emissive = np.zeros(3) if material.emissiveFactor is None else np.asarray(material.emissiveFactor, dtype=np.float64)
    return base_color, _Look(
        base_texture=material.baseColorTexture,
        emissive_texture=material.emissiveTexture,
        emissive_factor=tuple(emissive.tolist()),
        alpha_cutoff=cutoffs.get(material.alphaMode or "OPAQUE", 0.0),
    )


def _primitives(pyrender: Any, surfaces: list[_Surface], image_size: int) -> list[Any]:
    textures: dict[Any, Any] = {}

    def texture(image: Image.Image | None, alpha_cutoff: float | None) -> Any:
        if image is None:
            return None
        if (key := (id(image), alpha_cutoff)) not in textures:
            texels = _texels(image, alpha_cutoff, min(TEXELS_PER_PIXEL * image_size, MAX_TEXTURE_SIZE))
            textures[key] = pyrender.Texture(source=texels, source_channels="RGBA")
        return textures[key]

    return [
        pyrender.Primitive(
            positions=surface.positions,
            normals=surface.normals,
            texcoord_0=surface.uv,
            color_0=surface.linear_rgba.astype(np.float32),
            indices=surface.faces,
            material=pyrender.MetallicRoughnessMaterial(
                baseColorTexture=texture(surface.look.base_texture, surface.look.alpha_cutoff),
                emissiveTexture=texture(surface.look.emissive_texture, 0.0),
                emissiveFactor=list(surface.look.emissive_factor),
                alphaMode="OPAQUE",  # alpha acts through coverage
                doubleSided=not surface.look.is_solid,
            ),
            mode=pyrender.constants.GLTF.TRIANGLES,
        )
        for surface in surfaces
    ]


def _texels(image: Image.Image, alpha_cutoff: float | None, max_size: int) -> UInt8[np.ndarray, "height width 4"]:
    image = image.convert("RGBA")
    if max(image.size) > max_size:
        image = image.reduce(math.ceil(max(image.size) / max_size))
    texels = np.array(image)
    if alpha_cutoff is not None:
        texels[..., 3] = np.where(texels[..., 3] >= 255.0 * alpha_cutoff, 255, 0)
    return texels
