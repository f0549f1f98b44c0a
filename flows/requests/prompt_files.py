"""The prompts of a batch: a text file with one a line, or JSON lines with settings of their own; all checked at once.

A line of JSON is an object with `prompt` and, where it differs from the rest of the batch, `preset`, `method`, `seed`
or `seeds`, `index`, `assets` and `settings`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.requests.request import Request, checked_request

MAX_FILE_BYTES = 16 * 2**20
MAX_NAMED_LINES = 3
KINDS: dict[str, type] = {
    "prompt": str, "preset": str, "method": str, "seed": int, "seeds": list, "index": str, "assets": list,
    "settings": dict,
}  # fmt: skip


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
    """Read a file of prompts.

    Raises:
        ValueError: with the numbers of the lines that are no good.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: there is no such file of prompts")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} has {file.stat().st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return checked_members(lines, defaults, is_json=file.suffix.lower() in (".jsonl", ".ndjson"), name=str(path))


def parsed_seeds(text: str) -> list[int]:
    """Read seeds as in `0,1,2`."""
    seeds = [part.strip() for part in text.split(",")]
    if not all(seed.isdecimal() and seed.isascii() for seed in seeds):
        raise ValueError(f"--seeds {text!r} is not of the form 0,1,2")
    return [int(seed) for seed in seeds]


def checked_members(lines: Sequence[bytes], defaults: Defaults, is_json: bool, name: str) -> list[Member]:
    """Check every line; lines without anything are passed over."""
    members, wrong = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            members += [Member(line=number, request=request) for request in _requests(line, defaults, is_json)]
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        more = f"; and {len(wrong) - MAX_NAMED_LINES} more bad lines" if len(wrong) > MAX_NAMED_LINES else ""
        raise ValueError(f"{name}: {'; '.join(wrong[:MAX_NAMED_LINES])}{more}; nothing was run")
    if not members:
        raise ValueError(f"{name} has no prompts; write one a line")
    return members


def _requests(line: bytes, defaults: Defaults, is_json: bool) -> list[Request]:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8 text") from None
    asked: dict[str, Any] = _entry(text) if is_json else {"prompt": text}
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


def _entry(text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(entry, dict) or "prompt" not in entry:
        raise ValueError('it is no object with a prompt, such as {"prompt": "a red cube", "seed": 1}')
    for name, value in entry.items():
        if name not in KINDS:
            raise ValueError(f"unknown {name!r}; there are: {', '.join(KINDS)}")
        if type(value) is not KINDS[name]:
            raise ValueError(f"{name} is {value!r}; it must be of type {KINDS[name].__name__}")
    if "seed" in entry and "seeds" in entry:
        raise ValueError("give seed or seeds, not both")
    if not all(isinstance(asset, str) for asset in entry.get("assets", [])):
        raise ValueError(f"assets are {entry['assets']!r}; they must be names of files")
    return entry
