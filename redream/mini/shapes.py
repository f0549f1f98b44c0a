"""The 24 shapes of the miniature world, built from closed primitives with flat colours and no textures.

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


# --- primitives -------------------------------------------------------------------------------------------------------


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


def _eyes(center: Point, radius: float, direction: Point) -> list[Part]:
    """White eyeballs with black pupils on both sides; `direction` is where the left one looks."""
    look = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    pupil = np.asarray(center) + 0.52 * radius * look
    return both_sides(
        ellipsoid(WHITE, center, [radius] * 3, 8, 7), ellipsoid(BLACK, pupil.tolist(), [0.62 * radius] * 3, 8, 5)
    )


def _wheels(xs: Sequence[float], y: float, radius: float, width: float) -> list[Part]:
    parts = []
    for x in xs:
        parts += both_sides(
            cylinder(BLACK, (x, y - width, radius), (x, y, radius), radius, num_sides=14),
            cylinder(GREY, (x, y - width / 2, radius), (x, y + 0.02, radius), 0.5 * radius, num_sides=8),
        )
    return parts


# --- vehicles ---------------------------------------------------------------------------------------------------------


def car(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    length, width = vary(generator, 2.1, 0.12), vary(generator, 1.1, 0.1)
    deck, cabin = vary(generator, 0.72, 0.1), vary(generator, 0.48, 0.15)
    radius = vary(generator, 0.26, 0.12)
    nose, half = length / 2, width / 2
    roof = (-0.30 * length, 0.10 * length, -0.40 * width, 0.40 * width)
    parts = [
        hexahedron(rgb, (-nose, nose, -half, half), (-nose, nose * 0.97, -half, half), (0.2, deck)),
        # The dark cabin makes the windscreen and the side windows; a painted pillar closes it behind.
        hexahedron(
            GLASS, (-0.40 * length, 0.24 * length, -0.46 * width, 0.46 * width), roof, (deck - 0.02, deck + cabin)
        ),
        hexahedron(
            rgb,
            (-0.45 * length, -0.27 * length, -0.47 * width, 0.47 * width),
            (-0.34 * length, -0.22 * length, -0.42 * width, 0.42 * width),
            (deck - 0.02, deck + cabin),
        ),
        box(rgb, (-0.11 * length, 0, deck + cabin + 0.03), (0.46 * length, 0.86 * width, 0.1)),
        box(DARK, (nose, 0, 0.42), (0.06, 0.4 * width, 0.16)),
        box(WHITE, (-nose, 0, 0.46), (0.06, 0.36 * width, 0.15)),
        *both_sides(
            cylinder(LAMP, (nose - 0.05, 0.34 * width, 0.52), (nose + 0.05, 0.34 * width, 0.52), 0.15),
            box(TAIL_LIGHT, (-nose, 0.40 * width, 0.56), (0.08, 0.16 * width, 0.18)),
        ),
        box(DARK, (0, 0, 0.27), (length * 1.03, width * 0.9, 0.12)),
    ]
    return parts + _wheels((-0.31 * length, 0.31 * length), half + 0.03, radius, 0.22)


def bus(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    length, width, height = vary(generator, 2.5, 0.1), vary(generator, 1.0, 0.1), vary(generator, 1.25, 0.1)
    nose, half, floor = length / 2, width / 2, 0.22
    top = floor + height
    num_windows = int(generator.integers(4, 6))
    parts = [
        box(rgb, (0, 0, floor + height / 2), (length, width, height)),
        box(tint(rgb, 0.6), (0, 0, top + 0.02), (length * 0.94, width * 0.86, 0.06)),
        box(GLASS, (nose, 0, floor + 0.60 * height), (0.05, 0.88 * width, 0.42 * height)),
        box(WHITE, (nose, 0, top - 0.09), (0.06, 0.6 * width, 0.12)),
        box(DARK, (nose, 0, floor + 0.05), (0.08, width, 0.12)),
        box(DARK, (-nose, 0, floor + 0.20), (0.06, 0.62 * width, 0.22)),
        box(GLASS, (-nose, 0, floor + 0.78 * height), (0.05, 0.5 * width, 0.2 * height)),
        *both_sides(
            cylinder(LAMP, (nose, 0.33 * width, floor + 0.24), (nose + 0.05, 0.33 * width, floor + 0.24), 0.12),
            box(TAIL_LIGHT, (-nose, 0.42 * width, floor + 0.42 * height), (0.06, 0.1 * width, 0.24)),
        ),
    ]
    pitch = 0.92 * length / num_windows
    for i in range(num_windows):
        x = -0.46 * length + pitch * (i + 0.5)
        parts += both_sides(box(GLASS, (x, half, floor + 0.64 * height), (0.76 * pitch, 0.05, 0.36 * height)))
    return parts + _wheels((-0.30 * length, 0.30 * length), half + 0.03, vary(generator, 0.27, 0.1), 0.2)


def truck(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    cab, cargo = vary(generator, 0.72, 0.1), vary(generator, 1.5, 0.12)
    width, height = vary(generator, 1.05, 0.08), vary(generator, 1.25, 0.12)
    nose, half, floor = (cab + cargo + 0.14) / 2, width / 2, 0.36
    cab_top = floor + vary(generator, 0.80, 0.1)
    cargo_x = (-nose, -nose + cargo)
    cab_color = tint(rgb, 0.2)
    middle = (cargo_x[0] + cargo_x[1]) / 2
    parts = [
        box(rgb, (middle, 0, floor + height / 2), (cargo, width, height)),
        box(DARK, (0, 0, floor - 0.03), (2 * nose - 0.1, 0.7 * width, 0.16)),
        hexahedron(
            cab_color,
            (nose - cab, nose, -0.94 * half, 0.94 * half),
            (nose - cab, nose - 0.18, -0.9 * half, 0.9 * half),
            (floor - 0.1, cab_top),
        ),
        hexahedron(
            GLASS,
            (nose - 0.3, nose - 0.045, -0.8 * half, 0.8 * half),
            (nose - 0.4, nose - 0.14, -0.76 * half, 0.76 * half),
            (floor + 0.36, cab_top - 0.08),
        ),
        box(GLASS, (nose - 0.55 * cab, 0, floor + 0.53), (0.4 * cab, 0.96 * width, 0.26)),
        box(DARK, (nose, 0, floor + 0.08), (0.06, 0.5 * width, 0.16)),
        # Two doors with a dark gap and bolts close the cargo box behind.
        *both_sides(
            box(tint(rgb, -0.3), (-nose, 0.25 * width, floor + 0.5 * height), (0.04, 0.42 * width, 0.88 * height)),
            box(GREY, (-nose - 0.03, 0.08 * width, floor + 0.45 * height), (0.05, 0.06, 0.5 * height)),
            cylinder(LAMP, (nose - 0.02, 0.34 * width, floor + 0.1), (nose + 0.06, 0.34 * width, floor + 0.1), 0.12),
            box(TAIL_LIGHT, (-nose, 0.38 * width, floor - 0.06), (0.05, 0.16, 0.12)),
        ),
    ]
    return parts + _wheels((-nose + 0.32, -nose + 0.32 + 0.62, nose - 0.36), half + 0.02, 0.29, 0.22)


def airplane(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    length, span = vary(generator, 1.05, 0.1), vary(generator, 1.1, 0.1)
    girth, chord = vary(generator, 0.38, 0.1), vary(generator, 0.5, 0.12)
    wing = tint(rgb, -0.2)
    wing_z = -0.08
    parts = [
        lathe(
            rgb,
            [
                (0, -length),
                (0.22 * girth, -length),
                (0.75 * girth, -0.35 * length),
                (girth, 0.2 * length),
                (0.95 * girth, 0.6 * length),
                (0.55 * girth, 0.92 * length),
                (0, length),
            ],
            axis=(1, 0, 0),
        ),
        ellipsoid(GLASS, (0.52 * length, 0, 0.62 * girth), (0.28, 0.72 * girth, 0.55 * girth), 10, 7),
        slab(
            rgb, [(-length, 0), (-0.55 * length, 0.05), (-0.86 * length, 0.68), (-1.08 * length, 0.68)], (-0.08, 0.08)
        ),
        hexahedron(
            wing,
            (-1.05 * length, -0.74 * length, -0.5, 0.5),
            (-1.05 * length, -0.78 * length, -0.48, 0.48),
            (0.04, 0.13),
        ),
        *both_sides(
            hexahedron(
                wing,
                (0.18 - chord, 0.18 + chord / 2, 0, span),
                (0.18 - chord, 0.12 + chord / 2, 0, span),
                (wing_z - 0.05, wing_z + 0.06),
            )
        ),
    ]
    if generator.random() < 0.5:
        parts += both_sides(
            cylinder(GREY, (-0.12, 0.5 * span, wing_z - 0.16), (0.42, 0.5 * span, wing_z - 0.16), 0.15),
            cylinder(BLACK, (0.40, 0.5 * span, wing_z - 0.16), (0.44, 0.5 * span, wing_z - 0.16), 0.11),
        )
    for i in range(3):
        parts += both_sides(ellipsoid(GLASS, (-0.4 + 0.24 * i, 0.86 * girth, 0.1), (0.08, 0.08, 0.08), 8, 5))
    spin = float(generator.uniform(-30, 30))
    for angle in (spin, spin + 90):
        parts.append(turned(box(DARK, (length + 0.04, 0, 0), (0.06, 0.13, 0.76)), "x", angle))
    return [*parts, ellipsoid(WHITE, (length + 0.06, 0, 0), (0.12, 0.12, 0.12), 8, 7)]


def boat(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    length, width = vary(generator, 1.75, 0.1), vary(generator, 1.0, 0.1)
    depth, mast = vary(generator, 0.52, 0.12), vary(generator, 1.3, 0.1)
    stern, half = -0.45 * length, width / 2
    bow = 0.55 * length
    hull = [
        hexahedron(
            rgb,
            (stern, 0.22 * length, -0.62 * half, 0.62 * half),
            (stern - 0.08, 0.2 * length, -half, half),
            (0, depth),
        ),
        hexahedron(
            rgb,
            (0.21 * length, 0.40 * length, -0.62 * half, 0.62 * half),
            (0.19 * length, 0.40 * length, -half, half),
            (0, depth),
        ),
    ]
    hull[1] = _pinch_front(hull[1], bow, 0.16)
    sail_top, sail_low = depth + mast, depth + 0.3
    sail = slab(tint(rgb, 0.25), [(-0.95, sail_low), (-0.04, sail_low), (-0.04, sail_top)], (-0.04, 0.04))
    jib = slab(WHITE, [(0.05, sail_low), (0.8, sail_low), (0.05, sail_top - 0.2)], (-0.04, 0.04))
    swing = float(generator.choice([-1.0, 1.0])) * float(generator.uniform(40, 55))
    return [
        *hull,
        box(BROWN, (-0.12 * length, 0, depth), (0.62 * length, 0.8 * width, 0.08)),
        box(WHITE, (0.20 * length, 0, depth + 0.12), (0.32, 0.6 * width, 0.28)),
        box(GLASS, (0.20 * length + 0.16, 0, depth + 0.15), (0.04, 0.46 * width, 0.13)),
        cylinder(BROWN, (0, 0, depth), (0, 0, sail_top + 0.08), 0.055, num_sides=8),
        turned(sail, "z", swing),
        turned(jib, "z", swing),
        box(BROWN, (stern - 0.1, 0, 0.5 * depth), (0.08, 0.14, 1.1 * depth)),
        box(BLACK, (stern - 0.1, 0, depth + 0.05), (0.16, 0.3 * width, 0.22)),
    ]


def _pinch_front(part: Part, bow: float, rise: float) -> Part:
    """Draw the foremost corners of a hull section together into a raised bow."""
    vertices = part.vertices.copy()
    front = vertices[:, 0] > vertices[:, 0].max() - 1e-6
    upper = front & (vertices[:, 2] > vertices[:, 2].mean())
    vertices[front, 1] *= 0.04
    vertices[upper, 0] = bow
    vertices[upper, 2] += rise
    return part._replace(vertices=vertices)


# --- furniture and things ---------------------------------------------------------------------------------------------


def chair(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    width, depth = vary(generator, 1.0, 0.1), vary(generator, 0.95, 0.1)
    seat, rest = vary(generator, 0.72, 0.12), vary(generator, 0.98, 0.15)
    leg = vary(generator, 0.14, 0.15)
    x, y = depth / 2, width / 2
    parts = [
        box(rgb, (0, 0, seat), (depth, width, 0.16)),
        box(tint(rgb, 0.55), (0.05, 0, seat + 0.11), (0.8 * depth, 0.82 * width, 0.1)),
    ]
    for sign in (-1, 1):
        parts += both_sides(box(BROWN, (sign * (x - leg / 2), y - leg / 2, seat / 2), (leg, leg, seat)))
    if generator.random() < 0.5:
        parts += [
            box(rgb, (-x + 0.07, 0, seat + rest / 2), (0.14, width, rest)),
            box(tint(rgb, 0.55), (-x + 0.15, 0, seat + 0.55 * rest), (0.08, 0.7 * width, 0.6 * rest)),
            box(BROWN, (-x - 0.02, 0, seat + 0.2 * rest), (0.08, 0.9 * width, 0.1)),
            box(BROWN, (-x - 0.02, 0, seat + 0.8 * rest), (0.08, 0.9 * width, 0.1)),
        ]
    else:
        parts += both_sides(box(rgb, (-x + 0.07, y - 0.08, seat + rest / 2), (0.14, 0.16, rest)))
        for height in (0.42, 0.85):
            parts.append(box(rgb, (-x + 0.07, 0, seat + height * rest), (0.12, width, 0.28 * rest)))
    return parts


def sofa(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    width, depth = vary(generator, 2.1, 0.12), vary(generator, 0.9, 0.1)
    seat, rest, arm = vary(generator, 0.42, 0.1), vary(generator, 0.95, 0.1), vary(generator, 0.26, 0.15)
    x, y = depth / 2, width / 2
    cushion = tint(rgb, 0.55)
    num_cushions = int(generator.integers(2, 4))
    pitch = (width - 2 * arm) / num_cushions
    parts = [
        box(rgb, (0, 0, 0.14 + seat / 2), (depth, width, seat)),
        box(tint(rgb, -0.12), (-x + 0.12, 0, 0.14 + rest / 2), (0.26, width, rest)),
        *both_sides(
            box(rgb, (0.03, y - arm / 2, 0.14 + 0.36), (depth + 0.04, arm, 0.72)),
            box(BROWN, (x - 0.12, y - 0.14, 0.08), (0.14, 0.16, 0.16)),
            box(BROWN, (-x + 0.12, y - 0.14, 0.08), (0.14, 0.16, 0.16)),
        ),
    ]
    for i in range(num_cushions):
        center = -y + arm + pitch * (i + 0.5)
        parts += [
            box(cushion, (0.12, center, 0.14 + seat + 0.06), (depth - 0.26, 0.92 * pitch, 0.16)),
            turned(
                box(cushion, (-x + 0.32, center, seat + 0.44), (0.16, 0.9 * pitch, rest - seat - 0.04)),
                "y",
                -8,
                (-x + 0.32, center, seat + 0.44),
            ),
        ]
    return parts


def house(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    depth, width = vary(generator, 1.25, 0.12), vary(generator, 1.3, 0.12)
    wall, peak = vary(generator, 0.95, 0.1), vary(generator, 0.62, 0.15)
    x, y = depth / 2, width / 2
    roof_color = BROWN if generator.random() < 0.5 else DARK
    gable = turned(slab(rgb, [(-y, wall), (y, wall), (0, wall + peak)], (-x, x)), "z", 90)
    rise = float(np.degrees(np.arctan2(peak, y)))
    slope = float(np.hypot(peak, y)) + 0.2
    panel = turned(box(roof_color, (0, 0, 0), (depth + 0.22, slope, 0.1)), "x", -rise)
    offset = slope / 2 - 0.04
    shift = np.array([0, offset * np.cos(np.radians(rise)), wall + peak + 0.05 - offset * np.sin(np.radians(rise))])
    side = 1 if generator.random() < 0.5 else -1
    window = 0.17 * width
    return [
        box(rgb, (0, 0, wall / 2), (depth, width, wall)),
        gable,
        *both_sides(panel._replace(vertices=panel.vertices + shift)),
        box(TAIL_LIGHT, (-0.2 * depth, side * 0.5 * y, wall + 0.8 * peak), (0.2, 0.2, 0.8 * peak)),
        box(BROWN, (x, 0, 0.31), (0.06, 0.3 * width, 0.62)),
        ellipsoid(LAMP, (x + 0.05, 0.09 * width, 0.3), (0.05, 0.05, 0.05), 6, 5),
        box(GREY, (x + 0.1, 0, 0.04), (0.2, 0.4 * width, 0.08)),
        cylinder(WHITE, (x - 0.02, 0, wall + 0.3 * peak), (x + 0.04, 0, wall + 0.3 * peak), 0.15),
        cylinder(GLASS, (x - 0.02, 0, wall + 0.3 * peak), (x + 0.06, 0, wall + 0.3 * peak), 0.09),
        *both_sides(
            box(WHITE, (x, 0.33 * width, 0.56 * wall), (0.06, window * 1.25, 0.36)),
            box(GLASS, (x + 0.02, 0.33 * width, 0.56 * wall), (0.06, window * 0.8, 0.26)),
            box(WHITE, (0, y, 0.56 * wall), (0.42, 0.06, 0.4)),
            box(GLASS, (0, y + 0.02, 0.56 * wall), (0.32, 0.06, 0.3)),
        ),
    ]


def table(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    width, height = vary(generator, 1.6, 0.1), vary(generator, 0.85, 0.18)
    leg, top = vary(generator, 0.2, 0.2), vary(generator, 0.18, 0.2)
    inset = width / 2 - leg * 0.7
    leg_color = tint(rgb, -0.3) if generator.random() < 0.5 else BROWN
    parts = [
        box(rgb, (0, 0, height), (width, width, top)),
        box(tint(rgb, -0.3), (0, 0, height - top / 2 - 0.06), (0.84 * width, 0.84 * width, 0.14)),
    ]
    for x in (-inset, inset):
        parts += both_sides(box(leg_color, (x, inset, height / 2), (leg, leg, height)))
    return parts


def teapot(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    girth, height = vary(generator, 0.82, 0.1), vary(generator, 1.25, 0.1)
    reach = girth + vary(generator, 0.5, 0.12)
    tall = vary(generator, 0.9, 0.08) * height
    profile = [(0, 0), (0.6, 0), (0.6, 0), (0.66, 0.06), (0.96, 0.32), (1.0, 0.5), (0.86, 0.76), (0.5, 0.94), (0, 0.98)]
    trim = tint(rgb, -0.3)
    spout = np.array(
        [
            (0.72 * girth, 0, 0.30 * height),
            (girth + 0.12, 0, 0.36 * height),
            (girth + 0.26, 0, 0.62 * height),
            (reach, 0, tall),
        ]
    )
    handle_angles = np.radians(np.linspace(-78, 78, 7))
    handle = np.stack(
        [
            -0.76 * girth - 0.56 * np.cos(handle_angles),
            np.zeros(7),
            0.52 * height + 0.36 * height * np.sin(handle_angles),
        ],
        axis=-1,
    )
    tip = spout[-1] - spout[-2]
    tip /= np.linalg.norm(tip)
    return [
        lathe(rgb, [(girth * r, height * z) for r, z in profile], num_sides=20),
        lathe(
            trim, [(0, 0), (0.56 * girth, 0), (0.56 * girth, 0), (0.45 * girth, 0.12), (0, 0.17)], (0, 0, 0.9 * height)
        ),
        ellipsoid(WHITE, (0, 0, 0.9 * height + 0.26), (0.16, 0.16, 0.16), 10, 7),
        sweep(rgb, spout.tolist(), [0.28, 0.24, 0.19, 0.18], 10),
        cylinder(BLACK, (spout[-1] - 0.02 * tip).tolist(), (spout[-1] + 0.02 * tip).tolist(), 0.13, num_sides=10),
        sweep(trim, handle[::-1].tolist(), [0.1] * 7),
    ]


def clock(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    radius, half = vary(generator, 0.8, 0.08), vary(generator, 0.27, 0.2)
    bell = vary(generator, 0.27, 0.15)
    front = half + 0.03
    hour = float(generator.uniform(0, 360))
    minute = hour + float(generator.choice([90.0, 120.0, -120.0, -90.0]))
    parts = [
        cylinder(rgb, (-half, 0, 0), (half, 0, 0), radius, num_sides=24),
        cylinder(WHITE, (0, 0, 0), (front, 0, 0), 0.78 * radius, num_sides=24),
        turned(box(BLACK, (front, 0, 0.2 * radius), (0.05, 0.12, 0.44 * radius)), "x", hour),
        turned(box(BLACK, (front, 0, 0.3 * radius), (0.06, 0.09, 0.64 * radius)), "x", minute),
        cylinder(BLACK, (front, 0, 0), (front + 0.05, 0, 0), 0.09, num_sides=8),
        # The wound key and the battery lid are all there is behind.
        cylinder(DARK, (-half - 0.04, 0, 0), (0, 0, 0), 0.5 * radius, num_sides=20),
        box(GREY, (-half - 0.12, 0, 0), (0.2, 0.5, 0.2)),
        box(DARK, (0, 0, radius + 0.05), (0.16, 0.16, 0.2)),
    ]
    for i in range(12):
        long = i % 3 == 0
        tick = box(BLACK, (front, 0, 0.66 * radius), (0.03, 0.08 if long else 0.05, (0.2 if long else 0.1) * radius))
        parts.append(turned(tick, "x", 30 * i))
    axis = (0, 0.62, 0.78)
    dome = [(0, 0), (bell, 0), (bell, 0), (0.8 * bell, 0.5 * bell), (0, 0.75 * bell)]
    return parts + both_sides(
        lathe(rgb, dome, (0, 0.58 * radius, 0.76 * radius), axis, 12),
        cylinder(DARK, (0, 0.45 * radius, -0.7 * radius), (0, 0.72 * radius, -1.2 * radius), 0.12, num_sides=8),
    )


def television(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    width, height = vary(generator, 1.6, 0.1), vary(generator, 1.2, 0.1)
    depth = vary(generator, 0.5, 0.15)
    x = depth / 2
    screen_width = 0.66 * width
    middle = -0.11 * width
    parts = [
        box(rgb, (0, 0, 0), (depth, width, height)),
        # The tube tapers behind the case, towards a dark socket.
        turned(
            box(tint(rgb, -0.25), (-x - 0.19, 0, 0), (0.78 * height, 0.78 * width, 0.42), 0.7),
            "y",
            -90,
            (-x - 0.19, 0, 0),
        ),
        box(GLASS, (x + 0.01, middle, 0), (0.06, screen_width, 0.76 * height)),
        turned(
            box((0.45, 0.62, 0.75), (x + 0.04, middle + 0.1, 0.06), (0.02, 0.12, 0.5 * height)), "x", 35, (x, middle, 0)
        ),
        box(DARK, (x + 0.01, 0.36 * width, -0.22 * height), (0.04, 0.16 * width, 0.3 * height)),
    ]
    parts.append(box(BLACK, (-x - 0.4, 0, 0), (0.06, 0.34 * width, 0.3 * height)))
    for z in (0.1, 0.32):
        parts.append(
            cylinder(WHITE, (x, 0.36 * width, z * height), (x + 0.09, 0.36 * width, z * height), 0.1, num_sides=10)
        )
    parts += both_sides(
        box(BROWN, (0.05, 0.34 * width, -height / 2 - 0.1), (0.24, 0.18, 0.22)),
        cylinder(DARK, (0, 0.02, height / 2), (-0.05, vary(generator, 0.42), height / 2 + 0.48), 0.035, num_sides=6),
    )
    return parts


def vase(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    height, girth = vary(generator, 1.6, 0.12), vary(generator, 0.62, 0.15)
    neck, lip = vary(generator, 0.28, 0.2), vary(generator, 0.42, 0.15)
    belly = float(generator.uniform(0.3, 0.5))
    wall = [
        (0, 0),
        (0.55 * girth, 0),
        (0.55 * girth, 0),
        (0.86 * girth, 0.5 * belly * height),
        (girth, belly * height),
        (0.84 * girth, (belly + 0.17) * height),
        (neck, 0.8 * height),
        (neck, 0.86 * height),
        (lip, height),
        (lip, height),
        (0, height),
    ]
    band = belly * height
    return [
        lathe(rgb, wall, num_sides=20),
        cylinder(BLACK, (0, 0, 0.97 * height), (0, 0, height + 0.015), 0.78 * lip, num_sides=16),
        lathe(
            tint(rgb, 0.55),
            [
                (0, band - 0.12),
                (0.96 * girth, band - 0.12),
                (1.035 * girth, band),
                (0.96 * girth, band + 0.12),
                (0, band + 0.12),
            ],
            num_sides=20,
        ),
    ]


def tree(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    trunk, radius = vary(generator, 0.75, 0.18), vary(generator, 0.17, 0.15)
    crown = vary(generator, 0.68, 0.12)
    parts = [cylinder(BROWN, (0, 0, 0), (0, 0, trunk + 0.4), 1.25 * radius, 0.9 * radius)]
    if generator.random() < 0.5:
        for i, shrink in enumerate((1.0, 0.8, 0.58)):
            low = trunk + 0.36 * i
            shade = tint(rgb, -0.12) if i == 1 else rgb
            parts.append(cylinder(shade, (0, 0, low), (0, 0, low + 0.62), crown * shrink, 0.02, num_sides=16))
        return parts
    height = vary(generator, 0.72, 0.12)
    parts.append(ellipsoid(rgb, (0, 0, trunk + 0.8 * height), (crown, crown, height), 16, 11))
    for i in range(5):
        angle = 2 * np.pi * i / 5
        center = (0.55 * crown * np.cos(angle), 0.55 * crown * np.sin(angle), trunk + 0.6 * height)
        parts.append(ellipsoid(tint(rgb, -0.12), center, [0.62 * crown] * 3, 10, 7))
    return parts


def mushroom(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    cap, dome = vary(generator, 0.85, 0.12), vary(generator, 0.62, 0.15)
    stem, radius = vary(generator, 0.75, 0.15), vary(generator, 0.27, 0.18)
    polar = np.radians(np.linspace(0, 90, 6))
    profile = [(0, 0.02), (0.96 * cap, 0), (cap, 0.06)]
    profile += [(float(cap * np.cos(a)), float(0.06 + dome * np.sin(a))) for a in polar[1:-1]] + [(0, 0.06 + dome)]
    parts = [
        lathe(CREAM, [(0, 0), (1.3 * radius, 0), (1.05 * radius, 0.3 * stem), (0.9 * radius, stem), (0, stem + 0.1)]),
        lathe(rgb, profile, (0, 0, stem), num_sides=20),
    ]
    num_spots = int(generator.integers(5, 8))
    for ring, (count, angle) in enumerate(((num_spots, 24.0), (num_spots - 2, 58.0))):
        for i in range(count):
            turn = 2 * np.pi * (i + 0.5 * ring) / count
            out, up = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            center = (cap * out * np.cos(turn), cap * out * np.sin(turn), stem + 0.06 + dome * up)
            parts.append(ellipsoid(WHITE, center, (0.14, 0.14, 0.13), 8, 6))
    return [*parts, ellipsoid(WHITE, (0, 0, stem + 0.06 + dome), (0.17, 0.17, 0.06), 8, 6)]


# --- creatures --------------------------------------------------------------------------------------------------------


def robot(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    width, height = vary(generator, 0.9, 0.12), vary(generator, 0.8, 0.12)
    head, legs = vary(generator, 0.62, 0.12), vary(generator, 0.42, 0.15)
    hip = legs
    neck = hip + height
    face = neck + 0.08 + head / 2
    x = 0.3
    head_width = vary(generator, 0.86, 0.1)
    parts = [
        box(rgb, (0, 0, hip + height / 2), (2 * x, width, height)),
        cylinder(GREY, (0, 0, neck - 0.02), (0, 0, neck + 0.12), 0.16),
        box(rgb, (0, 0, face), (0.62, head_width, head)),
        box(WHITE, (x, 0, hip + 0.55 * height), (0.05, 0.62 * width, 0.46 * height)),
        box(BLACK, (0.31, 0, face - 0.3 * head), (0.05, 0.5 * head_width, 0.1)),
        # A dark pack with two tubes marks the other side.
        box(DARK, (-x - 0.1, 0, hip + 0.55 * height), (0.22, 0.66 * width, 0.66 * height)),
        box(GREY, (-0.32, 0, face), (0.04, 0.5 * head_width, 0.12)),
        *_eyes((0.28, 0.24 * head_width, face + 0.1 * head), 0.17, (1, 0, 0)),
        *both_sides(
            cylinder(GREY, (0, width / 2 + 0.13, neck - 0.1), (0.1, width / 2 + 0.2, hip + 0.1), 0.11),
            ellipsoid(rgb, (0.1, width / 2 + 0.2, hip + 0.04), (0.17, 0.15, 0.17), 10, 7),
            ellipsoid(GREY, (0, width / 2 + 0.06, neck - 0.12), (0.16, 0.16, 0.16), 10, 7),
            cylinder(GREY, (0, 0.25 * width, 0.1), (0, 0.25 * width, hip + 0.02), 0.13),
            box(rgb, (0.08, 0.25 * width, 0.09), (0.46, 0.32, 0.18)),
            cylinder(GREY, (0, head_width / 2 - 0.02, face), (0, head_width / 2 + 0.09, face), 0.13, num_sides=10),
        ),
    ]
    for i, color in enumerate((TAIL_LIGHT, LAMP, BLACK)):
        y = 0.17 * width * (i - 1)
        parts.append(
            cylinder(color, (x, y, hip + 0.62 * height), (x + 0.05, y, hip + 0.62 * height), 0.06, num_sides=8)
        )
    if generator.random() < 0.6:
        top = face + head / 2
        parts += [
            cylinder(GREY, (0, 0, top), (0, 0, top + 0.2), 0.04, num_sides=6),
            ellipsoid(LAMP, (0, 0, top + 0.24), (0.1, 0.1, 0.1), 8, 7),
        ]
    return parts


def _legs(rgb: Rgb, xs: Sequence[float], y: float, height: float, radius: float, foot: Rgb) -> list[Part]:
    parts = []
    for x in xs:
        parts += both_sides(
            cylinder(rgb, (x, y, 0.05), (x, y, height), radius, 1.1 * radius, num_sides=8),
            cylinder(foot, (x + 0.02, y, 0), (x + 0.02, y, 0.1), 1.12 * radius, num_sides=8),
        )
    return parts


def dog(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    body, girth = vary(generator, 0.72, 0.1), vary(generator, 0.36, 0.1)
    legs, head = vary(generator, 0.42, 0.18), vary(generator, 0.42, 0.1)
    back = legs + 0.85 * girth
    face_x, face_z = 0.72 * body + 0.12, back + 0.52
    snout = vary(generator, 0.36, 0.15)
    dark = tint(rgb, -0.45)
    return [
        ellipsoid(rgb, (0, 0, back), (body, girth, girth)),
        cylinder(rgb, (0.5 * body, 0, back + 0.05), (face_x - 0.05, 0, face_z - 0.1), 0.26, 0.24),
        ellipsoid(rgb, (face_x, 0, face_z), (head, 0.95 * head, 0.92 * head)),
        ellipsoid(tint(rgb, 0.55), (face_x + head * 0.75, 0, face_z - 0.14), (snout, 0.24, 0.19), 12, 8),
        ellipsoid(BLACK, (face_x + head * 0.75 + 0.88 * snout, 0, face_z - 0.05), (0.11, 0.14, 0.1), 10, 7),
        *_eyes((face_x + 0.72 * head, 0.45 * head, face_z + 0.3 * head), 0.13, (1, 0.25, 0.1)),
        *both_sides(
            turned(
                ellipsoid(dark, (face_x - 0.1, head + 0.02, face_z - 0.12), (0.2, 0.1, 0.4), 10, 8),
                "x",
                12,
                (face_x, head, face_z + 0.2),
            )
        ),
        sweep(
            dark,
            [(-0.85 * body, 0, back + 0.1), (-1.1 * body, 0, back + 0.3), (-1.2 * body, 0, back + 0.66)],
            [0.13, 0.12, 0.08],
        ),
        *_legs(rgb, (-0.58 * body, 0.52 * body), 0.62 * girth, back, 0.15, dark),
    ]


def elephant(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    body, girth = vary(generator, 0.78, 0.08), vary(generator, 0.58, 0.08)
    legs, head = vary(generator, 0.48, 0.12), vary(generator, 0.46, 0.08)
    back = legs + 0.8 * girth
    face_x, face_z = 0.78 * body + 0.16, back + 0.3
    ear = vary(generator, 0.46, 0.12)
    tip = face_x + head
    trunk = [
        (face_x + 0.25, 0, face_z - 0.05),
        (tip + 0.12, 0, face_z - 0.32),
        (tip + 0.22, 0, face_z - 0.68),
        (tip + 0.34, 0, face_z - 0.92),
        (tip + 0.56, 0, face_z - 0.92),
    ]
    return [
        ellipsoid(rgb, (0, 0, back), (body, girth, girth)),
        ellipsoid(rgb, (face_x, 0, face_z), (head, head, 1.05 * head)),
        sweep(rgb, trunk, [0.22, 0.2, 0.16, 0.14, 0.13], 10),
        *_eyes((face_x + 0.72 * head, 0.48 * head, face_z + 0.35 * head), 0.12, (1, 0.4, 0.1)),
        *both_sides(
            turned(
                ellipsoid(
                    tint(rgb, -0.2), (face_x - 0.12, head + 0.72 * ear, face_z + 0.08), (0.09, ear, 1.15 * ear), 10, 8
                ),
                "z",
                18,
                (face_x - 0.12, head, face_z),
            ),
            turned(
                ellipsoid(
                    tint(rgb, 0.5),
                    (face_x - 0.05, head + 0.72 * ear, face_z + 0.08),
                    (0.06, 0.7 * ear, 0.82 * ear),
                    8,
                    7,
                ),
                "z",
                18,
                (face_x - 0.12, head, face_z),
            ),
            sweep(
                WHITE,
                [
                    (face_x + 0.7 * head, 0.28, face_z - 0.3),
                    (tip + 0.16, 0.32, face_z - 0.48),
                    (tip + 0.34, 0.32, face_z - 0.42),
                ],
                [0.1, 0.085, 0.04],
                6,
            ),
        ),
        sweep(
            tint(rgb, -0.3),
            [(-0.92 * body, 0, back + 0.2), (-1.12 * body, 0, back), (-1.16 * body, 0, back - 0.42)],
            [0.07, 0.06, 0.06],
        ),
        ellipsoid(BLACK, (-1.16 * body, 0, back - 0.48), (0.1, 0.1, 0.14), 8, 6),
        *_legs(rgb, (-0.52 * body, 0.5 * body), 0.56 * girth, back, 0.23, GREY),
    ]


def duck(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    body, girth = vary(generator, 0.72, 0.1), vary(generator, 0.5, 0.1)
    head, neck = vary(generator, 0.38, 0.1), vary(generator, 0.62, 0.15)
    face_x, face_z = 0.55 * body, 0.5 + neck
    bill = vary(generator, 0.3, 0.15)
    wing = tint(rgb, -0.22)
    return [
        ellipsoid(rgb, (0, 0, 0.48), (body, girth, 0.45)),
        cylinder(rgb, (0.5 * body, 0, 0.5), (face_x, 0, face_z), 0.3, 0.24),
        ellipsoid(rgb, (face_x, 0, face_z), (head, 0.95 * head, head)),
        ellipsoid(BEAK, (face_x + head + 0.3 * bill, 0, face_z - 0.08), (bill, 0.25, 0.1), 12, 7),
        turned(
            cylinder(rgb, (-0.5 * body, 0, 0.5), (-1.35 * body, 0, 0.62), 0.34, 0.03), "y", 14, (-0.6 * body, 0, 0.5)
        ),
        *_eyes((face_x + 0.62 * head, 0.56 * head, face_z + 0.28 * head), 0.13, (1, 0.6, 0.1)),
        *both_sides(
            turned(
                ellipsoid(wing, (-0.1, 0.95 * girth, 0.58), (0.62 * body, 0.13, 0.27), 12, 7), "y", 12, (-0.1, 0, 0.58)
            ),
            cylinder(BEAK, (0.0, 0.22, -0.02), (0.0, 0.22, 0.2), 0.08, num_sides=8),
            box(BEAK, (0.1, 0.22, -0.04), (0.42, 0.28, 0.09)),
        ),
    ]


def fish(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    body, girth, height = vary(generator, 0.8, 0.08), vary(generator, 0.48, 0.1), vary(generator, 0.64, 0.1)
    fin, tail = tint(rgb, -0.3), vary(generator, 0.42, 0.15)
    base = -0.8 * body
    return [
        ellipsoid(rgb, (0, 0, 0), (body, girth, height), 16, 11),
        ellipsoid(tint(rgb, 0.65), (0.16 * body, 0, -0.24 * height), (0.8 * body, 0.9 * girth, 0.78 * height)),
        slab(fin, [(base - tail, 0.6), (base + 0.16, -0.1), (base + 0.16, 0.1)], (-0.09, 0.09)),
        slab(fin, [(base - tail, -0.6), (base + 0.16, -0.1), (base + 0.16, 0.1)], (-0.09, 0.09)),
        slab(
            fin, [(-0.55 * body, 0.7 * height), (0.4 * body, 0.8 * height), (-0.4 * body, 1.4 * height)], (-0.09, 0.09)
        ),
        ellipsoid(BLACK, (0.95 * body, 0, -0.14 * height), (0.06, 0.2, 0.09), 10, 6),
        *_eyes((0.56 * body, 0.7 * girth, 0.24 * height), 0.21, (0.6, 1, 0.1)),
        *both_sides(
            turned(
                turned(
                    box(fin, (-0.05, girth + 0.16, -0.12), (0.34, 0.42, 0.1), 0.9), "x", -28, (0, 0.85 * girth, -0.12)
                ),
                "z",
                22,
                (0, 0.85 * girth, 0),
            )
        ),
    ]


def owl(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    girth, height = vary(generator, 0.58, 0.1), vary(generator, 0.82, 0.1)
    head = vary(generator, 0.55, 0.08)
    middle = 0.1 + height
    face = middle + 0.72 * height
    dark = tint(rgb, -0.3)
    eye = vary(generator, 0.25, 0.1)
    return [
        ellipsoid(rgb, (0, 0, middle), (0.92 * girth, girth, height)),
        ellipsoid(CREAM, (0.22 * girth, 0, middle - 0.18), (0.78 * girth, 0.72 * girth, 0.7 * height)),
        ellipsoid(rgb, (0, 0, face), (0.9 * head, 1.12 * head, 0.9 * head)),
        *_eyes((0.68 * head, 0.46 * head, face + 0.06), eye, (1, 0.08, 0)),
        lathe(BEAK, [(0, 0), (0.12, 0), (0.12, 0), (0, 0.3)], (0.86 * head, 0, face - 0.04), (0.55, 0, -0.85), 8),
        *both_sides(
            lathe(dark, [(0, 0), (0.2, 0), (0.2, 0), (0, 0.42)], (0, 0.66 * head, face + 0.5 * head), (0, 0.4, 0.9), 8),
            turned(
                ellipsoid(dark, (-0.12, 1.0 * girth, middle - 0.05), (0.38, 0.16, 0.72 * height), 10, 8),
                "x",
                8,
                (0, girth, middle + 0.4),
            ),
            ellipsoid(BEAK, (0.36, 0.24, 0.1), (0.24, 0.16, 0.1), 8, 6),
        ),
        turned(
            box(dark, (-0.72 * girth, 0, middle - 0.62 * height), (0.14, 0.62, 0.8)),
            "y",
            22,
            (-0.6 * girth, 0, middle - 0.2),
        ),
    ]


def penguin(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    girth, height = vary(generator, 0.5, 0.1), vary(generator, 0.78, 0.1)
    head = vary(generator, 0.42, 0.08)
    middle = 0.08 + height
    face = middle + 0.92 * height
    dark = tint(rgb, -0.2)
    return [
        ellipsoid(rgb, (0, 0, middle), (0.9 * girth, girth, height)),
        ellipsoid(WHITE, (0.26 * girth, 0, middle - 0.06), (0.75 * girth, 0.76 * girth, 0.82 * height)),
        ellipsoid(rgb, (0, 0, face), (head, head, head)),
        *_eyes((0.76 * head, 0.42 * head, face + 0.22 * head), 0.13, (1, 0.15, 0)),
        lathe(BEAK, [(0, 0), (0.14, 0), (0.14, 0), (0, 0.42)], (0.82 * head, 0, face - 0.1), (1, 0, -0.12), 8),
        *both_sides(
            turned(
                ellipsoid(dark, (0, girth + 0.02, middle - 0.02), (0.22, 0.09, 0.58 * height), 10, 8),
                "x",
                24,
                (0, girth, middle + 0.45 * height),
            ),
            ellipsoid(BEAK, (0.26, 0.25, 0.07), (0.36, 0.2, 0.09), 10, 6),
        ),
        lathe(dark, [(0, 0), (0.22, 0), (0.22, 0), (0, 0.36)], (-0.6 * girth, 0, 0.32), (-0.8, 0, -0.5), 8),
    ]


def rabbit(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    girth, height = vary(generator, 0.54, 0.1), vary(generator, 0.56, 0.1)
    head, ear = vary(generator, 0.46, 0.08), vary(generator, 0.42, 0.15)
    face = 2 * height + 0.16
    lean = float(generator.uniform(4, 14))
    inner = tint(rgb, 0.6)
    ear_z = face + 0.75 * head + 0.75 * ear
    return [
        ellipsoid(rgb, (0, 0, height), (girth, girth, height)),
        ellipsoid(WHITE, (0.22 * girth, 0, 0.92 * height), (0.86 * girth, 0.66 * girth, 0.72 * height)),
        ellipsoid(rgb, (0.1, 0, face), (head, 1.02 * head, 0.92 * head)),
        ellipsoid(inner, (0.1 + 0.78 * head, 0, face - 0.14), (0.18, 0.24, 0.15), 8, 6),
        ellipsoid(BLACK, (0.1 + head + 0.08, 0, face - 0.05), (0.07, 0.1, 0.07), 8, 6),
        box(WHITE, (0.1 + head + 0.02, 0, face - 0.27), (0.06, 0.12, 0.16)),
        *_eyes((0.1 + 0.72 * head, 0.45 * head, face + 0.18), 0.15, (1, 0.3, 0)),
        ellipsoid(WHITE, (-girth - 0.08, 0, 0.38), (0.26, 0.26, 0.26), 10, 7),
        *both_sides(
            turned(ellipsoid(rgb, (0.02, 0.2, ear_z), (0.12, 0.18, ear), 8, 7), "x", -lean, (0, 0.2, face)),
            turned(ellipsoid(inner, (0.09, 0.2, ear_z), (0.07, 0.11, 0.78 * ear), 8, 6), "x", -lean, (0, 0.2, face)),
            ellipsoid(tint(rgb, -0.12), (0.36, 0.3, 0.12), (0.34, 0.17, 0.13), 8, 6),
            ellipsoid(tint(rgb, -0.12), (0.42, 0.3, 1.2 * height), (0.16, 0.12, 0.14), 8, 6),
        ),
    ]


def snail(rgb: Rgb, generator: np.random.Generator) -> list[Part]:
    shell, half = vary(generator, 0.6, 0.1), vary(generator, 0.36, 0.12)
    length, stalk = vary(generator, 1.0, 0.1), vary(generator, 0.42, 0.15)
    middle = 0.2 + shell
    skin, dark = CREAM, tint(rgb, -0.45)
    head_x = 0.86 * length
    center = (-0.12, 0, middle)
    parts = [
        lathe(
            rgb,
            [(0, -half), (0.5 * shell, -0.94 * half), (0.86 * shell, -0.6 * half), (shell, 0)]
            + [(0.86 * shell, 0.6 * half), (0.5 * shell, 0.94 * half), (0, half)],
            center,
            (0, 1, 0),
            18,
        ),
        ellipsoid(skin, (-0.05, 0, 0.14), (length, 0.3, 0.16), 14, 7),
        sweep(skin, [(0.45 * length, 0, 0.15), (0.72 * length, 0, 0.28), (head_x, 0, 0.62)], [0.24, 0.25, 0.22], 10),
        ellipsoid(skin, (head_x + 0.04, 0, 0.68), (0.27, 0.29, 0.26), 12, 8),
        ellipsoid(BLACK, (head_x + 0.28, 0, 0.6), (0.04, 0.13, 0.05), 8, 5),
        *both_sides(cylinder(skin, (head_x + 0.02, 0.13, 0.8), (head_x + 0.1, 0.2, 0.85 + stalk), 0.07, num_sides=8)),
        *_eyes((head_x + 0.12, 0.21, 0.9 + stalk), 0.16, (1, 0.45, 0)),
    ]
    rim = [
        (0, -0.09),
        (0.98 * shell, -0.09),
        (1.04 * shell, -0.06),
        (1.04 * shell, 0.06),
        (0.98 * shell, 0.09),
        (0, 0.09),
    ]
    parts.append(lathe(dark, rim, center, (0, 1, 0), 18))
    # A spiral band, laid on both flanks of the shell, narrowing towards its middle.
    turns = np.linspace(0.25 * np.pi, 3.6 * np.pi, 18)
    reach = shell * (0.84 - 0.66 * (turns - turns[0]) / (turns[-1] - turns[0]))
    lift = half * (0.72 + 0.3 * (1 - (reach / shell) ** 2))
    spiral = np.stack([center[0] + reach * np.cos(turns), lift, middle + reach * np.sin(turns)], axis=-1)
    return parts + both_sides(sweep(dark, spiral.tolist(), [0.055] * len(turns), 4))
