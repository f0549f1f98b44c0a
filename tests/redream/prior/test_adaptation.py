import math
from dataclasses import replace

import pytest
import torch

from redream.cameras import cameras_at, sample_cameras
from redream.images import Rendering
from redream.prior.adaptation import _encode_views, _Example, _held_out_loss, _split, adapt_prior, sample_views
from redream.prior.prompts import VIEW_NAMES, ViewPrefixes
from redream.prior.stable_diffusion import StableDiffusionPrior, sample_images
from redream.render.mesh import AssetViews
from redream.settings import AdaptationConfig, CameraConfig, PriorConfig

CAMERAS = CameraConfig()
CONFIG = AdaptationConfig(
    rank=2,
    num_steps=20,
    batch_size=4,
    validate_every=5,
    lr_lora=1e-2,
    lr_tokens=1e-2,
    num_samples_per_view=2,
    sample_guidance_scale=3.0,
    sample_steps=3,
)


def views(generator: torch.Generator, num_views: int = 20) -> AssetViews:
    opacity = torch.ones(num_views, 16, 16, 1)
    rgb = torch.rand(num_views, 1, 1, 3, generator=generator).expand(-1, 16, 16, 3).contiguous()
    return AssetViews(Rendering(rgb, opacity, opacity), sample_cameras(CAMERAS, num_views, 16, generator))


@pytest.fixture
def prior(v_prior_folder) -> StableDiffusionPrior:
    return StableDiffusionPrior(PriorConfig(model=str(v_prior_folder)))


