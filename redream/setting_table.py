"""A table of all settings, read from the lines of `settings.py`, for `redream settings` and `docs/settings.md`.

What a setting does is the comment at its line, or the one above. Write the page again with
`python -m redream.setting_table > docs/settings.md`.
"""

from __future__ import annotations

import inspect
import io
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

from redream.limits import allowed_values
from redream.presets import PRESETS
from redream.settings import RunConfig

HEADING = """# Settings

Every setting, with its value in each preset. Change one with `--set SECTION.NAME=VALUE`; `redream settings SECTION`
prints the same table. This page is generated: `python -m redream.setting_table > docs/settings.md`.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    name: str  # section.field
    meaning: str
    allowed: str  # limits or choices; empty: any value of its type
    defaults: dict[str, object]  # by preset


def all_settings() -> list[Setting]:
    """List the settings in the order of `settings.py`."""
    presets = {name: asdict(make()) for name, make in PRESETS.items()}
    return [
        Setting(
            name=f"{section}.{name}",
            meaning=meaning,
            allowed=allowed_values(kind, name),
            defaults={preset: values[section][name] for preset, values in presets.items()},
        )
        for section, kind in typing.get_type_hints(RunConfig).items()
        for name, meaning in _meanings(kind)
    ]


def _meanings(section: type) -> Iterator[tuple[str, str]]:
    """Yield each field of a section with the comment that says what it does."""
    source = inspect.getsource(section)
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    for entry in fields(section):  # pyright: ignore[reportArgumentType]  # every section is a dataclass
        number = next(i for i, line in enumerate(lines, start=1) if line.startswith(f"    {entry.name}: "))
        beside, above = comments.get(number), comments.get(number - 1)
        yield entry.name, beside[0] if beside else above[0] if above and above[1] else ""


def page() -> str:
    """Return `docs/settings.md`."""
    lines = [HEADING.rstrip()]
    section = ""
    for each in all_settings():
        of, name = each.name.split(".")
        if of != section:
            section = of
            lines += ["", f"## {section}", "", f"| name | {' | '.join(PRESETS)} | allowed | what it is |"]
            lines.append("|---" * (3 + len(PRESETS)) + "|")
        values = " | ".join(map(shown, each.defaults.values()))
        lines.append(f"| `{name}` | {values} | {each.allowed} | {each.meaning} |")
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """Write a value as a reader wants it; `--set` takes Python literals."""
    if isinstance(value, dict):  # a Linear
        return f"{value['start']:g} to {value['end']:g}, steps {value['begin_step']:,} to {value['end_step']:,}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(page(), end="")
