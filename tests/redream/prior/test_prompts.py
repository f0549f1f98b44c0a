import pytest
import torch

from redream.cameras import orbit
from redream.prior.prompts import VIEW_NAMES, ViewPrefixes, camera_views, embed_prompts
from redream.prior.stable_diffusion import StableDiffusionPrior
from redream.settings import CameraConfig, PriorConfig


@pytest.fixture(scope="module")
def prior(epsilon_prior_folder) -> StableDiffusionPrior:
    return StableDiffusionPrior(PriorConfig(model=str(epsilon_prior_folder)))


def embed(prior, prompts, views=None, prefixes=None) -> torch.Tensor:
    return embed_prompts(prior.tokenizer, prior.text_encoder, prompts, views, prefixes)


def test_a_prefix_stands_before_the_prompt(prior) -> None:
    assert torch.equal(embed(prior, ["a red car"], ["back"]), embed(prior, ["back view of a red car"]))


def test_learned_prefixes_start_as_their_words(prior) -> None:
    prefixes = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder)
    views = ["front", "side", "back"]
    learned = embed(prior, ["a red car"] * 3, views, prefixes)
    assert torch.allclose(learned, embed(prior, ["a red car"] * 3, views), atol=1e-6)


def test_gradients_reach_the_prefix_of_the_view_that_was_named_and_no_other(prior) -> None:
    prefixes = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder)
    embed(prior, ["a red car"], ["side"], prefixes).square().sum().backward()
    assert prefixes.embeds.grad is not None
    moved = prefixes.embeds.grad.abs().sum(dim=(1, 2)) > 0
    assert [name for name, has_moved in zip(VIEW_NAMES, moved, strict=True) if has_moved] == ["side"]


def test_a_prompt_that_is_too_long_still_ends_with_the_end_token(prior) -> None:
    prefixes = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder)
    embeds = embed(prior, ["a red car with wheels " * 30], ["front"], prefixes)
    assert embeds.shape == (1, prior.tokenizer.model_max_length, 16) and embeds.isfinite().all()


def test_the_text_encoder_is_as_before_after_a_prefixed_call(prior) -> None:
    before = embed(prior, ["a red car"])
    embed(prior, ["a red car"], ["front"], ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder))
    assert torch.equal(embed(prior, ["a red car"]), before)


def test_cameras_of_an_orbit_name_their_views() -> None:
    assert camera_views(orbit(4, 15.0, 1.5, 45.0, 8), CameraConfig()) == ["front", "side", "back", "side"]


def test_prompt_embeds_pick_by_view_name(prior) -> None:
    embeds = prior.prompt_embeds("a red car")
    assert torch.equal(embeds.cond(["back", "front"]), embeds.by_view[[2, 0]])
    assert torch.equal(embeds.uncond, embed(prior, [""]))
