"""One thing that `redream doctor` has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """`missing` is needed by the preset that was asked for, `optional` only makes something faster or possible."""

    name: str
    state: Literal["ok", "missing", "optional"]
    found: str
    remedy: str = ""
