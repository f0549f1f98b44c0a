"""Shapes of the miniature world that carry people and goods."""

from collections.abc import Sequence

import numpy as np

from redream.mini.shapes.primitives import (
    BLACK,
    BROWN,
    DARK,
    GLASS,
    GREY,
    LAMP,
    TAIL_LIGHT,
    WHITE,
    Part,
    Rgb,
    both_sides,
    box,
    cylinder,
    ellipsoid,
    hexahedron,
    lathe,
    slab,
    tint,
    turned,
    vary,
)


def _wheels(xs: Sequence[float], y: float, radius: float, width: float) -> list[Part]:
    parts = []
    for x in xs:
        parts += both_sides(
            cylinder(BLACK, (x, y - width, radius), (x, y, radius), radius, num_sides=14),
            cylinder(GREY, (x, y - width / 2, radius), (x, y + 0.02, radius), 0.5 * radius, num_sides=8),
        )
    return parts


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
