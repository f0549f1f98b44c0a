"""Laws of what cosines are worth, on planted vectors."""

from __future__ import annotations

import numpy as np
import pytest

from redream.retrieval.calibration import Calibration, best_cosines

NUM, DIM = 60, 32


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def planted(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return captions, and renders that say the same but for noise."""
    rng = np.random.default_rng(seed)
    captions = unit(rng.normal(size=(NUM, DIM)))
    return captions, unit(captions + noise * rng.normal(size=(NUM, DIM)))[:, None]


def calibration(captions: np.ndarray, renders: np.ndarray) -> Calibration:
    return Calibration.of(captions, renders, [f"a thing{number}" for number in range(len(captions))])


def test_renders_that_say_what_captions_say_outweigh_chance_and_unrelated_ones_weigh_nothing() -> None:
    captions, renders = planted(noise=0.2)
    known = calibration(captions, renders)
    own = [known.log_odds(captions[i], renders[i, 0] @ captions[i : i + 1].T, renders[i : i + 1])[0] for i in range(9)]
    assert known.separation > 3 and min(own) > known.convincing
    _, strange = planted(noise=0.2, seed=1)
    unknown = calibration(captions, strange)
    assert unknown.separation < 0.3
    odds = unknown.log_odds(captions[0], best_cosines(captions[:1], strange)[0], strange)
    assert np.abs(odds).max() < unknown.convincing


def test_a_render_that_is_near_every_caption_gains_nothing_by_it() -> None:
    captions, renders = planted(noise=0.2)
    captions = unit(captions + 0.6 * captions.mean(axis=0) + 0.2)
    renders[7] = unit(captions.mean(axis=0, keepdims=True))
    known = calibration(captions, renders)
    query = captions[3]
    cosines = best_cosines(query[None], renders)[0]
    assert known.log_odds(query, cosines, renders)[7] < known.log_odds(query, cosines, renders)[3]


def test_the_best_view_counts_where_several_are_kept() -> None:
    captions, renders = planted(noise=0.2)
    views = np.concatenate([-renders, renders], axis=1)
    of_views, of_renders = best_cosines(captions, views), best_cosines(captions, renders)
    np.testing.assert_allclose(of_views.diagonal(), of_renders.diagonal(), rtol=1e-5)


@pytest.mark.parametrize("num", [1, 2])
def test_an_index_too_small_to_compare_leaves_the_choice_to_words(num: int) -> None:
    captions, renders = planted(noise=0.2)
    known = calibration(captions[:num], renders[:num])
    assert known.log_odds(captions[0], np.ones(1), renders[:1]) == pytest.approx(0)
