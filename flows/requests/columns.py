"""The columns of a comparison: methods, or the variants of a study of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from flows.requests.prompt_files import Defaults, Member
from redream.settings import Method


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One way of making every prompt's object."""

    name: str
    method: str = "redream"
    settings: Mapping[str, Any] = field(default_factory=dict)


# The first column of each is what the others are compared with.
STUDIES: dict[str, tuple[Column, ...]] = {
    "components": (  # Fig. 17
        Column(name="all"),
        Column(name="no initialisation", settings={"distill.use_initialisation": False}),
        Column(name="no adaptation", settings={"distill.use_adapter": False}),
        Column(name="no regulariser", settings={"distill.delta_every": 0}),
        Column(name="vsd", method="vsd"),
    ),
    "particles": tuple(  # Fig. 18
        Column(name=f"{number} particles" if number > 1 else "1 particle", settings={"distill.num_particles": number})
        for number in (1, 2, 4)
    ),
    "assets": tuple(
        Column(name=f"{number} assets" if number > 1 else "1 asset", settings={"retrieval.num_assets": number})
        for number in (3, 1, 5)
    ),
}


def checked_columns(methods: Sequence[str], study: str) -> list[Column]:
    """Return the columns of a study, or else one for each method.

    Raises:
        ValueError: no such study or method, or nothing to compare.
    """
    if study:
        if study not in STUDIES:
            raise ValueError(f"unknown study {study!r}; there are: {', '.join(STUDIES)}")
        return list(STUDIES[study])
    known = get_args(Method)
    if unknown := [method for method in methods if method not in known]:
        raise ValueError(f"unknown method {unknown[0]!r}; there are: {', '.join(known)}")
    if len(set(methods)) < 2:
        raise ValueError("a comparison needs two methods or more, such as --methods redream,vsd,sds")
    return [Column(name=method, method=method) for method in dict.fromkeys(methods)]


def column_defaults(column: Column, defaults: Defaults) -> Defaults:
    """Return what holds for the objects of a column."""
    return Defaults(
        preset=defaults.preset,
        method=column.method,
        seeds=defaults.seeds,
        index=defaults.index if column.method == "redream" else "",
        settings={**defaults.settings, **column.settings},
        out=defaults.out,
    )


def require_plain(members: Sequence[Member], column: Column) -> None:
    """Refuse prompts that choose a method of their own, for the columns do that.

    Raises:
        ValueError: a line has another method than its column.
    """
    for member in members:
        if member.request.method != column.method:
            raise ValueError(
                f"line {member.line} chooses method {member.request.method}; in a comparison --methods does"
            )
