"""Lightweight adaptation of the 2D prior to the retrieved assets (ReDream, Sec. 4.4, Eq. 5).

    min over omega, e_psi of  E_{n, psi, t, eps} || eps_{prior, omega}(x_t; [e_psi ; c^(n)], t) - eps ||^2

omega is a LoRA in the UNet, e_psi the tokens of each view's prefix, c^(n) the asset's own caption, and x_t the noised
render of asset n from psi. Where the prior predicts v, so does the loss. Some views are held out; training stops when
they no longer improve, and the best state is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from redream.devices import in_smaller_chunks, send
from redream.images import composite, to_images
from redream.prior.precision import LossScale, gradient_norm
from redream.prior.prompts import VIEW_NAMES, ViewPrefixes, camera_views
from redream.prior.stable_diffusion import ADAPTER, StableDiffusionPrior, sample_images
from redream.render.mesh import AssetViews
from redream.settings import AdaptationConfig, CameraConfig

ENCODE_BATCH = 8  # views per pass through the codec, fewer where they are large
HELD_OUT_POSITIONS = 2**15  # of latents per pass through the UNet: eight views of a 512-pixel model
HELD_OUT_T = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the timesteps at which each held-out view is looked at

Progress = Callable[[Sequence[Any], str], Iterable[Any]]  # passes items on, and shows a label and how many have come


def silently(items: Sequence[Any], label: str) -> Iterable[Any]:
    return items


@dataclass(frozen=True)
class AdaptStep:
    """One step; `held_out_loss` is there when the held-out views were looked at, `is_best` when they improved."""

    step: int
    loss: float
    held_out_loss: float | None
    is_best: bool
    is_last: bool
    num_skipped: int = 0  # steps so far that overflowed in float16 and changed nothing


@dataclass(frozen=True, eq=False)
class _Example:
    """The views as the prior sees them, with the caption and the view's name of each."""

    x_0: Float[Tensor, "views channels h w"]
    caption_index: list[int]
    view: list[str]

    def pick(self, indices: list[int]) -> _Example:
        rows = send(torch.tensor(indices), self.x_0.device)
        return _Example(self.x_0[rows], [self.caption_index[i] for i in indices], [self.view[i] for i in indices])


