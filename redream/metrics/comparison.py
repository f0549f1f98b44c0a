"""Several ways of making the same objects, compared: means, paired differences and their 95 % intervals.

A column is one way (a method, or a method with other settings). Prompts are the sample: the value of a column at a
prompt is the mean over its seeds, intervals come from a bootstrap over prompts with their seeds, and columns are
compared at the prompts that both have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import stats

from redream.metrics.kinds import kind_of

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999
MIN_PROMPTS = 5  # of an interval: fewer values can be resampled in too few ways


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One object: what a column made of a prompt with a seed. One that could not be made has no metrics."""

    column: str
    prompt: str
    seed: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean over prompts with its 95 % interval, which is NaN where there are fewer than five prompts."""

    mean: float
    low: float
    high: float
    num_prompts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much higher a metric is in `column` than in `reference`, prompt by prompt.

    `wins` and `losses` count the prompts at which `column` is better and worse; `p_value` is that of the two-sided sign
    test between them.
    """

    metric: str
    column: str
    reference: str
    interval: Interval
    wins: int
    losses: int
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is known of each column; the first column is the reference of the differences."""

    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    num_failed: Mapping[str, int]  # objects without metrics, by column
    means: Mapping[str, Mapping[str, Interval]]  # by metric and column
    differences: tuple[Difference, ...]


def compare(rows: Sequence[Row], columns: Sequence[str]) -> Comparison:
    """Compare columns over their prompts.

    Raises:
        ValueError: no object has a metric.
    """
    metrics = tuple(dict.fromkeys(name for row in rows for name in row.metrics))
    if not metrics:
        raise ValueError("none of the objects has a metric, so that there is nothing to compare")
    means = {
        metric: {column: mean_interval(list(prompt_means(rows, column, metric).values())) for column in columns}
        for metric in metrics
    }
    differences = [paired_difference(rows, metric, column, columns[0]) for metric in metrics for column in columns[1:]]
    return Comparison(
        columns=tuple(columns),
        metrics=metrics,
        rows=tuple(rows),
        num_failed={column: sum(row.column == column and not row.metrics for row in rows) for column in columns},
        means=means,
        differences=tuple(differences),
    )


def prompt_means(rows: Iterable[Row], column: str, metric: str) -> dict[str, float]:
    """Return the mean over seeds of a metric, by prompt; prompts without a value are left out."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.column == column and metric in row.metrics:
            values.setdefault(row.prompt, []).append(row.metrics[metric])
    return {prompt: fmean(found) for prompt, found in values.items()}


def paired_difference(rows: Sequence[Row], metric: str, column: str, reference: str) -> Difference:
    """Compare two columns at the prompts that both have."""
    ours, theirs = (prompt_means(rows, name, metric) for name in (column, reference))
    differences = [ours[prompt] - theirs[prompt] for prompt in ours if prompt in theirs]
    sign = 1 if is_higher_better(metric) else -1
    wins = sum(sign * difference > 0 for difference in differences)
    losses = sum(sign * difference < 0 for difference in differences)
    return Difference(
        metric=metric,
        column=column,
        reference=reference,
        interval=mean_interval(differences),
        wins=wins,
        losses=losses,
        p_value=float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    )


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with its bootstrap interval.

    The percentile interval of a bootstrap is too narrow for few values (92 % instead of 95 % at 24 of them), so its
    level is widened as Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), Sec. 5.3.3 does.
    """
    number = len(values)
    mean = fmean(values) if values else float("nan")
    if number < MIN_PROMPTS or min(values) == max(values):
        edge = mean if number >= MIN_PROMPTS else float("nan")
        return Interval(mean=mean, low=edge, high=edge, num_prompts=number)
    tail = stats.t.ppf((1 + CONFIDENCE) / 2, number - 1) * np.sqrt(number / (number - 1))
    found = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=1 - 2 * float(stats.norm.sf(tail)),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high), num_prompts=number)


def best_column(comparison: Comparison, metric: str) -> str:
    """Return the column with the best mean of a metric."""
    known = {column: found.mean for column, found in comparison.means[metric].items() if found.num_prompts}
    return (max if is_higher_better(metric) else min)(known, key=lambda column: known[column])


def is_higher_better(metric: str) -> bool:
    """Tell whether an object is better for a higher value, as with CLIP scores; of the others less is better."""
    kind = kind_of(metric)
    return kind is not None and kind.is_higher_better
