from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from redream.cameras import orbit
from redream.prior.patch_codec import PatchCodec
from redream.prior.stable_diffusion import ADAPTER, VARIATIONAL, StableDiffusionPrior, sample_images
from redream.settings import PriorConfig


def load(folder) -> StableDiffusionPrior:
    return StableDiffusionPrior(PriorConfig(model=str(folder)))


@pytest.fixture(params=["epsilon", "v"])
def prior(request, epsilon_prior_folder, v_prior_folder) -> StableDiffusionPrior:
    return load(epsilon_prior_folder if request.param == "epsilon" else v_prior_folder)


@pytest.fixture
def noised(prior, generator):
    x_0 = torch.randn(2, 4, 2, 2, generator=generator)
    eps = torch.randn(2, 4, 2, 2, generator=generator)
    t = torch.tensor([20, 700])
    return x_0, eps, t, prior.add_noise(x_0, t, eps)


def test_noising_is_the_schedulers_own(prior, noised) -> None:
    x_0, eps, t, x_t = noised
    assert torch.allclose(x_t, prior.scheduler.add_noise(x_0, eps, t), atol=1e-6)


def test_whatever_the_network_predicts_is_handed_out_as_epsilon(prior, noised) -> None:
    # If the network returned exactly its training target, the epsilon handed out would be the true noise.
    x_0, eps, t, x_t = noised
    target = prior.training_target(x_0, t, eps)
    assert torch.allclose(prior._to_eps(target, x_t, t), eps, atol=1e-5)


def test_guided_prediction_combines_two_plain_ones(prior, noised) -> None:
    _, _, t, x_t = noised
    cond, uncond = prior.embed(["a red car", "a blue owl"]), prior.embed([""])
    guided = prior.predict_eps(x_t, t, cond, uncond, 7.5)
    plain = prior.predict_eps(x_t, t, cond, uncond, 1.0)
    empty = prior.predict_eps(x_t, t, uncond.expand_as(cond), uncond, 1.0)
    assert torch.allclose(guided, empty + 7.5 * (plain - empty), atol=1e-4)


def test_our_sampler_is_ddim_as_diffusers_has_it(prior) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = sample_images(prior, prior.embed(["a red car"]), prior.embed([""]), 3.0, 9, generator)
    x_t = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    config = prior.scheduler.config
    scheduler: Any = DDIMScheduler.from_config(config, set_alpha_to_one=False, steps_offset=0)
    scheduler.set_timesteps(9)  # its steps are 111 long; where it starts is ours to choose
    embeds = torch.cat([prior.embed([""]), prior.embed(["a red car"])])
    for t in torch.arange(999, 0, -111):
        with torch.no_grad():
            uncond, cond = prior.unet(torch.cat([x_t, x_t]), t, embeds).sample.chunk(2)
        x_t = scheduler.step(uncond + 3.0 * (cond - uncond), t, x_t).prev_sample
    assert torch.allclose(ours, prior.decode(x_t), atol=2e-3)


def test_latents_are_the_pipelines_own_scaled_ones(prior, generator) -> None:
    images = torch.rand(2, 3, 16, 16, generator=generator)
    scale = prior.vae.config.scaling_factor
    assert abs(scale - 1) > 0.1  # or this test says nothing
    expected = prior.vae.encode(2 * images - 1).latent_dist.mode() * scale
    torch.testing.assert_close(prior.encode(images), expected)
    decoded = prior.vae.decode(expected / scale).sample
    torch.testing.assert_close(prior.decode(expected), ((decoded + 1) / 2).clamp(0, 1))


def test_images_of_another_size_are_resized_to_the_models_own(prior, generator) -> None:
    images = torch.rand(1, 3, 24, 24, generator=generator)
    resized = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(prior.encode(images), prior.encode(resized))


def test_decoding_undoes_encoding_for_a_codec_with_a_full_basis(prior, generator) -> None:
    codec = PatchCodec(latent_channels=192, scaling_factor=0.3)
    with torch.no_grad():
        codec.basis.copy_(torch.eye(192).reshape(192, 3, 8, 8))
        codec.mean.copy_(torch.tensor([0.1, -0.2, 0.3])[:, None, None])
    prior.vae = codec.requires_grad_(False)
    images = torch.rand(2, 3, 16, 16, generator=generator)
    torch.testing.assert_close(prior.decode(prior.encode(images)), images, atol=1e-5, rtol=0)


