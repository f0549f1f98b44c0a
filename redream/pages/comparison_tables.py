"""A comparison as files for other programs: CSV of the objects, JSON of everything, LaTeX for a paper."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import asdict
from typing import Any

from redream.metrics.comparison import Comparison, Interval, best_column, is_higher_better

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}


def as_csv(comparison: Comparison) -> str:
    """Return a line for each object with its metrics, empty where it could not be made."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["column", "prompt", "seed", *comparison.metrics])
    for row in comparison.rows:
        table.writerow([row.column, row.prompt, row.seed, *(row.metrics.get(name, "") for name in comparison.metrics)])
    return text.getvalue()


def as_json(comparison: Comparison, facts: dict[str, Any]) -> str:
    """Return everything that was compared and found; what is not a number is null."""
    return json.dumps(_finite({**facts, **asdict(comparison)}), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def as_latex(comparison: Comparison) -> str:
    """Return a `tabular` with a line for each column, as in the paper's Table 1; needs the package booktabs."""
    arrows = (r"$\downarrow$", r"$\uparrow$")
    names = [f"{_escaped(metric)} {arrows[is_higher_better(metric)]}" for metric in comparison.metrics]
    lines = [rf"\begin{{tabular}}{{l{'c' * len(names)}r}}", r"\toprule"]
    lines += [" & ".join(["", *names, "failed"]) + r" \\", r"\midrule"]
    best = {metric: best_column(comparison, metric) for metric in comparison.metrics}
    for column in comparison.columns:
        cells = [_latex_cell(comparison.means[name][column], column == best[name]) for name in comparison.metrics]
        lines.append(" & ".join([_escaped(column), *cells, str(comparison.num_failed[column])]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def as_markdown(comparison: Comparison) -> str:
    """Return the means as a table of Markdown, with `±` half of the interval's width."""
    lines = ["| metric | " + " | ".join(comparison.columns) + " |", "|---" * (len(comparison.columns) + 1) + "|"]
    for metric in comparison.metrics:
        arrow = "↑" if is_higher_better(metric) else "↓"
        cells = [plus_minus(comparison.means[metric][column]) for column in comparison.columns]
        lines.append(f"| {metric} {arrow} | " + " | ".join(cells) + " |")
    failed = [str(comparison.num_failed[column]) for column in comparison.columns]
    return "\n".join([*lines, "| failed | " + " | ".join(failed) + " |", ""])


def plus_minus(interval: Interval) -> str:
    """Return a mean and half of its interval's width, as in `0.3120 ± 0.0150`."""
    if not interval.num_prompts:
        return "–"
    if math.isnan(interval.low):
        return f"{interval.mean:.4f}"
    return f"{interval.mean:.4f} ± {(interval.high - interval.low) / 2:.4f}"


def _latex_cell(interval: Interval, is_best: bool) -> str:
    text = plus_minus(interval).replace("±", r"\pm").replace("–", r"\text{--}")
    return rf"$\mathbf{{{text}}}$" if is_best else f"${text}$"


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda match: _LATEX[match[0]], text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
