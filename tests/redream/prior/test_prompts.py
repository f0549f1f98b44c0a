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


@pytest.mark.parametrize("kind", ["plain", "worded", "learned"])
def test_a_prompt_of_any_length_ends_with_the_end_token(prior, kind) -> None:
    tokenizer, seen = prior.tokenizer, []
    prefixes = ViewPrefixes.of_words(tokenizer, prior.text_encoder) if kind == "learned" else None
    embeddings = prior.text_encoder.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    lengths = [1, 5, *range(tokenizer.model_max_length - 10, tokenizer.model_max_length + 2), 100, 300]
    try:
        for num_words in lengths:
            embed(prior, ["car " * num_words], None if kind == "plain" else ["front"], prefixes)
    finally:
        hook.remove()
    assert len(seen) == len(lengths)
    for ids, num_words in zip(seen, lengths, strict=True):
        row = ids[0].tolist()
        assert len(row) == tokenizer.model_max_length and row[0] == tokenizer.bos_token_id
        end = row.index(tokenizer.eos_token_id)
        assert set(row[end + 1 :]) <= {tokenizer.pad_token_id}, num_words
        if num_words >= tokenizer.model_max_length:
            assert end == len(row) - 1


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


def test_a_learned_prefix_reaches_its_own_view_also_without_gradients(epsilon_prior_folder) -> None:
    prior = StableDiffusionPrior(PriorConfig(model=str(epsilon_prior_folder)))
    prior.prefixes = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder)
    before = prior.prompt_embeds("a red car")
    with torch.no_grad():
        prior.prefixes.embeds[VIEW_NAMES.index("back")] += 1.0
    after = prior.prompt_embeds("a red car")
    has_moved = [not torch.equal(*pair) for pair in zip(before.by_view, after.by_view, strict=True)]
    assert [name for name, moved in zip(VIEW_NAMES, has_moved, strict=True) if moved] == ["back"]
    assert torch.equal(before.plain, after.plain) and torch.equal(before.uncond, after.uncond)


def test_an_overhead_camera_is_named_so_whatever_its_azimuth() -> None:
    assert set(camera_views(orbit(4, 70.0, 1.5, 45.0, 8), CameraConfig())) == {"overhead"}


def test_a_tokenizer_that_fills_up_with_another_token_keeps_the_end_behind_a_learned_prefix(
    epsilon_prior_folder,
) -> None:
    prior = StableDiffusionPrior(PriorConfig(model=str(epsilon_prior_folder)))
    prior.tokenizer.pad_token = "!"  # as Stable Diffusion 2 has it
    prefixes, seen = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder), []
    embeddings = prior.text_encoder.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    lengths = range(prior.tokenizer.model_max_length - 8, prior.tokenizer.model_max_length)
    for num_words in lengths:
        embed(prior, ["car " * num_words], ["front"], prefixes)
    hook.remove()
    assert all(prior.tokenizer.eos_token_id in ids[0].tolist() for ids in seen) and len(seen) == len(lengths)