def test_encoding_passes_gradients_to_the_images(prior, generator) -> None:
    images = torch.rand(1, 3, 12, 12, generator=generator, requires_grad=True)
    prior.encode(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_a_new_lora_changes_nothing(prior, noised) -> None:
    _, _, t, x_t = noised
    cond = prior.embed(["a red car", "a blue owl"])
    before = prior.predict_eps(x_t, t, cond, cond[:1], 1.0)
    prior.add_lora(VARIATIONAL, 2, seed=0)
    camera = orbit(2, 15.0, 1.5, 45.0, 16)
    assert torch.allclose(prior.predict_eps_variational(x_t, t, cond, camera), before, atol=1e-6)
    assert torch.allclose(prior.predict_eps(x_t, t, cond, cond[:1], 1.0), before, atol=1e-6)


def test_the_variational_network_sees_the_camera_and_leaves_the_prior_alone(prior, noised) -> None:
    _, _, t, x_t = noised
    cond = prior.embed(["a red car", "a blue owl"])
    before = prior.predict_eps(x_t, t, cond, cond[:1], 1.0)
    parameters = prior.add_lora(VARIATIONAL, 2, seed=0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1)
    first, second = (prior.predict_eps_variational(x_t, t, cond, orbit(2, e, 1.5, 45.0, 16)) for e in (0.0, 40.0))
    none = prior.predict_eps_variational(x_t, t, cond, None)
    assert not torch.allclose(first, second) and not torch.allclose(first, none)
    assert torch.allclose(prior.predict_eps(x_t, t, cond, cond[:1], 1.0), before, atol=1e-6)


def test_two_loras_train_apart(prior, noised) -> None:
    _, eps, t, x_t = noised
    cond = prior.embed(["a red car", "a blue owl"]).detach()
    adapter, variational = prior.add_lora(ADAPTER, 2, seed=0), prior.add_lora(VARIATIONAL, 2, seed=1)
    (prior.predict_eps_variational(x_t, t, cond, None) - eps).square().sum().backward()
    assert all(p.grad is None for p in adapter) and any(p.grad is not None for p in variational)
    for parameter in variational:
        parameter.grad = None
    prior.predict_target(x_t, t, cond).square().sum().backward()
    assert any(p.grad is not None for p in adapter) and all(p.grad is None for p in variational)


def test_loras_are_reproducible_and_leave_the_global_generator_alone(v_prior_folder) -> None:
    state = torch.get_rng_state()
    first, second = (load(v_prior_folder).add_lora(ADAPTER, 2, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_saved_adapter_loads_here_and_in_plain_diffusers(prior, noised, tmp_path) -> None:
    from redream.prior.prompts import ViewPrefixes

    _, _, t, x_t = noised
    parameters = prior.add_lora(ADAPTER, 2, seed=0)
    prior.prefixes = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder)
    with torch.no_grad():
        for parameter in [*parameters, prior.prefixes.embeds]:
            parameter.add_(0.05)
    cond = prior.embed(["a red car"] * 2, ["front", "back"]).detach()
    expected = prior.predict_eps(x_t, t, cond, cond[:1], 1.0)
    prior.save_adapter(tmp_path)

    again = load(prior.model)
    again.load_adapter(tmp_path)
    cond = again.embed(["a red car"] * 2, ["front", "back"])
    assert torch.allclose(again.predict_eps(x_t, t, cond, cond[:1], 1.0), expected, atol=1e-6)

    elsewhere = StableDiffusionPipeline.from_pretrained(prior.model, safety_checker=None)
    elsewhere.load_lora_weights(tmp_path)
    elsewhere.load_textual_inversion(tmp_path / "back.safetensors", token="<back-view>")
    prompt = elsewhere.maybe_convert_prompt("<back-view> a red car", elsewhere.tokenizer)
    ids = elsewhere.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        embeds = elsewhere.text_encoder(ids).last_hidden_state
        assert torch.allclose(embeds, cond[1:], atol=1e-5)
        output = elsewhere.unet(x_t[1:], t[1:], embeds).sample
    assert torch.allclose(prior._to_eps(output, x_t[1:], t[1:]), expected[1:], atol=1e-5)


def test_a_prior_that_is_nowhere_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"set prior\.model"):
        StableDiffusionPrior(PriorConfig(model="no/such-model"))


def test_a_folder_may_have_an_at_sign_in_its_name(epsilon_prior_folder, tmp_path) -> None:
    (tmp_path / "prior@v2").symlink_to(epsilon_prior_folder)
    assert StableDiffusionPrior(PriorConfig(model=str(tmp_path / "prior@v2"))).image_size == 16
