"""Laws of the statistics of a comparison."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from redream.metrics.comparison import Row, best_column, compare, mean_interval, paired_difference, prompt_means

NUM_PROMPTS = 24


def rows(column: str, values: dict[str, list[float]], metric: str = "clip_score_a") -> list[Row]:
    return [
        Row(column=column, prompt=prompt, seed=seed, metrics={metric: value} if math.isfinite(value) else {})
        for prompt, found in values.items()
        for seed, value in enumerate(found)
    ]


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    """Over 300 draws of 24 values; the standard error of the share is 1.3 points."""
    draw = np.random.default_rng(0)
    intervals = [mean_interval(list(draw.normal(1.0, 2.0, NUM_PROMPTS))) for _ in range(300)]
    assert 0.92 <= np.mean([each.low <= 1.0 <= each.high for each in intervals]) <= 0.98


def test_the_interval_of_many_values_is_scipys_and_students():
    values = np.random.default_rng(1).normal(0.3, 0.1, 400)
    found = mean_interval(list(values))
    ours = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    students = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    width = students[1] - students[0]
    for low, high in ((ours.low, ours.high), students):
        assert abs(found.low - low) < 0.03 * width and abs(found.high - high) < 0.03 * width


def test_equal_values_have_a_narrow_interval_and_few_values_none():
    same = mean_interval([0.5] * 5)
    assert (same.mean, same.low, same.high) == (0.5, 0.5, 0.5)
    few = mean_interval([0.25, 0.5, 0.5, 0.75])
    assert few.mean == 0.5 and math.isnan(few.low) and math.isnan(mean_interval([]).mean)


def test_seeds_are_averaged_within_their_prompt_and_failures_left_out():
    found = prompt_means(rows("a", {"x": [1.0, 3.0], "y": [5.0, math.nan]}), "a", "clip_score_a")
    assert found == {"x": 2.0, "y": 5.0}


@pytest.mark.parametrize(("metric", "wins", "losses"), [("clip_score_a", 8, 1), ("a_lpips_a", 1, 8)])
def test_differences_are_taken_prompt_by_prompt_and_better_means_less_for_some_metrics(
    metric: str, wins: int, losses: int
):
    reference = {str(number): [float(number)] for number in range(10)}
    other = {str(number): [number + (0.5 if number < 8 else -0.5)] for number in range(9)}  # the last one failed
    found = paired_difference(rows("a", reference, metric) + rows("b", other, metric), metric, "b", "a")
    assert (found.wins, found.losses, found.interval.num_prompts) == (wins, losses, 9)
    assert found.p_value == pytest.approx(2 * (1 + 9) / 2**9)  # of 8 or more equal signs among 9
    assert found.interval.mean == pytest.approx(3.5 / 9)


def test_a_comparison_counts_what_could_not_be_made_and_names_the_best():
    made = rows("a", {"x": [0.2], "y": [math.nan]}) + rows("b", {"x": [0.4], "y": [0.3]})
    found = compare(made, ["a", "b"])
    assert found.num_failed == {"a": 1, "b": 0} and best_column(found, "clip_score_a") == "b"
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(rows("a", {"x": [math.nan]}), ["a"])
