"""Score distillation against an analytic prior: for Gaussian data the best noise prediction has a closed form."""

import pytest
import torch

from redream.distill.delta import delta_gradient, is_delta_step
from redream.distill.loss import opacity_entropy, sparsity, specify_gradient
from redream.distill.methods.sds import sds_gradient
from redream.distill.methods.vsd import variational_loss, vsd_gradient
from redream.distill.schedule import sample_timesteps, weight
from redream.limits import Linear
from redream.settings import DistillConfig

ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 100)


def gaussian_eps(mean: float, std: float, t: torch.Tensor):
    """The best prediction for x_0 ~ N(mean, std^2): sigma_t (x_t - alpha_t mean) / (alpha_t^2 std^2 + sigma_t^2)."""
    a = ALPHAS_CUMPROD[t][:, None, None, None]

    def predict(x_t: torch.Tensor) -> torch.Tensor:
        return (1 - a).sqrt() * (x_t - a.sqrt() * mean) / (a * std**2 + 1 - a)

    return predict


def noised(x_0: torch.Tensor, t: torch.Tensor, generator: torch.Generator):
    eps = torch.randn(x_0.shape, generator=generator)
    a = ALPHAS_CUMPROD[t][:, None, None, None]
    return a.sqrt() * x_0 + (1 - a).sqrt() * eps, eps


def test_expected_sds_gradient_of_a_gaussian_is_the_closed_form(generator) -> None:
    mean, std, value, num = 0.3, 0.5, 1.2, 400_000
    t = torch.full((1,), 40)
    x_t, eps = noised(torch.full((1, 1, 1, num), value), t, generator)
    gradient = sds_gradient(x_t, eps, weight(t, ALPHAS_CUMPROD), gaussian_eps(mean, std, t)).mean()
    a = ALPHAS_CUMPROD[40]
    expected = (1 - a) * (1 - a).sqrt() * a.sqrt() * (value - mean) / (a * std**2 + 1 - a)
    assert float(gradient) == pytest.approx(float(expected), abs=3e-3)


def test_sds_descends_to_the_mode_of_the_prior(generator) -> None:
    x_0 = torch.full((1, 1, 4, 4), 3.0)
    for _ in range(600):
        t = sample_timesteps(DistillConfig(), 0, 100, 1, generator)
        x_t, eps = noised(x_0, t, generator)
        x_0 = x_0 - 0.1 * sds_gradient(x_t, eps, weight(t, ALPHAS_CUMPROD), gaussian_eps(-1.0, 0.2, t))
    assert float(x_0.mean()) == pytest.approx(-1.0, abs=0.25)


def test_vsd_with_the_prior_as_its_own_variational_network_is_exactly_zero(generator) -> None:
    t = torch.tensor([10, 80])
    x_t, _ = noised(torch.randn(2, 3, 4, 4, generator=generator), t, generator)
    predict = gaussian_eps(0.1, 1.0, t)
    assert (vsd_gradient(x_t, weight(t, ALPHAS_CUMPROD), predict, predict) == 0).all()


def test_vsd_with_a_perfect_variational_network_has_no_noise_where_sds_has(generator) -> None:
    # A point mass at x_0 has eps itself as its best prediction, so VSD equals SDS there; a Gaussian's is smoother.
    t, x_0 = torch.full((1,), 60), torch.zeros(1, 1, 1, 100_000)
    x_t, eps = noised(x_0, t, generator)
    w, prior = weight(t, ALPHAS_CUMPROD), gaussian_eps(0.5, 0.5, t)
    a = ALPHAS_CUMPROD[60]
    of_point = vsd_gradient(x_t, w, prior, lambda x: (x - a.sqrt() * x_0) / (1 - a).sqrt())
    assert torch.allclose(of_point, sds_gradient(x_t, eps, w, prior), atol=1e-5)
    assert vsd_gradient(x_t, w, prior, gaussian_eps(0.0, 0.5, t)).std() < 0.1 * of_point.std()


