import numpy as np
import torch
from PIL import Image

from redream.images import Rendering, composite, image_grid, save_png, to_images, to_rgb


def test_layouts_are_inverse_of_each_other(generator) -> None:
    rgb = torch.rand(2, 3, 5, 3, generator=generator)
    assert to_images(rgb).shape == (2, 3, 3, 5)
    assert torch.equal(to_rgb(to_images(rgb)), rgb)


def test_compositing_adds_background_where_light_passes(generator) -> None:
    opacity = torch.rand(1, 4, 4, 1, generator=generator)
    color = torch.tensor([0.2, 0.4, 0.6])
    rendering = Rendering(color * opacity, opacity, torch.zeros(1, 4, 4, 1))
    expected = opacity * color + (1 - opacity) * 0.9
    assert torch.allclose(composite(rendering, 0.9), expected)
    assert torch.allclose(composite(rendering, color), color.expand(1, 4, 4, 3))


def test_a_picture_survives_the_file_within_half_a_byte(tmp_path, generator) -> None:
    rgb = torch.rand(6, 7, 3, generator=generator)
    save_png(tmp_path / "picture.png", rgb)
    with Image.open(tmp_path / "picture.png") as image:
        read = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
    assert (read - rgb).abs().max() <= 0.5 / 255 + 1e-6


def test_grid_puts_images_in_reading_order_and_leaves_the_rest_white() -> None:
    rgb = torch.stack([torch.full((2, 2, 3), value) for value in (0.1, 0.2, 0.3)])
    grid = image_grid(rgb, columns=2)
    assert grid.shape == (4, 4, 3)
    assert [round(float(grid[row, column, 0]), 1) for row in (0, 2) for column in (0, 2)] == [0.1, 0.2, 0.3, 1.0]
