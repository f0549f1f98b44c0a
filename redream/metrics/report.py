"""Evaluation of one object from its orbit views: every metric, by model, per view and on average (Sec. 4, Table 1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from redream.clip import Clip
from redream.metrics.a_lpips import ALpips
from redream.metrics.clip_score import clip_score
from redream.metrics.front_count import wrong_front_share
from redream.metrics.perceptual import PerceptualNet


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """Metrics of one object; keys of the mappings are model names. JSON-able.

    `clip_score` is higher-better in [-1, 1]; `a_lpips` (from 0) and `wrong_front_share` (in [0, 1]) are lower-better.
    """

    prompt: str
    num_views: int
    clip_score: dict[str, float]  # mean over views, by CLIP model
    clip_score_per_view: dict[str, tuple[float, ...]]
    a_lpips: dict[str, float]  # mean over adjacent pairs, by backbone
    a_lpips_per_pair: dict[str, tuple[float, ...]]
    wrong_front_share: float | None = None  # None where no judge was at hand

    def summary(self) -> dict[str, float]:
        """Return the averages under short metric keys, such as `clip_a` and `lpips_vgg`."""
        means = dict(zip(metric_keys("clip", self.clip_score), self.clip_score.values(), strict=True))
        means |= zip(metric_keys("lpips", self.a_lpips), self.a_lpips.values(), strict=True)
        return means if self.wrong_front_share is None else means | {"wrong_front_share": self.wrong_front_share}


def evaluate_views(
    prompt: str,
    images: Float[Tensor, "batch 3 height width"],
    clips: Mapping[str, Clip],
    a_lpips: Sequence[ALpips],
    close_loop: bool = False,
    judge: tuple[PerceptualNet, Float[Tensor, " batch"]] | None = None,
) -> EvaluationReport:
    """Score orbit views in [0, 1], given in the orbit's order.

    Args:
        clips: evaluation models by name, none of them the one used for retrieval.
        judge: the classifier that counts false fronts, and the views' `azimuth_deg`.
    """
    scores = {name: tuple(clip_score(images, prompt, clip).tolist()) for name, clip in clips.items()}
    distances = {metric.backbone: tuple(metric(images, close_loop).tolist()) for metric in a_lpips}
    return EvaluationReport(
        prompt=prompt,
        num_views=len(images),
        clip_score={name: _mean(values) for name, values in scores.items()},
        clip_score_per_view=scores,
        a_lpips={name: _mean(values) for name, values in distances.items()},
        a_lpips_per_pair=distances,
        wrong_front_share=wrong_front_share(images, judge[1], judge[0]) if judge else None,
    )


def metric_keys(metric: str, models: Iterable[str]) -> list[str]:
    """Join a metric with each of its models to keys of letters, digits and underscores.

    The model's last word tells models apart, such as `a` in `mini:clip-eval-a`; where it does not, its whole name does.
    """
    models = list(models)
    for words in (_last_word, str):
        keys = [f"{metric}_{re.sub(r'[^a-z0-9]+', '_', words(model).lower()).strip('_')}" for model in models]
        if len(set(keys)) == len(keys):
            break
    return keys


def _last_word(model: str) -> str:
    """Return the weights that a model's name ends with, without what says only what kind of model it is."""
    return re.sub(r"^(mini:)?((clip|eval|perceptual)-)*", "", model.rpartition("/")[2])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
