"""Half precision on tiny networks of the real classes: trained parts stay float32, results near float32's."""

import pytest
import torch
from torch.nn import functional as F

from redream.cameras import cameras_at, sample_cameras
from redream.distill.loop import NonFiniteLoss, create_state, distill
from redream.distill.methods.vsd import variational_loss, vsd_gradient
from redream.distill.schedule import weight
from redream.images import Rendering
from redream.prior.adaptation import adapt_prior
from redream.prior.frozen import FrozenModel
from redream.prior.precision import FIRST_SCALE, GOOD_STEPS, MOST_SKIPPED, LossScale, resolve_dtype
from redream.prior.prompts import ViewPrefixes
from redream.prior.stable_diffusion import ADAPTER, VARIATIONAL, StableDiffusionPrior
from redream.render.mesh import AssetViews
from redream.settings import AdaptationConfig, CameraConfig, DistillConfig, FieldConfig, PriorConfig

HALVES = ("bfloat16", "float16")
CAMERAS = CameraConfig(camera_distance=(1.4, 1.6), fovy_deg=(42.0, 48.0), elevation_deg=(0.0, 30.0))
FIELD = FieldConfig(
    num_levels=2, log2_hashmap_size=10, base_resolution=4, hidden_dim=8, radius=0.55, num_samples_per_ray=16,
    occupancy_resolution=8, implementation="torch",
)  # fmt: skip
DISTILL = DistillConfig(
    method="vsd", num_steps=3, warm_up_steps=0, low_resolution=8, high_resolution=8, variational_rank=2
)


def prior_in(folder, dtype: str) -> StableDiffusionPrior:
    return StableDiffusionPrior(PriorConfig(model=str(folder), dtype=dtype))


