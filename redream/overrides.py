"""Change settings by dotted name, as in `distill.guidance_scale`, and list them that way."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Literal

from redream.limits import Linear, require
from redream.presets import mini
from redream.settings import RunConfig


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Replace settings by dotted name, as in `{"distill.guidance_scale": 50.0}`, all at once.

    Raises:
        ValueError: an unknown name, a value of another type, or a value outside its range.
    """
    sections = typing.get_type_hints(RunConfig)
    changed: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        section, _, key = name.partition(".")
        hints = typing.get_type_hints(sections[section]) if section in sections else {}
        if key not in hints:
            raise ValueError(f"unknown setting {name!r}; settings are named section.field, such as {_closest(name)!r}")
        changed.setdefault(section, {})[key] = _checked(name, value, hints[key])
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in changed.items()})


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return every setting by its dotted name, for trackers and pages."""
    return {f"{section}.{key}": value for section, group in asdict(config).items() for key, value in group.items()}


def _checked(name: str, value: Any, expected: Any) -> Any:
    origin = typing.get_origin(expected)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is Literal:
        require(value in typing.get_args(expected), name, value, "one of " + ", ".join(typing.get_args(expected)))
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = typing.get_args(expected)
        kinds = kinds[:1] * len(value) if kinds[-1:] == (Ellipsis,) else kinds
        require(len(kinds) == len(value), name, value, f"{len(kinds)} values")
        return tuple(_checked(name, item, kind) for item, kind in zip(value, kinds, strict=True))
    if expected is Linear and isinstance(value, dict) and set(value) == {f.name for f in fields(Linear)}:
        hints = typing.get_type_hints(Linear)
        return Linear(**{key: _checked(f"{name}.{key}", item, hints[key]) for key, item in value.items()})
    require(type(value) is expected, name, value, f"of type {getattr(expected, '__name__', expected)}")
    require(not isinstance(value, float) or math.isfinite(value), name, value, "a finite number")
    return value


def _closest(name: str) -> str:
    import difflib

    known = flatten(mini())
    section = name.partition(".")[0] + "."
    known = [each for each in known if each.startswith(section)] or list(known)  # the section is rarely the mistake
    return (difflib.get_close_matches(name, known, n=1, cutoff=0.0) or ["distill.guidance_scale"])[0]
