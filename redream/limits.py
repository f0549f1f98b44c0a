"""The allowed range of a setting as part of its type, so that Prefect's form shows it too."""

from __future__ import annotations

import operator
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt

# Limits stand in the types, where Prefect's form finds them as well (flows/requests/parameters.py).
Count = Annotated[int, Interval(ge=1, le=10_000_000)]
CountOrZero = Annotated[int, Interval(ge=0, le=10_000_000)]
AtLeastOne = Annotated[int, Ge(1)]
Pixels = Annotated[int, Interval(ge=8, le=4096)]
Share = Annotated[float, Interval(ge=0, le=1)]
NotNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
FieldOfView = Annotated[float, Interval(gt=0, lt=180)]  # degrees
Elevation = Annotated[float, Interval(ge=-90, le=90)]  # degrees

COMPARISONS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    Ge: (">=", operator.ge), Gt: (">", operator.gt), Le: ("<=", operator.le), Lt: ("<", operator.lt)
}  # fmt: skip


def require(is_valid: bool, name: str, value: object, allowed: str) -> None:
    if not is_valid:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def require_limits(section: str, settings: Any) -> None:
    """Hold the numbers of a section to the limits in their types."""
    for name, limits in _limits(type(settings)).items():
        value = getattr(settings, name)
        compared = [(COMPARISONS[type(limit)][1], _bound(limit)) for limit in limits]
        require(all(holds(value, bound) for holds, bound in compared), f"{section}.{name}", value, _shown(limits))


def allowed_values(section: type, name: str) -> str:
    """Say what a setting may be: its limits or its choices; empty where only its type counts."""
    hint = typing.get_type_hints(section)[name]
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    return "true or false" if hint is bool else _shown(_limits(section)[name])


def _shown(limits: list[Any]) -> str:
    return " and ".join(f"{COMPARISONS[type(limit)][0]} {_bound(limit):,}" for limit in limits)


def _bound(limit: Any) -> Any:
    return getattr(limit, type(limit).__name__.lower())


@cache
def _limits(section: type) -> dict[str, list[Any]]:
    """Return the limits in the annotations of a section's numbers; pairs and lists have none."""
    hints = typing.get_type_hints(section, include_extras=True)
    found = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: [limit for entry in entries for limit in _parts(entry)] for name, entries in found.items()}


def _parts(limit: Any) -> list[Any]:
    return [*limit] if isinstance(limit, Interval) else [limit]


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A value that moves from `start` to `end` between two steps and rests outside them."""

    start: float
    end: float
    begin_step: int
    end_step: int

    def __call__(self, step: int) -> float:
        if self.end_step <= self.begin_step:
            return self.start if step < self.begin_step else self.end
        progress = min(max((step - self.begin_step) / (self.end_step - self.begin_step), 0.0), 1.0)
        return self.start + (self.end - self.start) * progress
