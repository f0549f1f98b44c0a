"""The report of a comparison: complete, safe, and the same for the same content."""

from __future__ import annotations

import csv
import io
import json
import re

from redream.metrics.comparison import Comparison, Row, compare
from redream.pages.comparison import ComparedObject, render_comparison
from redream.pages.comparison_tables import as_csv, as_json, as_latex, as_markdown

HOSTILE = '<script>alert(1)</script> & "\u202ereversed'


def objects() -> list[ComparedObject]:
    found = []
    for number, prompt in enumerate([HOSTILE, "a 50% bigger cat_dog", "a van", "a hat", "a cup"]):
        for column, value in (("redream", 0.3), ("no $100", 0.2)):
            metrics = {"clip_score_a": value + number / 100, "a_lpips_a": 0.1 * value}
            is_failed = (column, number) == ("no $100", 4)
            row = Row(column=column, prompt=prompt, seed=0, metrics={} if is_failed else metrics)
            found.append(ComparedObject(row=row, sheet=b"" if is_failed else b"\xff\xd8", reason="lost" * is_failed))
    return found


def comparison() -> Comparison:
    return compare([each.row for each in objects()], ["redream", "no $100"])


def report() -> str:
    return render_comparison("redream, no $100", "6 objects", {"prompts": "3"}, comparison(), objects())


def test_the_report_is_the_same_for_the_same_content_and_fetches_nothing():
    html = report()
    assert html == report()
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert html.count("data:image/jpeg") == 9 and "lost" in html and "0.3200" in html and "too few prompts" in html


def test_texts_of_strangers_are_escaped_in_every_file():
    assert "<script>alert" not in report() and "\u202e" not in report()
    assert r"no \$100" in as_latex(comparison()) and r"\textbf" not in as_latex(comparison())
    rows = list(csv.reader(io.StringIO(as_csv(comparison()))))
    assert rows[1][:3] == ["redream", HOSTILE, "0"] and rows[-1][3:] == ["", ""]


def test_json_holds_every_row_and_no_word_that_json_lacks():
    found = json.loads(as_json(comparison(), {"title": "x"}), parse_constant=lambda word: 1 / 0)
    assert len(found["rows"]) == 10 and found["num_failed"] == {"no $100": 1, "redream": 0}


def test_tables_mark_the_best_and_the_direction():
    assert re.search(r"redream & \$\\mathbf\{0.3200 .*?\}\$ & \$0.0300", as_latex(comparison()))
    assert "| clip_score_a ↑ | 0.3200" in as_markdown(comparison()) and "| a_lpips_a ↓ |" in as_markdown(comparison())
