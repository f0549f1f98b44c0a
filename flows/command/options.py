"""Options that several commands share."""

from __future__ import annotations

import locale
import os
from typing import Annotated

import typer


def typed_text(text: str) -> str:
    """Return an argument as the terminal meant it: bytes that are not UTF-8 are of the locale's encoding."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return os.fsencode(text).decode(locale.getencoding(), errors="surrogateescape")


Prompt = Annotated[str, typer.Argument(help="What to make, in a few words.", show_default=False, parser=typed_text)]

Preset = Annotated[str, typer.Option(help="mini (CPU, embedded models) or sd21 (the paper's setting).")]

Settings = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a setting.", show_default=False)
]

LeaveOut = Annotated[
    list[str], typer.Option("--not", metavar="ID[,ID]", help="Assets that must not be found.", show_default=False)
]

Index = Annotated[str, typer.Option(metavar="DIR", help="An index to search.", show_default="the miniature's own")]

Out = Annotated[str, typer.Option(metavar="DIR", help="Where runs, stage outputs and databases go.")]

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run, as `redream runs` names it.", show_default=False)]

Device = Annotated[
    str,
    typer.Option(metavar="cpu|cuda|cuda:N", help="Where to compute.", show_default="the first free GPU, else the CPU"),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
