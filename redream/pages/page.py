"""The page of a run: one HTML file that holds everything and fetches nothing.

Mesh, video and pictures are embedded in base64, charts are inline SVG, the 3D viewer is `viewer.js`. Prompts and
captions come from strangers: Jinja escapes every value, invisible characters that reorder or hide text are made visible
(`text.py`), and the page's content security policy allows no request and only the one script whose hash it names.
Content is plain values and bytes, so that anything can make a page: a flow, a test, a notebook.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from redream.metrics.kinds import kind_of
from redream.pages.text import visible_text

FOLDER = Path(__file__).parent
MAX_CURVE_POINTS = 400
SMOOTHING_SHARE = 0.03  # of a curve's length: how far its smoothed line averages to each side


@dataclass(frozen=True, kw_only=True)
class PageNeighbor:
    """One retrieved asset; its thumbnail is a PNG. Scores are cosines, angles degrees."""

    asset_id: str
    caption: str
    thumbnail: bytes
    score: float  # of the image rerank
    text_score: float
    license: str
    author: str = ""
    source: str = ""
    azimuth_deg: float = 0.0  # where its front was found, before it was turned to the front
    margin: float = 0.0
    has_clear_front: bool = True


@dataclass(frozen=True, kw_only=True)
class PageMetric:
    name: str
    model: str
    value: float
    is_higher_better: bool
    values: tuple[float, ...] = ()  # per view or per pair of views, in the orbit's order
    note: str = ""
    reference: float | None = None  # the retrieved asset's own value, measured in the same way
    caveat: str = ""  # what the metric rewards although it is not better


@dataclass(frozen=True, kw_only=True)
class PageCurve:
    """A metric over steps."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PageSamples:
    """What the 2D prior draws for one view prefix before and after adaptation, as PNGs."""

    view_name: str
    before: bytes
    after: bytes


@dataclass(frozen=True, kw_only=True)
class PageStage:
    """One stage of a run: waiting, running, computed, reused, failed, stopped, crashed or to come."""

    name: str
    state: str
    took: str = ""  # a duration in words
    remark: str = ""  # such as how many steps are done, or what it waits for


@dataclass(frozen=True, kw_only=True)
class PagePreview:
    """What every particle looked like after a step, as a PNG."""

    label: str
    picture: bytes


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """A run as it stands: what is not there yet is empty."""

    prompt: str
    mesh_glb: bytes = b""
    poster: bytes = b""  # PNG, shown where there is no WebGL2
    turntable_mp4: bytes = b""  # the result beside the retrieved assets
    turntable_labels: Sequence[str] = ()  # of the video's columns, from the left
    state: str = "finished"  # running, finished, failed, stopped or crashed
    subtitle: str = ""  # method, preset, duration
    remaining: str = ""  # how long a run under way may still take, in words
    reason: str = ""  # why a run did not finish, or what can be done with what is there
    reload_seconds: int = 0  # how often the page loads itself again; 0 for never
    facts: Mapping[str, str] = field(default_factory=dict)  # date, run, preset, index, device
    changed: Mapping[str, Any] = field(default_factory=dict)  # settings that differ from the preset's
    command: str = ""  # that asks for the same again
    links: Mapping[str, str] = field(default_factory=dict)  # names of files in the page's folder, by what they are
    stages: Sequence[PageStage] = ()
    previews: Sequence[PagePreview] = ()  # the latest last
    neighbors: Sequence[PageNeighbor] = ()
    metrics: Sequence[PageMetric] = ()
    curves: Sequence[PageCurve] = ()
    samples: Sequence[PageSamples] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # flattened: section.field
    versions: Mapping[str, str] = field(default_factory=dict)  # packages, weights, seed, ids of runs
    notes: Sequence[str] = ()  # what a reader must know, such as figures of the miniature's own models


