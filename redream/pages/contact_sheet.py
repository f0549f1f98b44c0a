"""The sheet of what a search found: a picture of each asset, what it is called, why it was found and whose work it is.

As with a run's page (`redream.pages.page`): everything is embedded, every text is escaped, and nothing is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from redream.pages.page import FOLDER, page_environment, source_hash


@dataclass(frozen=True, kw_only=True)
class SheetAsset:
    """One asset that was found. `picture` is a JPEG, or empty if there is none, and `reason` then says why."""

    asset_id: str
    caption: str
    credit: str  # author, licence and source in one line
    score: float  # cosine of the prompt with its renders
    text_score: float  # cosine of the prompt with its caption
    lexical_score: float  # of the prompt's words, in nats
    is_weak: bool
    picture: bytes = b""
    reason: str = ""


def write_contact_sheet(path: Path | str, prompt: str, assets: Sequence[SheetAsset]) -> None:
    """Write the sheet, aside and renamed."""
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    aside.write_text(render_contact_sheet(prompt, assets), encoding="utf-8", newline="\n")
    os.replace(aside, path)


def render_contact_sheet(prompt: str, assets: Sequence[SheetAsset]) -> str:
    style = (FOLDER / "page.css").read_text(encoding="utf-8") + (FOLDER / "gallery.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; img-src data:; style-src '{source_hash(style)}'; base-uri 'none'; form-action 'none'"
    return (
        page_environment()
        .get_template("contact_sheet_template.html.j2")
        .render(prompt=prompt, assets=assets, policy=policy, style=Markup(style))  # noqa: S704 (our own files)
    )
