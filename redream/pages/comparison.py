"""The report of a comparison: means, differences and all objects side by side, in one HTML file that fetches nothing.

As with a run's page (`redream.pages.page`): everything is embedded, every text is escaped, and only the one script
whose hash the page names may run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from redream.metrics.comparison import Comparison, Interval, Row, best_column, is_higher_better
from redream.metrics.kinds import kind_of
from redream.pages.comparison_tables import plus_minus
from redream.pages.page import FOLDER, page_environment, source_hash


@dataclass(frozen=True, kw_only=True)
class ComparedObject:
    """One object of the report: its row, and its views as a sheet of six columns (JPEG), empty where there is none."""

    row: Row
    sheet: bytes = b""
    reason: str = ""  # why it could not be made


def render_comparison(
    title: str, summary: str, facts: Mapping[str, str], comparison: Comparison, objects: Sequence[ComparedObject]
) -> str:
    """Return the report as HTML, the same for the same content.

    Args:
        facts: what a reader must know to repeat it, such as the prompt set's hash and the settings of each column.
    """
    style = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "comparison.css"))
    script = (FOLDER / "comparison.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data:; script-src '{source_hash(script)}'; style-src '{source_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    by_place = {(each.row.prompt, each.row.seed, each.row.column): each for each in objects}
    return (
        page_environment()
        .get_template("comparison_template.html.j2")
        .render(
            title=title,
            summary=summary,
            facts=facts,
            comparison=comparison,
            best={metric: best_column(comparison, metric) for metric in comparison.metrics},
            arrows={metric: "↑" if is_higher_better(metric) else "↓" for metric in comparison.metrics},
            footnotes=footnotes(comparison.metrics),
            plus_minus=plus_minus,
            is_clear=is_clear,
            lines=list(dict.fromkeys((each.row.prompt, each.row.seed) for each in objects)),
            by_place=by_place,
            policy=policy,
            style=Markup(style),  # noqa: S704 (our own files)
            script=Markup(script),  # noqa: S704
        )
    )


def footnotes(metrics: Sequence[str]) -> list[str]:
    """Return what each kind of metric rewards wrongly."""
    return list(dict.fromkeys(kind.caveat for name in metrics if (kind := kind_of(name)) is not None))


def is_clear(interval: Interval) -> bool:
    """Tell whether the interval of a difference leaves out zero."""
    return interval.low > 0 or interval.high < 0
