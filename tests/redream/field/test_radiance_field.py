from dataclasses import replace

import pytest
import torch

from redream.field.radiance_field import RadianceField, spherical_harmonics
from redream.presets import smoke

CONFIG = smoke().field


def directions(num: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(num, 3, generator=generator), dim=-1)


def test_the_first_density_is_the_blob(generator):
    field = RadianceField(CONFIG, generator)
    positions = (torch.rand(1000, 3, generator=generator) * 2 - 1) * CONFIG.radius
    blob = CONFIG.density_blob_scale * (1 - positions.norm(dim=-1) / CONFIG.density_blob_radius)
    torch.testing.assert_close(field.density(positions), torch.nn.functional.softplus(blob), atol=1e-2, rtol=1e-2)


def test_the_gain_multiplies_what_the_network_adds_to_the_blob(generator):
    field = RadianceField(replace(CONFIG, density_gain=1.0), generator)
    with torch.no_grad():
        field.encoding.table.uniform_(-1.0, 1.0, generator=generator)
    positions = (torch.rand(1000, 3, generator=generator) - 0.5) * 0.6  # where the blob keeps softplus invertible
    blob = CONFIG.density_blob_scale * (1 - positions.norm(dim=-1) / CONFIG.density_blob_radius)

    def added() -> torch.Tensor:
        return torch.log(torch.expm1(field.density(positions).double())) - blob

    plain = added()
    field.config = replace(CONFIG, density_gain=3.0)
    assert plain.abs().max() > 0.01
    torch.testing.assert_close(added(), 3.0 * plain, atol=1e-3, rtol=1e-3)


def test_density_is_the_same_with_and_without_colour(generator):
    field = RadianceField(CONFIG, generator)
    positions = torch.rand(100, 3, generator=generator) - 0.5
    sigmas, rgb = field.density_and_color(positions, directions(100, generator))
    assert torch.equal(sigmas, field.density(positions))
    assert (sigmas >= 0).all() and (rgb >= 0).all() and (rgb <= 1).all()


def test_colour_does_not_depend_on_the_viewing_direction(generator):
    field = RadianceField(CONFIG, generator)
    positions = torch.rand(100, 3, generator=generator) - 0.5
    rgbs = [field.density_and_color(positions, directions(100, generator))[1] for _ in range(2)]
    assert torch.equal(*rgbs)


@pytest.mark.parametrize("magnitude", [1.0, 1e4])
def test_values_and_gradients_are_finite_at_extremes(generator, magnitude):
    field = RadianceField(CONFIG, generator)
    with torch.no_grad():
        field.encoding.table.copy_(magnitude * torch.randn(field.encoding.table.shape, generator=generator))
    positions = torch.cat([torch.zeros(1, 3), torch.randn(99, 3, generator=generator) * magnitude])
    positions.requires_grad_()
    sigmas, rgb = field.density_and_color(positions, directions(100, generator))
    (sigmas.log1p().sum() + rgb.sum()).backward()
    assert sigmas.isfinite().all() and rgb.isfinite().all()
    for parameter in (positions, field.encoding.table, *field.network.parameters()):
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_a_seed_fixes_every_weight_and_touches_no_global_state():
    before = torch.get_rng_state()
    fields = [RadianceField(CONFIG, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    states = [field.state_dict() for field in fields]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_state_dict_is_the_whole_field(generator):
    field, other = RadianceField(CONFIG, generator), RadianceField(CONFIG, generator)
    other.load_state_dict(field.state_dict())
    positions, rays_d = torch.rand(50, 3, generator=generator) - 0.5, directions(50, generator)
    for value, expected in zip(other.density_and_color(positions), field.density_and_color(positions), strict=True):
        assert torch.equal(value, expected)
    assert torch.equal(other.background(rays_d), field.background(rays_d))


def test_a_field_computed_by_numba_equals_one_computed_by_torch():
    fields = [
        RadianceField(replace(CONFIG, implementation=name), torch.Generator().manual_seed(0))
        for name in ("torch", "numba")
    ]
    positions = torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    for values in zip(*(field.density_and_color(positions) for field in fields), strict=True):
        torch.testing.assert_close(*values)
    for field in fields:
        field.density(positions).sum().backward()
    torch.testing.assert_close(fields[0].encoding.table.grad, fields[1].encoding.table.grad)


def test_background_is_a_colour_of_the_direction_in_any_shape(generator):
    field = RadianceField(CONFIG, generator)
    rays_d = directions(24, generator)
    rgb = field.background(rays_d)
    assert (rgb > 0).all() and (rgb < 1).all()
    torch.testing.assert_close(field.background(rays_d.reshape(2, 3, 4, 3)).reshape(24, 3), rgb)


def test_spherical_harmonics_are_orthonormal(generator):
    harmonics = spherical_harmonics(directions(200_000, generator))
    gram = 4 * torch.pi * harmonics.T @ harmonics / len(harmonics)
    torch.testing.assert_close(gram, torch.eye(9), atol=0.03, rtol=0)


def test_opposite_rays_see_different_backgrounds(generator):
    field = RadianceField(CONFIG, generator)
    with torch.no_grad():
        for layer in field.background_network:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.normal_(0, 1, generator=generator)
    for axis in torch.eye(3):
        assert (field.background(axis) - field.background(-axis)).abs().max() > 0.02
    rays_d = directions(50, generator)
    assert len(field.background(rays_d).unique(dim=0)) == 50
