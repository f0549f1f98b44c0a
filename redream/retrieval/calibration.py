"""What a cosine of CLIP is worth in an index, measured on the index: how captions score renders of other objects.

A sample of assets gives cosines of captions with the renders of the same object and of others. Some captions are near
every render and some renders near every caption, which says nothing, so the means over others are subtracted:
    z(q, j) = (cos(q, j) - mean_k cos(q, k) - mean_i cos(i, j) + mean_ik cos(i, k)) / deviation.
Captions score other objects' renders with mean 0 and deviation 1, and their own with mean d. If both are normal, the
log-odds that j is what q means, against any other asset, are ln N(z; d, 1) / N(z; 0, 1) = d (z - d / 2), in nats like
BM25, so that the two add up. A CLIP that tells objects apart (d of 3 and more) outweighs a few words; outside its world
d is near 0, and words decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from redream.retrieval.nouns import named_things

SAMPLE = 256  # assets


@dataclass(frozen=True, eq=False)
class Calibration:
    """What is known of an index's cosines; `Calibration.of` measures it."""

    captions: Float[np.ndarray, "sample dim"]
    renders: Float[np.ndarray, "sample views dim"]
    mean: float  # cosine of captions with renders of other objects
    deviation: float  # of the same, without the means of caption and render
    separation: float  # d, at least
    num_kinds: int  # of things that the sample's captions name

    @classmethod
    def of(
        cls,
        captions: Float[np.ndarray, "sample dim"],
        renders: Float[np.ndarray, "sample views dim"],
        texts: Sequence[str],
    ) -> Calibration:
        """Measure a sample of an index: its vectors, and captions as text, also of assets without a picture."""
        num = len(captions)
        kinds = {thing for text in texts for thing in named_things(text)}
        if num < 3:  # nothing to compare with
            return cls(captions, renders, 0.0, 1.0, 0.0, max(len(kinds), 1))
        cosines = best_cosines(captions, renders)
        is_other = ~np.eye(num, dtype=bool)
        others = np.where(is_other, cosines, 0.0)
        mean = float(others.sum() / is_other.sum())
        of_caption, of_render = others.sum(axis=1) / (num - 1), others.sum(axis=0) / (num - 1)
        centered = cosines - of_caption[:, None] - of_render + mean
        deviation = max(float(centered[is_other].std()), 1e-6)
        # Two standard errors below the mean: what a few assets seem to say is chance.
        separation = max(float(np.diag(centered).mean()) / deviation - 2.0 / math.sqrt(num), 0.0)
        return cls(captions, renders, mean, deviation, separation, max(len(kinds), 1))

    def log_odds(
        self,
        query: Float[np.ndarray, " dim"],
        cosines: Float[np.ndarray, " k"],
        renders: Float[np.ndarray, "k views dim"],
    ) -> Float[np.ndarray, " k"]:
        """Return the log-odds, in nats, that each of some assets is what a unit vector means.

        Args:
            cosines: of the vector with the renders of these assets.
        """
        of_query = best_cosines(query[None], self.renders).mean()
        of_render = best_cosines(self.captions, renders).mean(axis=0)
        z = (cosines - of_query - of_render + self.mean) / self.deviation
        return self.separation * (z - self.separation / 2.0)

    @property
    def convincing(self) -> float:
        """Log-odds, in nats, that outweigh chance: what is meant is one of so many kinds of things."""
        return math.log(self.num_kinds)


def best_cosines(
    queries: Float[np.ndarray, "q dim"], renders: Float[np.ndarray, "k views dim"]
) -> Float[np.ndarray, "q k"]:
    """Return the cosine of each unit vector with each asset's renders, the best where several are kept."""
    flat = renders.reshape(-1, renders.shape[-1]).astype(np.float32)
    cosines = queries.astype(np.float32) @ flat.T
    return cosines.reshape(len(queries), renders.shape[0], renders.shape[1]).max(axis=2)
