"""Laws of the contact sheet: it holds everything, escapes everything and says what is weak."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from redream.pages.contact_sheet import SheetAsset, render_contact_sheet, write_contact_sheet

ASSET = SheetAsset(
    asset_id="a<b>",
    caption="<script>alert(1)</script>",
    credit="a<b> by <i>me</i>, CC0, here",
    score=0.25,
    text_score=0.5,
    lexical_score=7.25,
    is_weak=False,
    picture=b"\xff\xd8\xff",
)


def test_texts_of_strangers_are_escaped_and_nothing_is_fetched() -> None:
    page = render_contact_sheet("a <b>truck</b>", [ASSET])
    assert "<b>truck" not in page and "<script" not in page and "<i>me" not in page
    assert not re.search(r"""(src|href)=["']?(https?:|//|/)""", page)


def test_every_asset_has_its_picture_or_the_reason_why_not_its_id_its_scores_and_its_credit() -> None:
    page = render_contact_sheet(
        "a truck", [ASSET, replace(ASSET, picture=b"", reason="it is broken", asset_id="other")]
    )
    assert page.count("data:image/jpeg;base64,") == 1 and "it is broken" in page
    for text in ("a&lt;b&gt;", "other", "0.250", "0.500", "7.2", "CC0, here"):
        assert text in page


def test_weak_matches_are_marked_and_a_sheet_without_others_says_that_nothing_fits() -> None:
    weak = replace(ASSET, is_weak=True)
    assert "weak match<" not in render_contact_sheet("a truck", [ASSET])
    assert render_contact_sheet("a truck", [ASSET, weak]).count("weak match<") == 1
    assert "Nothing fits" not in render_contact_sheet("a truck", [ASSET, weak])
    assert "Nothing fits" in render_contact_sheet("a truck", [weak])
    assert "Nothing fits" in render_contact_sheet("a truck", [])


def test_a_sheet_is_written_whole(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "sheet.html", "a truck", [ASSET])
    assert (tmp_path / "sheet.html").read_text() == render_contact_sheet("a truck", [ASSET])
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.html"]
