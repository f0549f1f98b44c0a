import pytest
import torch

from redream.cameras import Camera, orbit
from redream.field.occupancy import OccupancyGrid, dilate, visual_hull
from redream.render.volume import render_camera

RADIUS, SIZE = 0.6, 24


def cell_centres(size: int = SIZE) -> torch.Tensor:
    axis = ((torch.arange(size) + 0.5) / size * 2 - 1) * RADIUS
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def views(elevations=(-30.0, 20.0, 70.0), num: int = 6, size: int = 48) -> Camera:
    cameras = [orbit(num, elevation, 1.5, 50.0, size) for elevation in elevations]
    return Camera(torch.cat([c.c2w for c in cameras]), torch.cat([c.fovy_deg for c in cameras]), size, size)


def silhouettes(is_inside, camera: Camera) -> torch.Tensor:
    def solid(positions, directions):
        return 1e4 * is_inside(positions).float(), torch.ones_like(positions)

    return render_camera(solid, camera, RADIUS, 128).opacity


def test_visual_hull_of_a_sphere_contains_it_and_lies_in_a_slightly_larger_one():
    centre = torch.tensor([0.05, -0.1, 0.08])
    camera = views()
    opacity = silhouettes(lambda positions: (positions - centre).norm(dim=-1) < 0.3, camera)
    hull = visual_hull(opacity, camera, RADIUS, SIZE, dilation_cells=0)
    distance = (cell_centres() - centre).norm(dim=-1)
    cell = 2 * RADIUS / SIZE
    assert hull[distance < 0.3].all()
    assert not hull[distance > 0.3 + 2.5 * cell].any()


def test_visual_hull_keeps_a_rod_thinner_than_a_cell():
    def is_inside(positions):
        return (positions[:, 1:] - 0.013).norm(dim=-1) < 0.02

    camera = views((-20.0, 50.0), num=4, size=80)
    hull = visual_hull(silhouettes(is_inside, camera), camera, RADIUS, 12, dilation_cells=0)
    rod = torch.stack([torch.linspace(-0.55, 0.55, 50), torch.full((50,), 0.013), torch.full((50,), 0.013)], dim=-1)
    assert OccupancyGrid(RADIUS, 12, hull).occupied(rod).all()
    assert hull.float().mean() < 0.2


def test_visual_hull_knows_left_from_right_and_up_from_down():
    camera = views()
    corner = torch.tensor([0.2, 0.3, 0.25])
    opacity = silhouettes(lambda positions: (positions - corner).abs().amax(dim=-1) < 0.08, camera)
    hull = visual_hull(opacity, camera, RADIUS, SIZE, dilation_cells=0)
    found = cell_centres()[hull]
    torch.testing.assert_close(found.mean(dim=0), corner, atol=0.05, rtol=0)


def test_what_no_view_frames_is_kept():
    camera = orbit(4, 0.0, 1.5, 10.0, 16)  # sees only the middle
    hull = visual_hull(torch.zeros(4, 16, 16, 1), camera, RADIUS, SIZE, dilation_cells=0)
    assert hull[..., 0].all() and hull[..., -1].all() and not hull[SIZE // 2, SIZE // 2, SIZE // 2]


def test_visual_hull_refuses_silhouettes_without_their_cameras():
    with pytest.raises(ValueError, match="3 silhouettes"):
        visual_hull(torch.zeros(3, 16, 16, 1), orbit(2, 0.0, 1.5, 50.0, 16), RADIUS, SIZE)


def test_dilation_grows_by_whole_cells():
    cells = torch.zeros(9, 9, 9, dtype=torch.bool)
    cells[4, 4, 4] = True
    assert [int(dilate(cells, n).sum()) for n in range(3)] == [1, 27, 125]


def test_a_position_is_occupied_as_its_cell_is_and_never_outside(generator):
    occupied = torch.rand(SIZE, SIZE, SIZE, generator=generator) < 0.5
    grid = OccupancyGrid(RADIUS, SIZE, occupied)
    jitter = (torch.rand(SIZE, SIZE, SIZE, 3, generator=generator) - 0.5) * 0.98 * 2 * RADIUS / SIZE
    inside = (cell_centres() + jitter).reshape(-1, 3)
    assert torch.equal(grid.occupied(inside), occupied.flatten())
    outside = torch.nn.functional.normalize(torch.randn(100, 3, generator=generator), dim=-1) * 2 * RADIUS
    assert not OccupancyGrid(RADIUS, SIZE).occupied(outside).any()


def test_pruning_by_the_hull_does_not_change_a_render_of_what_is_inside(generator):
    camera = views()

    def ball(positions, directions):
        return 50.0 * (positions.norm(dim=-1) < 0.3).float(), torch.sigmoid(5 * positions)

    hull = visual_hull(render_camera(ball, camera, RADIUS, 64).opacity, camera, RADIUS, SIZE, min_opacity=0.01)
    grid = OccupancyGrid(RADIUS, SIZE, hull)
    whole, pruned = (render_camera(ball, camera[2], RADIUS, 64, occupied) for occupied in (None, grid.occupied))
    assert torch.equal(whole.rgb, pruned.rgb) and torch.equal(whole.opacity, pruned.opacity)
    assert torch.equal(whole.depth, pruned.depth)


def test_updates_find_the_object_and_forget_what_was_there(generator):
    grid = OccupancyGrid(RADIUS, SIZE)

    def left(positions):
        return 100.0 * (positions[:, 1] > 0).float()

    for _ in range(100):
        grid.update(left, step_length=0.02, generator=generator)
    assert torch.equal(grid.is_occupied, cell_centres()[..., 1] > 0)


def test_updates_grow_from_the_occupied_cells_only(generator):
    seed = torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    seed[12, 12, 12] = True
    near, far = (OccupancyGrid(RADIUS, SIZE, seed) for _ in range(2))

    def fog(positions):
        return torch.full((len(positions),), 10.0)

    near.update(fog, step_length=0.02, generator=generator, growth_cells=2)
    far.update(fog, step_length=0.02, generator=generator, growth_cells=None)
    assert torch.equal(near.is_occupied, dilate(seed, 2)) and far.is_occupied.all()


def test_occupancy_is_in_the_checkpoint(generator):
    occupied = torch.rand(SIZE, SIZE, SIZE, generator=generator) < 0.5
    grid, other = OccupancyGrid(RADIUS, SIZE, occupied), OccupancyGrid(RADIUS, SIZE)
    grid.update(lambda positions: positions[:, 0].exp(), step_length=0.02, generator=generator)
    other.load_state_dict(grid.state_dict())
    assert torch.equal(other.is_occupied, grid.is_occupied) and torch.equal(other.opacities, grid.opacities)


def test_a_first_occupancy_of_another_resolution_is_refused():
    with pytest.raises(ValueError, match="resolution"):
        OccupancyGrid(RADIUS, SIZE, torch.ones(8, 8, 8, dtype=torch.bool))
