"""Shapes of the miniature world: a house and what stands in it."""

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
    lathe,
    slab,
    sweep,
    tint,
    turned,
    vary,
)


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