@dataclass(frozen=True)
class Chart:
    """An SVG line chart in a box of `width` x `height` units, as path data made of numbers only."""

    line: str
    smooth: str
    low: float
    high: float
    first: float
    last: float
    width: int
    height: int


def write_page(path: Path | str, content: PageContent) -> None:
    """Write the page of a run as one HTML file, aside and renamed."""
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    aside.write_text(render_page(content), encoding="utf-8", newline="\n")
    os.replace(aside, path)


def render_page(content: PageContent) -> str:
    script = (FOLDER / "viewer.js").read_text(encoding="utf-8") if content.mesh_glb else ""
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; script-src '{source_hash(script)}'; "
        f"style-src '{source_hash(style)}'; base-uri 'none'; form-action 'none'"
    )
    return (
        page_environment()
        .get_template("page_template.html.j2")
        .render(
            content=content,
            policy=policy,
            script=Markup(script),  # noqa: S704 (our own file)
            style=Markup(style),  # noqa: S704
            sections=_settings_by_section(content.settings),
        )
    )


def line_chart(
    steps: Sequence[int] | Sequence[float], values: Sequence[float], width: int = 320, height: int = 120
) -> Chart | None:
    """Lay out a curve; points that are not finite are gaps. None where there is nothing finite to draw."""
    points = [(float(x), float(y)) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    if not points:
        return None
    first, last = points[0][0], points[-1][0]
    points = _thinned(points)
    low, high = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> str:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return f"{across * width:.1f} {height - up * height:.1f}"

    smoothed = list(zip([x for x, _ in points], _smoothed([y for _, y in points]), strict=True))
    line = "M" + "L".join(place(x, y) for x, y in points)
    smooth = "M" + "L".join(place(x, y) for x, y in smoothed)
    return Chart(line, smooth, low, high, first, last, width, height)


@cache
def page_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": _data_uri,
        "base64": _base64,
        "figure": _figure,
        "direction": _direction,
        "caveat": _caveat,
        "sentence": _sentence,
        "curve": _curve_chart,
        "sparkline": _sparkline,
    }
    return environment


def _visible_value(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible_text(str(value))


def source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _base64(content: bytes) -> Markup:
    return Markup(base64.b64encode(content).decode())  # noqa: S704 (its alphabet needs no escaping)


def _data_uri(content: bytes, mime: str) -> Markup:
    return Markup("data:{};base64,{}").format(mime, _base64(content))


def _sentence(text: str) -> str:
    """Begin with a capital letter."""
    return text[:1].upper() + text[1:]


def _direction(name: str) -> str:
    """Return an arrow towards the better values of a metric; nothing if its direction is not known."""
    kind = kind_of(name)
    return "" if kind is None else "↑" if kind.is_higher_better else "↓"


def _caveat(name: str) -> str:
    kind = kind_of(name)
    return "" if kind is None else kind.caveat


def _figure(value: float) -> str:
    """Write a number with four significant digits, or as it is where it is not finite."""
    return f"{value:.4g}"


def _curve_chart(curve: PageCurve) -> Chart | None:
    return line_chart(curve.steps, curve.values)


def _sparkline(values: Sequence[float]) -> Chart | None:
    return line_chart(range(len(values)), values, width=160, height=28)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average runs of points so that a long curve stays small."""
    run = -(-len(points) // MAX_CURVE_POINTS)
    if run == 1:
        return points
    runs = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]


def _smoothed(values: list[float]) -> list[float]:
    """Average each value with its neighbours in a centred window, which shrinks at both ends and so never lags."""
    reach = round(SMOOTHING_SHARE * len(values))
    smoothed = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        window = values[index - near : index + near + 1]
        smoothed.append(sum(window) / len(window))
    return smoothed


def _settings_by_section(settings: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    sections: dict[str, list[tuple[str, str]]] = {}
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        sections.setdefault(section or "run", []).append((key, re.sub(r"\s+", " ", str(value))))
    return sections