def adapt_prior(
    prior: StableDiffusionPrior,
    views: list[AssetViews],
    captions: list[str],
    config: AdaptationConfig,
    camera_config: CameraConfig,
    background_grey: tuple[float, float],
    generator: torch.Generator,
    progress: Progress = silently,
    extending: AbstractContextManager[object] = nullcontext(),  # noqa: B008  (it has no state)
) -> Iterator[AdaptStep]:
    """Add an adapter to `prior` and train it; when the generator is exhausted the prior holds the best one.

    Args:
        progress: shows what comes before the first step, which takes minutes on a CPU.
        extending: held while the network gets its adapter, which changes torch for the whole process for a moment.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    examples = _encode_views(prior, views, camera_config, background_grey, generator, progress)
    training, held_out = _split(examples, config.held_out_share, generator)
    with extending:
        prior.prefixes = ViewPrefixes.of_words(prior.tokenizer, prior.text_encoder).to(prior.device)
        lora = prior.add_lora(ADAPTER, config.rank, seed=_draw_seed(generator))
    trained = [*lora, prior.prefixes.embeds]
    optimizer = torch.optim.AdamW(
        [
            {"params": lora, "lr": config.lr_lora},
            {"params": [prior.prefixes.embeds], "lr": config.lr_tokens, "weight_decay": 0.0},
        ]
    )
    scale = LossScale(prior.dtype)
    views_per_pass = config.batch_size
    best_loss = _held_out_loss(prior, held_out, captions, progress)
    best = [parameter.detach().clone() for parameter in trained]
    yield AdaptStep(0, best_loss, best_loss, is_best=True, is_last=False)
    num_worse = 0
    for step in range(1, config.num_steps + 1):
        indices = torch.randint(len(training.view), (config.batch_size,), generator=generator).tolist()
        t, eps = _draw_noise(prior, training, config.batch_size, generator)
        batch = training.pick(indices)

        def attempt(num_views: int, batch: _Example = batch, t: Tensor = t, eps: Tensor = eps) -> Tensor:
            if num_views < config.batch_size:
                prior.save_memory()
            optimizer.zero_grad()
            return _add_gradients(prior, batch, captions, t, eps, num_views, scale, trained)

        loss, views_per_pass = in_smaller_chunks(attempt, views_per_pass, least=1)
        seen, is_finite = loss.item(), True
        if scale.is_used:
            is_finite = math.isfinite(seen) and math.isfinite(gradient_norm(trained))
        elif not math.isfinite(seen):
            raise FloatingPointError(f"adaptation: the loss is {seen} at step {step}")
        if not scale.must_skip(is_finite):
            optimizer.step()
        held_out_loss, is_best = None, False
        if step % config.validate_every == 0 or step == config.num_steps:
            held_out_loss = _held_out_loss(prior, held_out, captions)
            is_best = held_out_loss < best_loss
            num_worse = 0 if is_best else num_worse + 1
            if is_best:
                best_loss, best = held_out_loss, [parameter.detach().clone() for parameter in trained]
        is_last = step == config.num_steps or num_worse >= config.patience
        if is_last:
            with torch.no_grad():
                for parameter, value in zip(trained, best, strict=True):
                    parameter.copy_(value)
        yield AdaptStep(step, seen, held_out_loss, is_best, is_last, scale.num_skipped)
        if is_last:
            return


def sample_views(
    prior: StableDiffusionPrior, prompt: str, config: AdaptationConfig, seed: int, progress: Progress = silently
) -> Float[Tensor, "images 3 height width"]:
    """Draw `num_samples_per_view` images of each of front, side and back, one row per view; one noise for all views."""
    embeds, rows = prior.prompt_embeds(prompt), []
    for view in progress(VIEW_NAMES[:3], "drawing samples"):
        cond = embeds.cond([view] * config.num_samples_per_view)
        generator = torch.Generator().manual_seed(seed)
        scale, num_steps = config.sample_guidance_scale, config.sample_steps
        rows.append(sample_images(prior, cond, embeds.uncond, scale, num_steps, generator))
    return torch.cat(rows)


@torch.no_grad()
def _encode_views(
    prior: StableDiffusionPrior,
    views: list[AssetViews],
    camera_config: CameraConfig,
    background_grey: tuple[float, float],
    generator: torch.Generator,
    progress: Progress = silently,
) -> _Example:
    """Encode every view once, each before a grey of its own: encoding anew would cost more than the training."""
    low, high = background_grey
    caption_index, names = [], []
    batches: list[Tensor] = []
    for index, asset_views in enumerate(views):
        grey = low + (high - low) * torch.rand(len(asset_views.camera), 1, 1, 1, generator=generator)
        images = to_images(composite(asset_views.rendering, grey))
        batches += images.split(min(ENCODE_BATCH, prior.images_per_pass))
        caption_index += [index] * len(images)
        names += camera_views(asset_views.camera, camera_config)
    x_0 = [prior.encode(send(batch, prior.device)) for batch in progress(batches, "encoding views")]
    return _Example(torch.cat(x_0), caption_index, names)


def _split(examples: _Example, held_out_share: float, generator: torch.Generator) -> tuple[_Example, _Example]:
    order = torch.randperm(len(examples.view), generator=generator).tolist()
    num_held_out = min(max(1, round(held_out_share * len(order))), len(order) - 1)  # something is left to train on
    return examples.pick(order[num_held_out:]), examples.pick(order[:num_held_out])


def _draw_noise(
    prior: StableDiffusionPrior, examples: _Example, batch: int, generator: torch.Generator
) -> tuple[Int[Tensor, " batch"], Tensor]:
    t = torch.randint(len(prior.alphas_cumprod), (batch,), generator=generator)
    eps = torch.randn(batch, *examples.x_0.shape[1:], generator=generator)
    return send(t, prior.device), send(eps, prior.device)


def _denoising_loss(
    prior: StableDiffusionPrior, examples: _Example, captions: list[str], t: Int[Tensor, " batch"], eps: Tensor
) -> Float[Tensor, ""]:
    # A batch has few different prefixed captions: each is encoded once.
    keys = list(zip(examples.caption_index, examples.view, strict=True))
    distinct = list(dict.fromkeys(keys))
    embeds = prior.embed([captions[index] for index, _ in distinct], [view for _, view in distinct])
    cond = embeds[send(torch.tensor([distinct.index(key) for key in keys]), embeds.device)]
    target = prior.training_target(examples.x_0, t, eps)
    return F.mse_loss(prior.predict_target(prior.add_noise(examples.x_0, t, eps), t, cond), target)


def _add_gradients(
    prior: StableDiffusionPrior,
    batch: _Example,
    captions: list[str],
    t: Int[Tensor, " batch"],
    eps: Tensor,
    views_per_pass: int,
    scale: LossScale,
    trained: list[nn.Parameter],
) -> Float[Tensor, ""]:
    """Compute the gradients of a batch's mean loss, some views at a time, and return that loss."""
    num, losses = len(batch.view), []
    for rows in torch.arange(num).split(views_per_pass):
        part = batch if len(rows) == num else batch.pick(rows.tolist())
        loss = _denoising_loss(prior, part, captions, t[rows[0] : rows[-1] + 1], eps[rows[0] : rows[-1] + 1])
        loss = loss if len(rows) == num else loss * (len(rows) / num)
        scale.backward(loss)
        losses.append(loss.detach())
    scale.unscale(trained)
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


@torch.no_grad()
def _held_out_loss(
    prior: StableDiffusionPrior, held_out: _Example, captions: list[str], progress: Progress = silently
) -> float:
    """Return the mean loss over fixed timesteps and noise, so that only the weights can change it."""
    generator = torch.Generator().manual_seed(0)
    num, (height, width) = len(held_out.view), held_out.x_0.shape[-2:]
    batches = torch.arange(num).split(max(1, HELD_OUT_POSITIONS // (height * width)))
    losses = []
    for share in progress(HELD_OUT_T, "measuring held-out views"):
        eps = torch.randn(held_out.x_0.shape, generator=generator)
        for rows in batches:
            t = torch.full((len(rows),), int(share * len(prior.alphas_cumprod)), device=prior.device)
            loss = _denoising_loss(prior, held_out.pick(rows.tolist()), captions, t, send(eps[rows], prior.device))
            losses.append(loss * (len(rows) * len(batches) / num))  # a mean over views, as batches may differ in size
    return float(torch.stack(losses).mean())


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))
