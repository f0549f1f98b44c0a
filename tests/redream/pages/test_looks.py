"""Pages in a browser at three widths, light and dark: all fits, no word is broken, axe finds nothing bad.

Needs a Chromium and `uv sync --group browser`; axe runs where `npm install --no-save axe-core` has put it.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from redream.overrides import flatten
from redream.pages.gallery import GalleryItem, write_gallery
from redream.pages.page import (
    PageContent,
    PageCurve,
    PageMetric,
    PageNeighbor,
    PagePreview,
    PageSamples,
    PageStage,
    write_page,
)
from redream.presets import smoke
from tests.redream.pages.test_page import png

pytest.importorskip("playwright", reason="no playwright: uv sync --group browser")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).parents[3] / "node_modules/axe-core/axe.min.js"
PATIENCE = 120_000  # milliseconds
# Words whose letters stand on several lines; ids and addresses may break, and so may what is folded away.
BROKEN = r"""() => {
  const broken = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode()); ) {
    if (node.parentElement.closest("script, style, pre, code, .long, .caption, details:not([open])")) continue;
    for (const word of node.textContent.matchAll(/[^\s\-\/]{2,}/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) broken.push(word[0]);
    }
  }
  return broken;
}"""


def save_pages(folder: Path) -> list[Path]:
    """Write a finished run's page, one of a run under way, and a page of runs."""
    neighbor = PageNeighbor(
        asset_id="0290737f64b14b08b87faa644580f3a9",
        caption="A yellow toy with a red nose, and a caption that goes on for more than one line",
        thumbnail=png(90),
        score=0.31,
        text_score=0.82,
        license="CC-BY 4.0",
        author="Ada Lovelace",
        source="https://example.org/models/0290737f64b14b08b87faa644580f3a9",
    )
    metric = PageMetric(
        name="A-LPIPS", model="mini:perceptual-a", value=0.0412345, is_higher_better=False, caveat="It rewards balls."
    )
    finished = PageContent(
        prompt="a yellow toy with a red nose",
        poster=png(200),
        facts={"run": "20261128-080424-a-yellow-toy-with-a-red-nose-fb9f", "settings": "none"},
        changed={"distill.high_resolution_from_step": 3000},
        command="redream generate 'a yellow toy with a red nose' --set distill.high_resolution_from_step=3000",
        links={"mesh (glTF)": "mesh.glb", "video": "turntable.mp4", "attribution": "ATTRIBUTION.txt"},
        neighbors=[neighbor, neighbor],
        metrics=[metric, replace(metric, reference=0.1, values=(0.1, 0.3, 0.2))],
        curves=[PageCurve(name="distill: score", steps=(0, 1, 2), values=(3.0, 2.0, 1.0))],
        samples=[PageSamples(view_name="back", before=png(10), after=png(20))],
        settings=flatten(smoke()),
    )
    stages = [
        PageStage(name="warm_up", state="running", remark="step 3 of 60"),
        PageStage(name="distill", state="to come"),
    ]
    previews = [PagePreview(label="warm up, step 3", picture=png(80))]
    growing = PageContent(prompt="an owl", state="running", stages=stages, previews=previews, remaining="8 s left")
    write_page(folder / "finished.html", finished)
    write_page(folder / "growing.html", growing)
    metrics = {"clip_a": 0.812345, "lpips_a": 0.04, "wrong_front_share": 0.3333}
    item = GalleryItem(
        prompt="a yellow toy", state="finished", subtitle="mini, seed 0", metrics=metrics, link="page.html"
    )
    write_gallery(folder / "runs.html", "All runs", "2 runs", [item, replace(item, state="stopped", note="good edges")])
    return [folder / name for name in ("finished.html", "growing.html", "runs.html")]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine")
def test_pages_fit_every_screen_in_minutes(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    pages = save_pages(tmp_path)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = chromium.new_context(color_scheme=scheme, bypass_csp=True)
            tab = context.new_page()
            for width in (390, 768, 1440):
                tab.set_viewport_size({"width": width, "height": 900})
                for path in pages:
                    tab.goto(path.as_uri(), wait_until="domcontentloaded", timeout=PATIENCE)
                    where = f"{path.name} at {width} px, {scheme}"
                    assert tab.evaluate("document.documentElement.scrollWidth") <= width, where
                    assert tab.evaluate(BROKEN) == [], where
                    if AXE.is_file():
                        tab.evaluate(AXE.read_text())
                        found = tab.evaluate("axe.run()")["violations"]
                        assert [each["id"] for each in found if each["impact"] == "critical"] == [], where
        chromium.close()
