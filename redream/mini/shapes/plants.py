"""Shapes of the miniature world that grow from the ground."""

import numpy as np

from redream.mini.shapes.primitives import BROWN, CREAM, WHITE, Part, Rgb, cylinder, ellipsoid, lathe, tint, vary


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
