"""Results as files: a mesh (GLB) from a radiance field, and turntables (MP4).

The mesh is the level set sigma = `density_threshold`, by marching cubes, each vertex coloured with the field's radiance
seen straight on. Files are glTF 2.0: y-up with the front along +z, that is, glTF (x, y, z) = world (y, z, x), and
COLOR_0 linear as the standard wants, where the field's rgb is sRGB. Every file is written aside and renamed.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
import trimesh
from jaxtyping import Float, UInt8
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from torch import Tensor
from torch.nn.functional import interpolate

from redream.colors import srgb_to_linear
from redream.files import put_in_place
from redream.images import to_images, to_rgb, to_uint8
from redream.records import Neighbor
from redream.settings import ExportConfig

DensityAndColor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (positions, directions) -> (sigmas, rgb)
Frames = Float[Tensor, "time height width 3"] | UInt8[np.ndarray, "time height width 3"]

POINTS_PER_CHUNK = 2**17
ATTRIBUTION = ("asset_id", "caption", "source", "license", "author")
SPECK_SHARE = 0.01  # of the largest component's volume
METERS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}


def export_mesh(
    density_and_color: DensityAndColor,
    config: ExportConfig,
    radius: float,
    path: Path | str,
    extras: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Write a radiance field's surface as GLB with vertex colours.

    Args:
        radius: half-extent of the field's box, world units.
        extras: notes for the file's `asset.extras`, such as the prompt and the licences of the retrieved assets.

    Raises:
        ValueError: the density reaches the threshold nowhere.
    """
    surface, rgb = colored_surface(density_and_color, config, radius, device)
    write_aside(path, encode_glb(placed(surface, config), rgb, extras or {}))


def colored_surface(
    density_and_color: DensityAndColor, config: ExportConfig, radius: float, device: torch.device | str = "cpu"
) -> tuple[trimesh.Trimesh, Float[np.ndarray, "vertices 3"]]:
    """Return a field's surface in world axes, and the sRGB colour of each vertex in [0, 1]; raises as `export_mesh`."""
    surface = field_surface(density_and_color, config, radius, device)
    # Half a cell below the surface the density is well above zero, so the radiance there is what renders show.
    inside = surface.vertices - surface.vertex_normals * (radius / config.mesh_resolution)
    return surface, _colors(density_and_color, inside, -surface.vertex_normals, device)


def placed(surface: trimesh.Trimesh, config: ExportConfig) -> trimesh.Trimesh:
    """Return a surface in world axes at its export's place and height, in metres."""
    low, high = surface.bounds
    scale = config.height * METERS[config.unit] / (high[2] - low[2]) if config.height else 1.0
    origin = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]] if config.origin == "bottom" else [0.0, 0.0, 0.0]
    return trimesh.Trimesh((surface.vertices - origin) * scale, surface.faces, process=False)


def provenance(prompt: str, neighbors: Sequence[Neighbor]) -> dict[str, Any]:
    """Return what a mesh says of its origin: the prompt, and the retrieved assets with their authors and licences.

    `caption`, `author`, `license` and `source` are what readers of glTF files look for, a folder's index among them.
    """
    assets = [{name: getattr(neighbor.asset, name) for name in ATTRIBUTION} for neighbor in neighbors]

    def joined(name: str) -> str:
        return "; ".join(dict.fromkeys(entry[name] for entry in assets if entry[name]))

    credit = {name: joined(name) for name in ("author", "license", "source")}
    return {"prompt": prompt, "caption": prompt, **credit, "generator": "ReDream", "retrieved_assets": assets}


def copyright_of(extras: Mapping[str, Any]) -> str:
    """Return the notice for a file's `asset.copyright` from its `provenance`; empty where no asset was used."""
    assets = extras.get("retrieved_assets", [])
    return "; ".join(
        f"after {entry['caption'] or entry['asset_id']} by {entry['author'] or 'an unnamed author'}"
        + f" ({entry['license'] or 'licence not stated'})"
        for entry in assets
    )


