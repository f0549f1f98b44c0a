"""What the shapes of the miniature world are built from: closed primitives with flat colours and no textures.

A shape is a list of `Part`s: small watertight solids, each of one colour, that overlap freely (no boolean operations).
World axes: +z up, front +x, left +y; units are arbitrary, `catalog.make_mesh` centres and scales. Proportions are drawn
from the generator that is passed in. Vertices are shared within a curved surface and split at creases, so that normals
averaged over faces shade curves smoothly and keep edges crisp. Shapes are chunky on purpose: they are learnt by a tiny
diffusion model at 64x64 pixels, from every side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Rgb = tuple[float, float, float]

Number = float | int

Point = Sequence[Number] | np.ndarray

BLACK: Rgb = (0.07, 0.07, 0.08)

GLASS: Rgb = (0.14, 0.18, 0.25)

DARK: Rgb = (0.27, 0.27, 0.30)

GREY: Rgb = (0.58, 0.59, 0.62)

WHITE: Rgb = (0.97, 0.97, 0.97)

BROWN: Rgb = (0.43, 0.27, 0.15)

CREAM: Rgb = (0.93, 0.84, 0.68)

LAMP: Rgb = (1.0, 0.93, 0.55)

BEAK: Rgb = (1.0, 0.62, 0.10)

TAIL_LIGHT: Rgb = (0.55, 0.03, 0.05)


class Part(NamedTuple):
    """One closed solid of one colour; faces wind outwards."""

    vertices: Float[np.ndarray, "num_vertices 3"]
    faces: Int[np.ndarray, "num_faces 3"]
    rgb: Rgb


def lathe(
    rgb: Rgb, profile: Sequence[Point], base: Point = (0, 0, 0), axis: Point = (0, 0, 1), num_sides: int = 16
) -> Part:
    """Turn a profile of (radius, height), from radius 0 to radius 0, about an axis; a repeated point is a crease."""
    radii, heights = np.asarray(profile, dtype=float).T
    angles = np.arange(num_sides) * (2 * np.pi / num_sides)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rings = np.concatenate(
        [radii[:, None, None] * circle, np.broadcast_to(heights[:, None, None], (len(radii), num_sides, 1))], axis=-1
    )
    vertices = rings.reshape(-1, 3) @ _frame(axis) + np.asarray(base, dtype=float)
    is_step = np.hypot(np.diff(radii), np.diff(heights)) > 1e-9
    return Part(vertices, _ring_faces(radii, is_step, num_sides), rgb)


def cylinder(
    rgb: Rgb, start: Point, end: Point, radius: Number, end_radius: Number | None = None, num_sides: int = 12
) -> Part:
    """A cylinder or truncated cone from `start` to `end`."""
    axis = np.asarray(end, dtype=float) - np.asarray(start, dtype=float)
    height = float(np.linalg.norm(axis))
    top = radius if end_radius is None else end_radius
    profile = [(0, 0), (radius, 0), (radius, 0), (top, height), (top, height), (0, height)]
    return lathe(rgb, profile, start, axis, num_sides)


def ellipsoid(rgb: Rgb, center: Point, radii: Point, num_sides: int = 12, num_rings: int = 8) -> Part:
    """An ellipsoid whose axes are the world's."""
    polar = np.linspace(0, np.pi, num_rings)
    profile = np.stack([np.sin(polar), -np.cos(polar)], axis=-1)
    profile[[0, -1], 0] = 0
    unit = lathe(rgb, profile.tolist(), num_sides=num_sides)
    return unit._replace(vertices=unit.vertices * np.asarray(radii, dtype=float) + np.asarray(center, dtype=float))


def sweep(rgb: Rgb, points: Sequence[Point], radii: Sequence[float], num_sides: int = 8) -> Part:
    """A round tube with flat ends through three or more points, not on one line and nearly in one plane."""
    path = np.asarray(points, dtype=float)
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=-1, keepdims=True)
    side = np.cross(path[1] - path[0], path[2] - path[1])
    side /= np.linalg.norm(side)
    up = np.cross(tangents, side)
    angles = np.arange(num_sides) * (2 * np.pi / num_sides)
    # up x side = -tangent, so the circle runs from up to -side to wind counter-clockwise about the tangent.
    circle = np.cos(angles)[:, None] * up[:, None, :] - np.sin(angles)[:, None] * side
    rings = path[:, None, :] + np.asarray(radii, dtype=float)[:, None, None] * circle
    first, last = (np.repeat(path[[i]], num_sides, axis=0)[None] for i in (0, -1))
    stack = np.concatenate([first, rings[:1], rings, rings[-1:], last])
    is_step = np.ones(len(stack) - 1, dtype=bool)
    is_step[[1, -2]] = False
    return Part(
        stack.reshape(-1, 3), _ring_faces(np.array([0, radii[0], *radii, radii[-1], 0]), is_step, num_sides), rgb
    )