def test_variational_loss_has_its_minimum_at_the_closed_form(generator) -> None:
    t = torch.full((1,), 50)
    x_t, eps = noised(0.3 + 0.5 * torch.randn(1, 1, 1, 100_000, generator=generator), t, generator)
    best = variational_loss(x_t, eps, gaussian_eps(0.3, 0.5, t))
    for mean, std in ((0.5, 0.5), (0.1, 0.5), (0.3, 0.8), (0.3, 0.3)):
        assert best < variational_loss(x_t, eps, gaussian_eps(mean, std, t))


def test_specified_gradient_is_the_gradient_over_the_batch(generator) -> None:
    x_0 = torch.randn(4, 3, 2, 2, generator=generator, requires_grad=True)
    gradient = torch.randn(4, 3, 2, 2, generator=generator)
    specify_gradient(x_0, gradient).backward()
    assert x_0.grad is not None
    assert torch.allclose(x_0.grad, gradient / 4, atol=1e-6)


def test_delta_takes_the_assets_own_gradient_off() -> None:
    gradient = torch.full((1, 1, 1, 1), 3.0)
    assert (delta_gradient(gradient, gradient, 1.0) == 0).all()
    assert delta_gradient(gradient, torch.ones(1, 1, 1, 1), 0.5).item() == 2.5


def test_delta_comes_every_third_step_and_never_for_zero() -> None:
    assert [step for step in range(10) if is_delta_step(step, 3)] == [0, 3, 6, 9]
    assert not any(is_delta_step(step, 0) for step in range(10))


def test_timesteps_keep_their_range_before_and_after_annealing(generator) -> None:
    config = DistillConfig(min_t=0.02, max_t=0.98, annealed_max_t=0.5, anneal_from_step=100)
    early = sample_timesteps(config, 99, 1000, 20_000, generator)
    late = sample_timesteps(config, 100, 1000, 20_000, generator)
    assert (int(early.min()), int(early.max())) == (20, 980)
    assert (int(late.min()), int(late.max())) == (20, 500)
    assert float(early.float().mean()) == pytest.approx(500, abs=8)


def test_an_annealed_limit_above_the_plain_one_opens_nothing(generator) -> None:
    config = DistillConfig(min_t=0.02, max_t=0.4, annealed_max_t=0.8, anneal_from_step=100)
    for step in (99, 100):
        assert int(sample_timesteps(config, step, 1000, 20_000, generator).max()) == 400


def test_the_highest_timestep_is_the_last_one(generator) -> None:
    config = DistillConfig(min_t=0.0, max_t=1.0)
    t = sample_timesteps(config, 0, 10, 2_000, generator)
    assert (int(t.min()), int(t.max())) == (0, 9)


def test_weight_is_one_minus_alphas_cumprod() -> None:
    t = torch.tensor([0, 99])
    assert torch.equal(weight(t, ALPHAS_CUMPROD).flatten(), 1 - ALPHAS_CUMPROD[t])


def test_entropy_is_least_for_empty_and_opaque_pixels() -> None:
    values = [float(opacity_entropy(torch.full((1, 1, 1, 1), p))) for p in (0.0, 0.3, 0.5, 0.9, 1.0)]
    assert values[2] == max(values) == pytest.approx(0.6931, abs=1e-3)
    assert values[0] == pytest.approx(values[4], rel=1e-3) and values[0] < values[3] < values[1]


def test_sparsity_grows_with_opacity_and_is_smooth_at_zero() -> None:
    opacity = torch.zeros(1, 2, 2, 1, requires_grad=True)
    loss = sparsity(opacity)
    loss.backward()
    assert float(loss) == pytest.approx(0.1) and (opacity.grad == 0).all()
    assert sparsity(torch.ones(1, 2, 2, 1)) > 1.0


def test_entropy_weight_starts_when_it_is_told() -> None:
    schedule = Linear(start=0.0, end=1000.0, begin_step=10_000, end_step=10_000)
    assert (schedule(9_999), schedule(10_000)) == (0.0, 1000.0)
