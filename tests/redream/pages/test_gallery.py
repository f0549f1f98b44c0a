"""The page of a batch: everything embedded, every text escaped, nothing fetched."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

from redream.pages.gallery import MAX_LANES, GalleryItem, StageSpan, bars, render_gallery, write_gallery

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\x1b[31m"


def test_texts_of_strangers_are_escaped_everywhere() -> None:
    item = GalleryItem(prompt=HOSTILE, state="failed", reason=HOSTILE, subtitle=HOSTILE, metrics={HOSTILE: 1.0})
    page = render_gallery(HOSTILE, HOSTILE, [item])
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;") == 7


def test_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    item = GalleryItem(prompt="a cube", state="done", thumbnail=b"\xff\xd8", link="../a-run/page.html")
    write_gallery(tmp_path / "gallery.html", "batch", "1 done", [item])
    page = (tmp_path / "gallery.html").read_text()
    assert "default-src 'none'" in html.unescape(page)  # the policy stands escaped in its attribute
    assert "script-src" not in page
    assert 'src="data:image/jpeg;base64,/9g="' in page
    assert 'href="../a-run/page.html"' in page
    assert not re.search(r"""(src|href)=["']?(https?:|//|/)""", page)
    assert not (tmp_path / "gallery.html.part").exists()


def test_timeline_fills_its_width_in_proportion() -> None:
    spans = [
        StageSpan(lane=0, stage="render", start=0.0, end=5.0, trains=False),
        StageSpan(lane=1, stage="distill", start=5.0, end=20.0, trains=True),
        StageSpan(lane=MAX_LANES, stage="distill", start=0.0, end=90.0, trains=True),
    ]
    first, second = bars(spans)
    assert (first.x, first.width) == (0.0, 25.0)
    assert (second.x, second.width) == (25.0, 75.0)
    assert bars([]) == []


def test_batch_without_times_has_no_timeline() -> None:
    assert "<svg" not in render_gallery("batch", "", [GalleryItem(prompt="a", state="reused")])


def test_runs_can_be_sorted_by_each_metric_towards_its_better_end() -> None:
    first = GalleryItem(prompt="a cube", state="finished", metrics={"clip_a": 0.5, "lpips_a": 0.1}, started=5)
    second = replace(first, prompt="a ball", note="keep", is_favorite=True, metrics={"clip_a": 0.7})
    page = render_gallery("All runs", "2 runs", [first, second])
    assert '<option value="metric-0 up">clip_a, best first</option>' in page
    assert '<option value="metric-1 down">lpips_a, best first</option>' in page
    assert 'data-metric-0="0.7" data-metric-1=""' in page  # what was not measured comes last
    assert "★" in page and "keep" in page and "↑ 0.5" in page and "↓ 0.1" in page
    assert re.search(r"script-src &#39;sha256-|script-src 'sha256-", page)