def hexahedron(rgb: Rgb, bottom: Point, top: Point, z: tuple[Number, Number]) -> Part:
    """Join two rectangles (x0, x1, y0, y1) at heights z: boxes, frusta, wedges."""
    corners = []
    for (x0, x1, y0, y1), height in ((bottom, z[0]), (top, z[1])):
        corners += [(x0, y0, height), (x1, y0, height), (x1, y1, height), (x0, y1, height)]
    quads = [(3, 2, 1, 0), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
    return _polyhedron(rgb, np.array(corners, dtype=float), quads)


def box(rgb: Rgb, center: Point, size: Point, taper: Number = 1.0) -> Part:
    """A box; its top face is scaled by `taper`."""
    (x, y, z), (dx, dy, dz) = center, np.asarray(size, dtype=float) / 2
    bottom = (x - dx, x + dx, y - dy, y + dy)
    top = (x - dx * taper, x + dx * taper, y - dy * taper, y + dy * taper)
    return hexahedron(rgb, bottom, top, (z - dz, z + dz))


def slab(rgb: Rgb, outline: Sequence[Point], y: tuple[Number, Number]) -> Part:
    """Extrude a convex outline of (x, z) points, counter-clockwise when seen from -y, from y[0] to y[1]."""
    flat = np.asarray(outline, dtype=float)
    num = len(flat)
    near = np.stack([flat[:, 0], np.full(num, y[0]), flat[:, 1]], axis=-1)
    far = near + [0, y[1] - y[0], 0]
    sides = [(i, i + num, (i + 1) % num + num, (i + 1) % num) for i in range(num)]
    polygons = [tuple(range(num)), tuple(range(2 * num - 1, num - 1, -1)), *sides]
    return _polyhedron(rgb, np.concatenate([near, far]), polygons)


def turned(part: Part, axis: str, degrees: Number, pivot: Point = (0, 0, 0)) -> Part:
    """Rotate a part about the world axis named "x", "y" or "z" through `pivot` (right-hand rule)."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    offset = part.vertices - np.asarray(pivot, dtype=float)
    vertices = offset.copy()
    vertices[:, i] = cos * offset[:, i] - sin * offset[:, j]
    vertices[:, j] = sin * offset[:, i] + cos * offset[:, j]
    return part._replace(vertices=vertices + np.asarray(pivot, dtype=float))


def both_sides(*parts: Part) -> list[Part]:
    """The parts and their mirror images in the plane y = 0."""
    mirror = np.array([1.0, -1.0, 1.0])
    return [*parts, *(part._replace(vertices=part.vertices * mirror, faces=part.faces[:, ::-1]) for part in parts)]


def _frame(axis: Point) -> Float[np.ndarray, "3 3"]:
    """Rows are a right-handed orthonormal basis whose third vector is `axis`."""
    forward = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    helper = np.array([1.0, 0, 0]) if abs(forward[0]) < 0.9 else np.array([0, 1.0, 0])
    first = np.cross(helper, forward)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(forward, first), forward])


def _ring_faces(
    radii: Float[np.ndarray, " num_rings"], is_step: np.ndarray, num_sides: int
) -> Int[np.ndarray, "num_faces 3"]:
    """Triangles between consecutive rings; a ring of radius 0 is a point, a step that is none is a crease."""
    side = np.arange(num_sides)
    following = (side + 1) % num_sides
    faces = []
    for ring in np.flatnonzero(is_step):
        low, high = ring * num_sides, (ring + 1) * num_sides
        if radii[ring] > 0:
            faces.append(np.stack([low + side, low + following, high + following], axis=-1))
        if radii[ring + 1] > 0:
            faces.append(np.stack([low + side, high + following, high + side], axis=-1))
    return np.concatenate(faces)


def _polyhedron(rgb: Rgb, corners: Float[np.ndarray, "num 3"], polygons: Sequence[Sequence[int]]) -> Part:
    vertices, faces, count = [], [], 0
    for polygon in polygons:
        vertices.append(corners[list(polygon)])
        faces += [(count, count + i, count + i + 1) for i in range(1, len(polygon) - 1)]
        count += len(polygon)
    return Part(np.concatenate(vertices), np.array(faces), rgb)


def tint(rgb: Rgb, amount: Number) -> Rgb:
    """Mix with white (amount > 0) or black (amount < 0)."""
    target = 1.0 if amount > 0 else 0.0
    return tuple(float(value + (target - value) * abs(amount)) for value in rgb)  # type: ignore[return-value]


def vary(generator: np.random.Generator, value: float, spread: float = 0.18) -> float:
    """A proportion drawn uniformly within ± `spread` of its usual value."""
    return value * float(generator.uniform(1 - spread, 1 + spread))