def adapt(prior, config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(adapt_prior(prior, [views(generator)], ["a red car"], config, CAMERAS, (0.7, 1.0), generator))


def test_adaptation_lowers_the_loss_on_held_out_views(prior) -> None:
    steps = adapt(prior, replace(CONFIG, num_steps=12))
    held_out = [loss for step in steps if (loss := step.held_out_loss) is not None]
    assert min(held_out[1:]) < held_out[0]
    assert [(step.step, step.is_last) for step in steps] == [(step, step == 12) for step in range(13)]
    assert [step.step for step in steps if step.held_out_loss is not None] == [0, 5, 10, 12]
    assert [step.step for step in steps if step.is_best] == [
        step.step for number, step in enumerate(steps) if step.held_out_loss is not None
        and all(step.held_out_loss < (other.held_out_loss or math.inf) for other in steps[:number])
    ]  # fmt: skip


def test_the_best_state_is_kept_and_not_the_last(prior) -> None:
    config = replace(CONFIG, lr_lora=0.3, lr_tokens=0.3, num_steps=14, validate_every=1, patience=20)
    held_out_losses = [loss for step in adapt(prior, config) if (loss := step.held_out_loss) is not None]
    assert held_out_losses[-1] > min(held_out_losses)  # it overshot, or this test says nothing
    generator = torch.Generator().manual_seed(0)  # draws what the adaptation drew
    examples = _encode_views(prior, [views(generator)], CAMERAS, (0.7, 1.0), generator)
    _, held_out = _split(examples, config.held_out_share, generator)
    assert _held_out_loss(prior, held_out, ["a red car"]) == pytest.approx(min(held_out_losses), rel=1e-5)


def test_it_stops_when_patience_ends(prior) -> None:
    steps = adapt(prior, replace(CONFIG, lr_lora=0.0, lr_tokens=0.0, validate_every=2, patience=3))
    assert steps[-1].is_last and steps[-1].step == 6


def test_only_the_lora_and_the_prefixes_learn(prior) -> None:
    before = {name: value.clone() for name, value in prior.unet.state_dict().items()}
    words = prior.text_encoder.get_input_embeddings().weight.clone()
    adapt(prior, replace(CONFIG, num_steps=3))
    after = {
        name.replace(".base_layer", ""): value for name, value in prior.unet.state_dict().items() if "lora" not in name
    }
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(prior.text_encoder.get_input_embeddings().weight, words)


def test_adaptation_is_reproducible(v_prior_folder) -> None:
    losses = []
    for _ in range(2):
        prior = StableDiffusionPrior(PriorConfig(model=str(v_prior_folder)))
        losses.append([step.loss for step in adapt(prior, replace(CONFIG, num_steps=4))])
    assert losses[0] == losses[1]


def test_samples_come_in_rows_of_front_side_and_back(prior) -> None:
    images = sample_views(prior, "a red car", CONFIG, seed=0)
    assert images.shape == (6, 3, 16, 16) and images.min() >= 0 and images.max() <= 1


AZIMUTHS = (0.0, 180.0)  # front and back


def coded_views(number: int, num_views: int = 12) -> AssetViews:
    """Views whose middle tells the asset (red) and whether they show the back (green); the rest is background."""
    azimuth = torch.tensor(AZIMUTHS).repeat(num_views // 2)
    camera = cameras_at(
        azimuth, torch.zeros(num_views), torch.full((num_views,), 1.5), torch.full((num_views,), 45.0), 16
    )
    opacity = torch.zeros(num_views, 16, 16, 1)
    opacity[:, 4:12, 4:12] = 1
    rgb = torch.stack([torch.full((num_views,), 0.9 * number), azimuth / 200, torch.zeros(num_views)], dim=-1)
    return AssetViews(Rendering(opacity * rgb[:, None, None], opacity, opacity), camera)


def test_every_example_has_its_own_caption_view_and_background(prior, monkeypatch) -> None:
    captions = ["a red car", "a blue owl"]
    embed, examples, spoken, times = prior.embed, [], [], []

    def encode(images):
        x_0 = torch.zeros(len(images), 4, 2, 2)
        x_0[:, 0], x_0[:, 1] = images[:, 0, 8, 8, None, None], images[:, 1, 8, 8, None, None]
        x_0[:, 2] = images[:, 0, 0, 0, None, None]
        return x_0

    def recording_embed(prompts, view_names=None):
        embeds = embed(prompts, view_names)
        spoken.append((prompts, view_names, embeds.detach()))
        return embeds

    def target(x_0, t, eps):
        examples.append(x_0)
        times.append(set(t.tolist()))
        return eps

    def predict(x_t, t, cond):
        prompts, views, embeds = spoken[-1]
        for row, x_0 in zip(cond.detach(), examples[-1], strict=True):
            (place,) = [i for i, embedded in enumerate(embeds) if torch.equal(row, embedded)]
            number, is_back = round(float(x_0[0, 0, 0]) / 0.9), float(x_0[1, 0, 0]) > 0.5
            assert (prompts[place], views[place]) == (captions[number], "back" if is_back else "front")
        return x_t * cond.mean(dim=(1, 2))[:, None, None, None] * 0.1

    for name, function in (
        ("encode", encode), ("embed", recording_embed), ("training_target", target), ("predict_target", predict),
    ):  # fmt: skip
        monkeypatch.setattr(prior, name, function)
    config = replace(CONFIG, num_steps=6, held_out_share=0.25)
    generator = torch.Generator().manual_seed(0)
    both = [coded_views(0), coded_views(1)]
    steps = adapt_prior(prior, both, captions, config, CAMERAS, (0.3, 0.7), generator)
    assert len(list(steps)) == 7
    assert times[:5] == [{100}, {300}, {500}, {700}, {900}]  # of a thousand, for all held-out views
    seen = torch.cat([x_0[:, :3, 0, 0] for x_0 in examples])
    greys = seen[:, 2].unique()
    assert len(greys) > 10 and 0.3 <= greys.min() < 0.4 and 0.6 < greys.max() <= 0.7
    pairs = {(round(float(red) / 0.9), float(green) > 0.5) for red, green, _ in seen}
    assert pairs == {(0, False), (0, True), (1, False), (1, True)}


def test_the_prefixes_of_the_seen_views_learn_and_no_others(prior) -> None:
    generator = torch.Generator().manual_seed(0)
    both = [coded_views(0), coded_views(1)]
    steps = adapt_prior(prior, both, ["a red car", "a blue owl"], CONFIG, CAMERAS, (0.7, 1.0), generator)
    next(steps)
    words = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder).embeds
    assert torch.equal(prior.prefixes.embeds, words)
    for _ in range(3):
        next(steps)
    moved = (prior.prefixes.embeds - words).abs().amax(dim=(1, 2)) > 0
    assert [name for name, has_moved in zip(VIEW_NAMES, moved, strict=True) if has_moved] == ["front", "back"]


def test_samples_of_a_view_follow_its_prefix_and_the_seed(prior) -> None:
    first, again = (sample_views(prior, "a red car", CONFIG, seed=0) for _ in range(2))
    other = sample_views(prior, "a red car", CONFIG, seed=1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    embeds = prior.prompt_embeds("a red car")
    generator = torch.Generator().manual_seed(0)
    backs = sample_images(prior, embeds.cond(["back"] * 2), embeds.uncond, 3.0, CONFIG.sample_steps, generator)
    torch.testing.assert_close(first[4:], backs)


@pytest.mark.parametrize(("share", "num_held_out"), [(0.0, 1), (0.4, 3), (1.0, 6)])
def test_the_split_keeps_every_view_with_its_words_and_leaves_one_on_each_side(share, num_held_out, generator) -> None:
    names = [VIEW_NAMES[i % 4] for i in range(7)]
    examples = _Example(torch.arange(7.0)[:, None, None, None], [10 + i for i in range(7)], names)
    training, held_out = _split(examples, share, generator)
    assert (len(training.view), len(held_out.view)) == (7 - num_held_out, num_held_out)
    rows = [
        (int(x), index, view)
        for part in (training, held_out)
        for x, index, view in zip(part.x_0.flatten(), part.caption_index, part.view, strict=True)
    ]
    assert sorted(rows) == [(i, 10 + i, names[i]) for i in range(7)] and rows != sorted(rows)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_some_views_are_trained_on_and_some_held_out_at_any_share(prior, share: float) -> None:
    steps = adapt(prior, replace(CONFIG, held_out_share=share, num_steps=1))
    assert steps[-1].step == 1
    assert all(math.isfinite(value) for value in (steps[-1].loss, steps[-1].held_out_loss or math.nan))
