"""Shapes of the miniature world that have eyes: animals and the robot."""

from collections.abc import Sequence

import numpy as np

from redream.mini.shapes.primitives import (
    BEAK,
    BLACK,
    CREAM,
    DARK,
    GREY,
    LAMP,
    TAIL_LIGHT,
    WHITE,
    Part,
    Point,
    Rgb,
    both_sides,
    box,
    cylinder,
    ellipsoid,
    lathe,
    slab,
    sweep,
    tint,
    turned,
    vary,
)


def _eyes(center: Point, radius: float, direction: Point) -> list[Part]:
    """White eyeballs with black pupils on both sides; `direction` is where the left one looks."""
    look = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    pupil = np.asarray(center) + 0.52 * radius * look
    return both_sides(
        ellipsoid(WHITE, center, [radius] * 3, 8, 7), ellipsoid(BLACK, pupil.tolist(), [0.62 * radius] * 3, 8, 5)
    )


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