def field_surface(
    density_and_color: DensityAndColor, config: ExportConfig, radius: float, device: torch.device | str = "cpu"
) -> trimesh.Trimesh:
    """Return the closed surface of a field in world axes, wound outwards, without specks and inner cavities."""
    sigmas = _density_grid(density_and_color, config.mesh_resolution, radius, device)
    peak = float(sigmas.max())
    if not np.isfinite(peak) or not np.isfinite(sigmas).all():
        raise ValueError("the field's density is not finite everywhere: its optimisation diverged")
    if peak <= config.density_threshold:
        raise ValueError(
            f"the field is empty: its largest density is {peak:.3g}, below export.density_threshold = "
            f"{config.density_threshold:g}; train it for longer or lower the threshold"
        )
    # Density changes by orders of magnitude within a cell; its logarithm is nearer to the straight line along which
    # marching cubes interpolates. The empty border closes surfaces that leave the box.
    volume = np.pad(np.log1p(sigmas), 1)
    # skimage counts orientation by the left hand, so "ascent" is what winds solids outwards.
    level = np.log1p(config.density_threshold)
    vertices, faces, _, _ = marching_cubes(volume, level, gradient_direction="ascent", allow_degenerate=False)
    cell = 2.0 * radius / config.mesh_resolution
    vertices = np.clip((vertices - 1.0) * cell - radius, -radius, radius)
    return _without_specks(trimesh.Trimesh(vertices, faces, process=False), 1.0 if config.largest_part else SPECK_SHARE)


