import torch

from redream.distill.asset_velocity import asset_energy
from redream.images import Rendering, composite


def rendering(generator: torch.Generator) -> Rendering:
    opacity = torch.rand(2, 4, 4, 1, generator=generator)
    return Rendering(opacity * torch.rand(2, 4, 4, 3, generator=generator), opacity, torch.zeros(2, 4, 4, 1))


def test_a_particle_that_equals_its_asset_is_not_pulled(generator) -> None:
    asset = rendering(generator)
    rgb, opacity = asset.rgb.clone().requires_grad_(), asset.opacity.clone().requires_grad_()
    energy = asset_energy(Rendering(rgb, opacity, asset.depth), asset, 0.5, 1_000.0, 100.0)
    energy.backward()
    assert float(energy) == 0 and (rgb.grad == 0).all() and (opacity.grad == 0).all()


def test_energy_is_the_weighted_difference_before_a_common_background(generator) -> None:
    ours, asset, background = rendering(generator), rendering(generator), torch.rand(3, generator=generator)
    expected = 1_000.0 * (composite(ours, background) - composite(asset, background)).square().mean()
    expected = expected + 100.0 * (ours.opacity - asset.opacity).square().mean()
    assert torch.allclose(asset_energy(ours, asset, background, 1_000.0, 100.0), expected, rtol=1e-5)


def test_the_velocity_points_from_the_particle_to_the_asset(generator) -> None:
    ours, asset = rendering(generator), rendering(generator)
    rgb = ours.rgb.clone().requires_grad_()
    asset_energy(Rendering(rgb, ours.opacity, ours.depth), asset, 0.0, 1.0, 0.0).backward()
    assert rgb.grad is not None
    assert (torch.sign(-rgb.grad) == torch.sign(asset.rgb - ours.rgb)).all()
