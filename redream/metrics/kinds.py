"""What each kind of metric says, for people: its direction, and what it takes for good although it is not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of metric; one of `prefixes` begins the names of its averages, also of those in older runs."""

    prefixes: tuple[str, ...]
    is_higher_better: bool
    caveat: str


CLIP_SCORE = Kind(
    prefixes=("clip_",),
    is_higher_better=True,
    caveat="CLIP scores reward pictures that look like the words: a second face costs nothing.",
)
A_LPIPS = Kind(
    prefixes=("lpips_", "a_lpips"),
    is_higher_better=False,
    caveat="A-LPIPS rewards views that change little from one to the next: a featureless ball has the best value.",
)
WRONG_FRONTS = Kind(
    prefixes=("wrong_front_share",),
    is_higher_better=False,
    caveat="The share of wrong fronts rewards an object without any face.",
)
JANUS = Kind(
    prefixes=("janus",),
    is_higher_better=False,
    caveat="The Janus rate counts objects with a front among the views from behind, by a judge that errs itself.",
)
KINDS = (CLIP_SCORE, A_LPIPS, WRONG_FRONTS, JANUS)


def kind_of(name: str) -> Kind | None:
    """Return the kind of an average by its name, such as `clip_a`."""
    return next((kind for kind in KINDS if name.startswith(kind.prefixes)), None)