def scramble(parameters, std: float = 0.3) -> None:
    """Give trained parameters the same random values in every dtype, so that LoRAs change something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


def gradients_in(folder, dtype: str) -> dict[str, torch.Tensor]:
    """Return the latent gradient of VSD, and the gradients of the variational network, adapter and prefixes."""
    prior = prior_in(folder, dtype)
    adapter, variational = prior.add_lora(ADAPTER, 2, seed=0), prior.add_lora(VARIATIONAL, 2, seed=1)
    scramble(adapter)
    scramble(variational)
    prior.prefixes = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder)
    generator = torch.Generator().manual_seed(3)
    x_0, eps = torch.randn(16, 4, 2, 2, generator=generator), torch.randn(16, 4, 2, 2, generator=generator)
    t, camera = torch.arange(20, 980, 60), sample_cameras(CAMERAS, 16, 8, generator)
    x_t, embeds = prior.add_noise(x_0, t, eps), prior.prompt_embeds("a red car")
    plain = embeds.plain.expand(16, -1, -1)
    found = {
        "latent": vsd_gradient(
            x_t,
            weight(t, prior.alphas_cumprod),
            lambda x: prior.predict_eps(x, t, embeds.cond(["front"] * 16), embeds.uncond, 7.5),
            lambda x: prior.predict_eps_variational(x, t, plain, camera),
        )
    }
    variational_loss(x_t, eps, lambda x: prior.predict_eps_variational(x, t, plain, camera)).backward()
    found["variational"] = torch.cat([p.grad.flatten() for p in variational if p.grad is not None])
    cond = prior.embed(["a red car"] * 16, ["front", "side", "back", "front"] * 4)
    F.mse_loss(prior.predict_target(x_t, t, cond), prior.training_target(x_0, t, eps)).backward()
    found["adapter"] = torch.cat([p.grad.flatten() for p in adapter if p.grad is not None])
    assert prior.prefixes.embeds.grad is not None
    found["prefixes"] = prior.prefixes.embeds.grad.flatten()
    return found


@pytest.mark.parametrize("dtype", HALVES)
def test_every_gradient_in_half_precision_is_nearly_that_of_float32(dtype, v_prior_folder) -> None:
    expected, found = gradients_in(v_prior_folder, "float32"), gradients_in(v_prior_folder, dtype)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32, name
        assert float(F.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)) >= 0.99, name
        assert float(gradient.norm()) == pytest.approx(float(expected[name].norm()), rel=0.02), name


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_that_stay_are_half_and_nothing_that_is_trained_is(dtype, v_prior_folder) -> None:
    prior = prior_in(v_prior_folder, dtype)
    frozen = [p for network in (prior.unet, prior.vae, prior.text_encoder) for p in network.parameters()]
    assert {p.dtype for p in frozen} == {getattr(torch, dtype)}
    state = create_state(prior, [], DISTILL, FIELD, seed=0)
    list(distill(state, prior, "a red car", [], DISTILL, FIELD, CAMERAS, 1))
    prior.add_lora(ADAPTER, 2, seed=0)
    prior.prefixes = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder)
    trained = [p for p in prior.unet.parameters() if id(p) not in {id(f) for f in frozen}]
    trained += [*prior.prefixes.parameters(), *state.particles[0].parameters(), *state.variational]
    assert {p.dtype for p in trained} == {torch.float32}
    assert state.variational_optimizer is not None
    for optimizer in (*state.optimizers, state.variational_optimizer):
        moments = [value for entry in optimizer.state.values() for value in entry.values()]
        assert moments and {value.dtype for value in moments} == {torch.float32}


@pytest.mark.parametrize("dtype", HALVES)
def test_latents_predictions_and_samples_are_handed_out_as_float32(dtype, epsilon_prior_folder) -> None:
    prior = prior_in(epsilon_prior_folder, dtype)
    x_0 = prior.encode(torch.rand(1, 3, 16, 16))
    embeds = prior.prompt_embeds("a red car")
    eps_pred = prior.predict_eps(x_0, torch.tensor([500]), embeds.plain, embeds.uncond, 3.0)
    assert {x_0.dtype, eps_pred.dtype, prior.decode(x_0).dtype, prior.add_noise(x_0, torch.tensor([5]), x_0).dtype} == {
        torch.float32
    }


def adapted_loss(folder, dtype: str, num_steps: int) -> float:
    azimuth = torch.linspace(-180, 150, 12)
    camera = cameras_at(azimuth, torch.zeros(12), torch.full((12,), 1.5), torch.full((12,), 45.0), 16)
    opacity = torch.ones(12, 16, 16, 1)
    rgb = torch.stack([azimuth / 360 + 0.5, 0.5 - azimuth / 720, torch.full((12,), 0.3)], dim=-1)[:, None, None]
    views = [AssetViews(Rendering(opacity * rgb, opacity, opacity), camera)]
    config = AdaptationConfig(
        rank=4, num_steps=num_steps, batch_size=4, validate_every=num_steps // 2, lr_lora=3e-3, held_out_share=0.25
    )
    generator = torch.Generator().manual_seed(0)
    steps = adapt_prior(prior_in(folder, dtype), views, ["a red car"], config, CAMERAS, (0.5, 0.5), generator)
    losses = [step.held_out_loss for step in steps if step.held_out_loss is not None]
    assert losses[-1] < 0.9 * losses[0]  # it learns, or this says nothing
    return losses[-1]


def test_300_steps_of_adaptation_reach_the_held_out_loss_of_float32_in_minutes(v_prior_folder) -> None:
    expected = adapted_loss(v_prior_folder, "float32", 300)
    for dtype in HALVES:
        assert adapted_loss(v_prior_folder, dtype, 300) == pytest.approx(expected, rel=0.02), dtype


def test_a_step_that_overflows_in_float16_changes_nothing_and_is_counted(v_prior_folder) -> None:
    prior = prior_in(v_prior_folder, "float16")
    state = create_state(prior, [], DISTILL, FIELD, seed=0)
    state.field_scale.scale = state.variational_scale.scale = 2.0**40
    before = [p.detach().clone() for p in (*state.particles[0].parameters(), *state.variational)]
    (step,) = distill(state, prior, "a red car", [], DISTILL, FIELD, CAMERAS, 1)
    assert step.num_skipped == 2
    assert all(map(torch.equal, before, (*state.particles[0].parameters(), *state.variational)))
    assert state.field_scale.scale == state.variational_scale.scale == 2.0**39
    state.field_scale.scale = state.variational_scale.scale = FIRST_SCALE
    (step,) = distill(state, prior, "a red car", [], DISTILL, FIELD, CAMERAS, 2)
    assert step.num_skipped == 2
    assert not torch.equal(before[0], next(state.particles[0].parameters()))


def test_an_adaptation_that_overflows_once_goes_on(v_prior_folder, monkeypatch) -> None:
    monkeypatch.setattr("redream.prior.precision.FIRST_SCALE", 2.0**34)
    config = AdaptationConfig(rank=2, num_steps=20, batch_size=2, validate_every=10, lr_lora=1e-3)
    generator = torch.Generator().manual_seed(0)
    opacity = torch.ones(6, 16, 16, 1)
    views = AssetViews(
        Rendering(opacity.expand(-1, -1, -1, 3) * 0.3, opacity, opacity), sample_cameras(CAMERAS, 6, 16, generator)
    )
    prior = prior_in(v_prior_folder, "float16")
    steps = list(adapt_prior(prior, [views], ["a red car"], config, CAMERAS, (0.5, 0.5), generator))
    assert 0 < steps[-1].num_skipped < 20
    assert steps[-1].held_out_loss is not None


def test_without_float16_what_is_not_finite_is_an_error(v_prior_folder, monkeypatch) -> None:
    prior = prior_in(v_prior_folder, "bfloat16")
    state = create_state(prior, [], DISTILL, FIELD, seed=0)
    monkeypatch.setattr(prior, "predict_eps", lambda x_t, **_: x_t * float("inf"))
    with pytest.raises(NonFiniteLoss, match="score loss"):
        list(distill(state, prior, "a red car", [], DISTILL, FIELD, CAMERAS, 1))


def test_a_loss_scale_halves_doubles_gives_up_and_goes_on_after_a_save() -> None:
    scale = LossScale(torch.float16)
    assert scale.must_skip(is_finite=False) and scale.scale == FIRST_SCALE / 2
    for _ in range(GOOD_STEPS):
        assert not scale.must_skip(is_finite=True)
    assert scale.scale == FIRST_SCALE
    resumed = LossScale(torch.float16)
    resumed.load_state_dict(scale.state_dict())
    assert (resumed.scale, resumed.num_skipped) == (FIRST_SCALE, 1)
    in_float32 = LossScale(torch.float32)
    in_float32.load_state_dict(scale.state_dict())
    assert in_float32.scale == 1.0 and not in_float32.must_skip(is_finite=False)
    with pytest.raises(FloatingPointError, match="in a row; set prior.dtype"):
        for _ in range(MOST_SKIPPED):
            scale.must_skip(is_finite=False)


def test_auto_is_float32_on_a_cpu_and_the_best_half_that_a_gpu_has(monkeypatch) -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    for capability, expected in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert resolve_dtype("auto", torch.device("cuda")) == expected
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16


def test_priors_on_one_frozen_model_share_its_tensors_and_see_nothing_of_each_other(v_prior_folder) -> None:
    config = PriorConfig(model=str(v_prior_folder))
    frozen = FrozenModel(config)
    one, other = StableDiffusionPrior(config, frozen=frozen), StableDiffusionPrior(config, frozen=frozen)
    embeds = other.prompt_embeds("a red car")
    x_t, t = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    before = other.predict_eps(x_t, t, embeds.plain, embeds.uncond, 3.0)
    scramble([*one.add_lora(ADAPTER, 2, seed=0), *one.add_lora(VARIATIONAL, 2, seed=1)])
    one.prefixes = ViewPrefixes.of_words(one.tokenizer, one.text_encoder)
    scramble([one.prefixes.embeds])
    assert not torch.equal(one.predict_eps(x_t, t, embeds.plain, embeds.uncond, 3.0), before)
    assert torch.equal(other.predict_eps(x_t, t, embeds.plain, embeds.uncond, 3.0), before)
    assert torch.equal(other.prompt_embeds("a red car").by_view, embeds.by_view)
    assert not other.has_adapter and not any("lora" in name for name, _ in frozen.unet.named_parameters())
    own = {id(p) for name, p in one.unet.named_parameters() if "lora" not in name and "cond_proj" not in name}
    assert own == {id(p) for p in other.unet.parameters()} == {id(p) for p in frozen.unet.parameters()}


def test_saving_memory_changes_no_number(v_prior_folder) -> None:
    def after(save_memory: bool) -> list[torch.Tensor]:
        prior = StableDiffusionPrior(PriorConfig(model=str(v_prior_folder), save_memory=save_memory))
        state = create_state(prior, [], DISTILL, FIELD, seed=0)
        list(distill(state, prior, "a red car", [], DISTILL, FIELD, CAMERAS, 3))
        return [p.detach() for p in (*state.particles[0].parameters(), *state.variational)]

    assert all(map(torch.equal, after(False), after(True)))


@pytest.mark.parametrize("failing", ["encode", "predict_eps_variational"])
def test_a_step_that_runs_out_of_memory_once_is_done_again_with_less(failing, v_prior_folder, monkeypatch) -> None:
    def run(fails_at: int) -> tuple:
        prior = prior_in(v_prior_folder, "float32")
        state = create_state(prior, [], DISTILL, FIELD, seed=0)
        original, calls = getattr(prior, failing), []

        def fails_once(*arguments, **named):
            calls.append(1)
            if len(calls) == fails_at:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return original(*arguments, **named)

        monkeypatch.setattr(prior, failing, fails_once)
        steps = list(distill(state, prior, "a red car", [], DISTILL, FIELD, CAMERAS, 3))
        return state, steps, [p.detach() for p in (*state.particles[0].parameters(), *state.variational)]

    _, expected_steps, expected = run(fails_at=0)
    state, steps, found = run(fails_at=2)  # of the variational network: when it is trained
    assert all(map(torch.equal, expected, found))
    assert steps == expected_steps
    assert state.samples_per_chunk == (FIELD.samples_per_chunk // 2 if failing == "encode" else FIELD.samples_per_chunk)


def test_memory_that_never_suffices_is_an_error_after_the_smallest_chunk(v_prior_folder, monkeypatch) -> None:
    prior = prior_in(v_prior_folder, "float32")
    state = create_state(prior, [], DISTILL, FIELD, seed=0)

    def fail(images):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(prior, "encode", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(distill(state, prior, "a red car", [], DISTILL, FIELD, CAMERAS, 1))
