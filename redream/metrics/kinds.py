"""What each kind of metric says, for people: its direction, and what it rewards although that is not better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of metric; `prefix` begins the names of its averages."""

    prefix: str
    title: str
    is_higher_better: bool
    caveat: str


KINDS = (
    Kind(
        prefix="clip",
        title="CLIP score",
        is_higher_better=True,
        caveat="Also rewards a front on every side: each view is compared with the prompt by itself.",
    ),
    Kind(
        prefix="a_lpips",
        title="A-LPIPS",
        is_higher_better=False,
        caveat="Also rewards an object that looks the same from all sides, such as a ball.",
    ),
    Kind(
        prefix="wrong_front_share",
        title="false fronts",
        is_higher_better=False,
        caveat="Also rewards an object that has no front at all.",
    ),
)


def kind_of(name: str) -> Kind | None:
    """Return the kind of an average by its name, such as that of `clip_score_mini_clip_eval_a`."""
    return next((kind for kind in KINDS if name.startswith(kind.prefix)), None)
