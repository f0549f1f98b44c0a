"""The page of a batch, or of all runs: a picture, the metrics and links for each, and when each stage ran, in one file.

As with a run's page (`redream.pages.page`): everything is embedded, every text is escaped, and nothing is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from redream.pages.page import FOLDER, page_environment, source_hash

MAX_LANES = 60  # of the timeline


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One run; `thumbnail` is a JPEG, `link` a relative path to its page, each empty if there is none."""

    prompt: str
    state: str  # done, reused, failed, stopped, crashed, running or finished
    reason: str = ""
    subtitle: str = ""
    thumbnail: bytes = b""
    link: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)  # relative paths to its files, by what they are
    started: int = 0  # seconds since 1970
    note: str = ""
    is_favorite: bool = False


@dataclass(frozen=True, kw_only=True)
class StageSpan:
    """When a stage ran, in seconds since the batch began; `lane` is the object's place on the timeline."""

    lane: int
    stage: str
    start: float
    end: float
    trains: bool


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A span on the timeline, in per cent of its width."""

    lane: int
    x: float
    width: float
    trains: bool
    label: str


def write_gallery(
    path: Path | str, title: str, summary: str, items: Sequence[GalleryItem], spans: Sequence[StageSpan] = ()
) -> None:
    """Write the page of a batch, aside and renamed."""
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    aside.write_text(render_gallery(title, summary, items, spans), encoding="utf-8", newline="\n")
    os.replace(aside, path)


def render_gallery(title: str, summary: str, items: Sequence[GalleryItem], spans: Sequence[StageSpan] = ()) -> str:
    style = (FOLDER / "page.css").read_text(encoding="utf-8") + (FOLDER / "gallery.css").read_text(encoding="utf-8")
    script = (FOLDER / "gallery.js").read_text(encoding="utf-8")
    allowed = f" script-src '{source_hash(script)}';" if len(items) > 1 else ""
    policy = (
        f"default-src 'none'; img-src data:;{allowed} style-src '{source_hash(style)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        page_environment()
        .get_template("gallery_template.html.j2")
        .render(
            title=title,
            summary=summary,
            items=items,
            names=list(dict.fromkeys(name for item in items for name in item.metrics)),
            script=Markup(script),  # noqa: S704 (our own file)
            bars=bars(spans),
            duration=max((span.end for span in spans), default=0.0),
            policy=policy,
            style=Markup(style),  # noqa: S704 (our own files)
        )
    )


def bars(spans: Sequence[StageSpan]) -> list[Bar]:
    """Lay out the timeline of the first objects."""
    shown = [span for span in spans if span.lane < MAX_LANES]
    whole = max((span.end for span in shown), default=0.0) or 1.0
    return [
        Bar(
            lane=span.lane,
            x=100 * span.start / whole,
            width=max(0.1, 100 * (span.end - span.start) / whole),
            trains=span.trains,
            label=f"{span.stage}: {span.start:.0f} to {span.end:.0f} s",
        )
        for span in shown
    ]
