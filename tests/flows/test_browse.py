"""What a person sees who browses the runs in MLflow, through a real browser.

Needs a Chromium and `uv sync --group browser`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.flows.conftest import World
from tests.flows.services import free_port, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("playwright", reason="no playwright: uv sync --group browser")

PROMPT = "a grey box"
PATIENCE = 120_000  # milliseconds
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Root may not use Chromium's sandbox; the pages are ours. Machines without a GPU draw by SwiftShader.
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine")


@dataclass(frozen=True)
class Site:
    """A finished run, and the server that shows it."""

    runs: str  # address of the list of runs, as `redream ui` says it
    mlflow_run_id: str
    other_run_id: str  # of another method's run of the same prompt
    stages: dict[str, str]
    metrics: dict[str, float]

    @property
    def run(self) -> str:
        return f"{self.runs.partition('?')[0]}/{self.mlflow_run_id}"


@pytest.fixture(scope="module")
def site(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    out = tmp_path_factory.mktemp("browsed") / "out"
    redream = [sys.executable, "-m", "flows.command"]
    options = [word for name, value in world.settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command = [*redream, "generate", PROMPT, "--preset", "smoke", "--index", world.index, "--out", str(out), "--json"]
    other, made = (
        json.loads(subprocess.run([*command, *how, *options], check=True, capture_output=True, text=True).stdout)
        for how in (["--method", "vsd"], [])
    )
    said = out / "ui.said"
    with open(said, "w") as file:
        port = str(free_port())
        process = subprocess.Popen([*redream, "ui", "--out", str(out), "--port", port], stdout=file, stderr=file)
    try:
        wait_until(lambda: "startup complete" in said.read_text() or process.poll() is not None, 200)
        assert process.poll() is None, said.read_text()
        found = re.search(r"MLflow: (\S+)", said.read_text())
        assert found is not None
        yield Site(found.group(1), made["mlflow_run_id"], other["mlflow_run_id"], made["stages"], made["metrics"])
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def page(site: Site) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium.new_page(viewport={"width": 2400, "height": 900})
        chromium.close()


def open_page(page: Page, address: str, *texts: str) -> None:
    """Open an address and wait until each text is seen; fails where one is not."""
    page.goto("about:blank")  # an address that differs in its fragment alone would not be loaded
    page.goto(address)
    for text in texts:
        page.get_by_text(text).first.wait_for(timeout=PATIENCE)


@needs_chromium
def test_list_of_runs_opens_with_the_columns_that_matter_in_minutes(site: Site, page: Page) -> None:
    open_page(page, site.runs, PROMPT, "Duration", "method", "redream.state", *site.metrics)


@needs_chromium
def test_page_of_a_run_says_what_it_is_and_how_its_stages_went_in_minutes(site: Site, page: Page) -> None:
    open_page(page, site.run, PROMPT, "Finished", *site.stages)
    for stage in site.stages:  # as nested runs, each a link
        page.get_by_role("link", name=re.compile(rf"^{stage}( \(cached\))?,?$")).first.wait_for(timeout=PATIENCE)


@needs_chromium
def test_note_of_a_run_shows_its_picture_in_minutes(site: Site, page: Page) -> None:
    open_page(page, site.run, PROMPT)
    picture = page.locator('img[src*="path=orbit.png"]')
    picture.wait_for(timeout=PATIENCE)
    page.wait_for_function("picture => picture.naturalWidth > 0", arg=picture.element_handle(), timeout=PATIENCE)


@needs_chromium
def test_methods_are_compared_by_two_clicks_in_minutes(site: Site, page: Page) -> None:
    open_page(page, site.runs, PROMPT)
    page.locator(f'a[href*="{site.mlflow_run_id}"]').first.click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Compare with another run of this prompt").click(timeout=PATIENCE)
    for text in (site.mlflow_run_id, site.other_run_id, "redream", "vsd", *site.metrics):
        opened.value.get_by_text(text, exact=True).first.wait_for(timeout=PATIENCE)
    opened.value.close()


@needs_chromium
def test_figures_of_each_view_are_a_table_in_minutes(site: Site, page: Page) -> None:
    open_page(page, site.run, PROMPT)
    page.get_by_role("link", name=re.compile(r"^evaluate,?$")).click()
    page.get_by_text("Artifacts", exact=True).first.click(timeout=PATIENCE)
    page.get_by_text("views.csv").first.click(timeout=PATIENCE)
    for name in ("azimuth_deg", *(name for name in site.metrics if name != "wrong_front_share")):
        page.get_by_text(name, exact=True).first.wait_for(timeout=PATIENCE)


@needs_chromium
def test_figures_of_a_run_are_drawn_in_minutes(site: Site, page: Page) -> None:
    open_page(page, f"{site.run}/model-metrics", *site.metrics)


@needs_chromium
def test_page_artifact_runs_inside_mlflow_in_minutes(site: Site, page: Page) -> None:
    open_page(page, f"{site.run}/artifacts/page.html", "page.html", "mesh.glb", "turntable.mp4")
    artifact = page.frame_locator("iframe.mlflow-html-iframe")
    artifact.get_by_role("heading", name=PROMPT).wait_for(timeout=PATIENCE)
    artifact.locator('[data-state="live"]').wait_for(timeout=PATIENCE)  # the viewer draws the mesh
    artifact.get_by_text("a grey").first.wait_for(timeout=PATIENCE)  # a caption
