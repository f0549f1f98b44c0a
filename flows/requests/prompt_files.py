"""The prompts of a batch, all checked at once.

An entry of a list has a `prompt` and, where it differs from the rest of the batch, `preset`, `method`, `seed` or
`seeds`, `index`, `assets` and `settings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.requests.prompt_lists import Entry, read_entries
from flows.requests.request import Request, checked_request

MAX_FILE_BYTES = 16 * 2**20
MAX_NAMED_LINES = 3
KINDS: dict[str, type] = {
    "prompt": str, "preset": str, "method": str, "seed": int, "seeds": list, "index": str, "assets": list,
    "settings": dict,
}  # fmt: skip
KIND_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One object of a batch, with the line that asks for it, counted from 1."""

    line: int
    request: Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What holds for every line that says nothing else."""

    preset: str = "mini"
    method: str = "redream"
    seeds: tuple[int, ...] = (0,)
    index: str = ""
    settings: Mapping[str, Any]
    out: Path


def read_members(path: str | Path, defaults: Defaults) -> list[Member]:
    """Read a file of prompts, in any form of `prompt_lists`.

    Raises:
        ValueError: another form, or bad lines with their numbers.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: there is no such file of prompts")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} has {file.stat().st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    try:
        entries = list(read_entries(file, file.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; nothing was run") from None
    return checked_members(entries, defaults, name=str(path))


def parsed_seeds(text: str) -> list[int]:
    """Read seeds as in `0,1,2`."""
    seeds = [part.strip() for part in text.split(",")]
    if not all(seed.isdecimal() and seed.isascii() for seed in seeds):
        raise ValueError(f"--seeds {text!r} is not of the form 0,1,2")
    return [int(seed) for seed in seeds]


def checked_members(entries: Iterable[tuple[int, Entry]], defaults: Defaults, name: str) -> list[Member]:
    """Check what every line asks for."""
    members, wrong = [], []
    for number, entry in entries:
        try:
            members += [Member(line=number, request=request) for request in _requests(entry, defaults)]
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        more = f"; and {len(wrong) - MAX_NAMED_LINES} more bad lines" if len(wrong) > MAX_NAMED_LINES else ""
        raise ValueError(f"{name}: {'; '.join(wrong[:MAX_NAMED_LINES])}{more}; nothing was run")
    if not members:
        raise ValueError(f"{name} has no prompts; write one a line")
    return members


def _requests(entry: Entry, defaults: Defaults) -> list[Request]:
    if isinstance(entry, ValueError):
        raise entry
    asked = _checked_entry(entry)
    seeds = [asked["seed"]] if "seed" in asked else asked.get("seeds", defaults.seeds)
    if not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"seeds are {seeds!r}; they must be whole numbers")
    return [
        checked_request(
            asked["prompt"],
            asked.get("preset", defaults.preset),
            asked.get("method", defaults.method),
            seed,
            defaults.out,
            "" if asked.get("assets") else asked.get("index", defaults.index),
            asked.get("assets", ()),
            {**defaults.settings, **asked.get("settings", {})},
        )
        for seed in dict.fromkeys(seeds)
    ]


def _checked_entry(entry: dict[str, Any]) -> dict[str, Any]:
    for name, value in entry.items():
        if name not in KINDS:
            raise ValueError(f"unknown {name!r}; there are: {', '.join(KINDS)}")
        if type(value) is not KINDS[name]:
            raise ValueError(f"{name} is {value!r}; it must be {KIND_NAMES[KINDS[name]]}")
    if "seed" in entry and "seeds" in entry:
        raise ValueError("give seed or seeds, not both")
    if not all(isinstance(asset, str) for asset in entry.get("assets", [])):
        raise ValueError(f"assets are {entry['assets']!r}; they must be names of files")
    return entry