def encode_glb(mesh: trimesh.Trimesh, rgb: Float[np.ndarray, "vertices 3"], extras: Mapping[str, Any]) -> bytes:
    """Encode a mesh in world axes with sRGB vertex colours in [0, 1] as binary glTF."""
    positions = _gltf_axes(mesh.vertices).astype("<f4")
    color = np.ones((len(rgb), 4), dtype="<u2")  # 16 bits, because 8 bits of a linear colour show bands in the dark
    color[:, :3] = np.rint(srgb_to_linear(np.clip(rgb, 0.0, 1.0)) * 65535.0)
    color[:, 3] = 65535
    arrays = [
        (positions, 5126, "VEC3", 34962),
        (_gltf_axes(mesh.vertex_normals).astype("<f4"), 5126, "VEC3", 34962),
        (color, 5123, "VEC4", 34962),
        (np.ascontiguousarray(mesh.faces, dtype="<u4").reshape(-1), 5125, "SCALAR", 34963),
    ]
    views, accessors, binary = [], [], b""
    for index, (array, component, shape, target) in enumerate(arrays):
        content = array.tobytes()
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(content), "target": target})
        accessors.append({"bufferView": index, "componentType": component, "count": len(array), "type": shape})
        binary += content
    accessors[0] |= {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    accessors[2]["normalized"] = True
    primitive = {"attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}, "indices": 3, "material": 0}
    notice = {"copyright": text} if (text := copyright_of(extras)) else {}
    tree = {
        "asset": {"version": "2.0", "generator": "redream", **notice, "extras": dict(extras)},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "result"}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    head = json.dumps(tree).encode()
    head += b" " * (-len(head) % 4)
    binary += b"\0" * (-len(binary) % 4)
    body = struct.pack("<I4s", len(head), b"JSON") + head + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def save_turntable(path: Path | str, frames: Frames, fps: int) -> None:
    """Write frames, bytes or rgb in [0, 1], as H.264 MP4 that browsers play; odd sides grow by one pixel."""
    video = frames if isinstance(frames, np.ndarray) else to_uint8(frames)
    if len(video) == 0:
        raise ValueError("a turntable needs at least one frame")
    video = np.pad(video, ((0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)), mode="edge")
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-y",
        "-loglevel",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{video.shape[2]}x{video.shape[1]}",
        "-r",
        str(fps),
        "-i",
        "-",
        "-vf",
        "scale=out_color_matrix=bt709:out_range=tv",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-crf",
        "16",
        "-colorspace",
        "bt709",
        "-color_primaries",
        "bt709",
        "-color_trc",
        "bt709",
        # One thread and no build stamps, so that the same frames give the same bytes whatever the number of cores.
        "-threads",
        "1",
        "-fflags",
        "+bitexact",
        "-flags:v",
        "+bitexact",
        "-movflags",
        "+faststart",
        "-f",
        "mp4",
        str(aside),
    ]
    ended = subprocess.run(command, input=video.tobytes(), capture_output=True)
    if ended.returncode != 0:
        raise RuntimeError(f"ffmpeg could not write {path.name}: {ended.stderr.decode(errors='replace').strip()}")
    put_in_place(aside, path)


def side_by_side(videos: Sequence[Float[Tensor, "_ _ _ 3"]]) -> Float[Tensor, "time height width 3"]:
    """Put turntables next to each other, scaled to the first one's height and running at its pace.

    The others turn once while the first turns once, however many frames they have.
    """
    num_frames, height = videos[0].shape[:2]
    columns = []
    for video in videos:
        frames = video[torch.arange(num_frames) * len(video) // num_frames]
        if frames.shape[1] != height:
            width = round(frames.shape[2] * height / frames.shape[1])
            frames = to_rgb(interpolate(to_images(frames), size=(height, width), mode="bilinear", antialias=True))
        columns.append(frames.cpu())
    return torch.cat(columns, dim=2)


def write_aside(path: Path | str, content: bytes) -> None:
    """Write a file under another name and rename it, so that nobody ever sees half of it."""
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(content)
    put_in_place(aside, path)


@torch.no_grad()
def _density_grid(
    density_and_color: DensityAndColor, resolution: int, radius: float, device: torch.device | str
) -> Float[np.ndarray, "x y z"]:
    side = resolution + 1  # samples at the corners of the cells
    axis = torch.linspace(-radius, radius, side, device=device)
    sigmas = np.empty(side**3, dtype=np.float32)
    for start in range(0, side**3, POINTS_PER_CHUNK):
        index = torch.arange(start, min(start + POINTS_PER_CHUNK, side**3), device=device)
        x, y, z = axis[index // side**2], axis[index // side % side], axis[index % side]
        positions = torch.stack([x, y, z], dim=-1)
        # Density has no direction; any unit vector serves.
        down = torch.tensor([0.0, 0.0, -1.0], device=device).expand_as(positions)
        sigmas[start : start + len(index)] = density_and_color(positions, down)[0].reshape(-1).cpu().numpy()
    return sigmas.reshape(side, side, side)


@torch.no_grad()
def _colors(
    density_and_color: DensityAndColor,
    positions: Float[np.ndarray, "points 3"],
    directions: Float[np.ndarray, "points 3"],
    device: torch.device | str,
) -> Float[np.ndarray, "points 3"]:
    rgb = np.empty((len(positions), 3), dtype=np.float32)
    for start in range(0, len(positions), POINTS_PER_CHUNK):
        chunk = slice(start, start + POINTS_PER_CHUNK)
        where = torch.as_tensor(positions[chunk], dtype=torch.float32, device=device)
        toward = torch.as_tensor(np.ascontiguousarray(directions[chunk]), dtype=torch.float32, device=device)
        rgb[chunk] = density_and_color(where, toward)[1].cpu().numpy()
    return rgb


def _without_specks(mesh: trimesh.Trimesh, share: float) -> trimesh.Trimesh:
    """Keep the components that enclose at least a share of the largest one's volume.

    A cavity is wound inwards and so encloses a negative volume: it goes as well, since nobody can see into it.
    """
    edges = mesh.faces[:, [0, 1, 1, 2]].reshape(-1, 2)
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(mesh.vertices),) * 2)
    num_components, component = connected_components(graph, directed=False)
    of_face = component[mesh.faces[:, 0]]
    # Signed volume of the tetrahedra between each face and the origin.
    signed = np.einsum("fi,fi->f", mesh.triangles[:, 0], np.cross(mesh.triangles[:, 1], mesh.triangles[:, 2])) / 6.0
    volumes = np.bincount(of_face, signed, num_components)
    kept = (volumes >= share * volumes.max())[of_face]
    clean = trimesh.Trimesh(mesh.vertices, mesh.faces[kept], process=False)
    clean.remove_unreferenced_vertices()
    return clean


def _gltf_axes(vectors: Float[np.ndarray, "num 3"]) -> Float[np.ndarray, "num 3"]:
    return np.ascontiguousarray(np.asarray(vectors)[:, [1, 2, 0]])
