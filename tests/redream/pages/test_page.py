"""Laws of the page: complete in itself, and inert whatever strangers write into prompts and captions."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from redream.export import export_mesh
from redream.overrides import flatten
from redream.pages.page import (
    MAX_CURVE_POINTS,
    PageContent,
    PageCurve,
    PageMetric,
    PageNeighbor,
    PagePreview,
    PageSamples,
    PageStage,
    line_chart,
    render_page,
    write_page,
)
from redream.pages.text import visible_text
from redream.presets import smoke
from redream.settings import DownloadConfig, ExportConfig

HOSTILE = [
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "' onmouseover='document.title=1' x='",
    "</title><svg onload=document.title='owned'>",
    "{{ 7 * 7 }} {% raw %}",
    "<!-- --> ]]> <![CDATA[",
    "&lt;b&gt; &#x202e;",
    "javascript:document.title='owned'",
    "</style><style>body{display:none}</style>",
    "a\x00b\x1b[31mc\x7f\x85",
    "owl\u202egnp.exe\u2066\u2069\u200e\ufeff\U000e0041",
    "lone surrogate \ud800 end",
]


@pytest.fixture(scope="module")
def glb(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A yellow ball with a red nose in front (+x) and a blue ear on its left (+y)."""

    def density_and_color(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        distances = torch.stack(
            [
                (positions - torch.tensor(center)).norm(dim=-1) - radius
                for center, radius in [((0.0, 0.0, 0.0), 0.3), ((0.35, 0.0, 0.0), 0.12), ((0.0, 0.3, 0.25), 0.14)]
            ]
        )
        palette = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.05, 0.05], [0.1, 0.1, 0.9]])
        return 10 * torch.exp((-distances.amin(dim=0) * 60).clamp(-20, 4)), palette[distances.argmin(dim=0)]

    path = tmp_path_factory.mktemp("page") / "toy.glb"
    export_mesh(density_and_color, ExportConfig(mesh_resolution=32), 0.55, path)
    return path.read_bytes()


def png(value: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def content(glb: bytes) -> PageContent:
    neighbor = PageNeighbor(
        asset_id="f00d",
        caption="A yellow toy with a red nose",
        thumbnail=png(90),
        score=0.31,
        text_score=0.82,
        license="CC-BY 4.0, http://creativecommons.org/licenses/by/4.0",
        author="Ada Lovelace",
        source="https://example.org/models/f00d",
        azimuth_deg=-130.0,
        margin=0.04,
    )
    return PageContent(
        prompt="a yellow toy",
        mesh_glb=glb,
        poster=png(200),
        turntable_mp4=b"not really a film",
        subtitle="method redream",
        neighbors=[neighbor, replace(neighbor, has_clear_front=False)],
        metrics=[
            PageMetric(
                name="CLIP score",
                model="mini:clip-eval-a",
                value=0.27,
                is_higher_better=True,
                note="seen",
                values=tuple(0.25 + 0.01 * i for i in range(12)),
            ),
            PageMetric(name="A-LPIPS", model="mini:perceptual-a", value=0.04, is_higher_better=False),
        ],
        curves=[
            PageCurve(name="distill/loss", steps=(0, 1, 2), values=(3.0, math.nan, 1.0)),
            PageCurve(name="nothing", steps=(0,), values=(math.inf,)),
        ],
        samples=[PageSamples(view_name="back", before=png(10), after=png(20))],
        settings=flatten(smoke()),
        versions={"torch": "2"},
        notes=["Miniature figures."],
        turntable_labels=["result", "a yellow toy", "another"],
        facts={"date": "2026-11-28 07:30:10 UTC", "preset": "mini"},
        changed={"distill.num_steps": 900},
        command="redream generate 'a yellow toy'",
        links={"mesh (glTF)": "mesh.glb"},
        previews=[PagePreview(label="warm up, step 3", picture=png(30))],
    )


class Reader(HTMLParser):
    """Collects the tags, attributes and text that a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._raw = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._raw else data


def test_the_page_refers_to_nothing_outside_itself(content: PageContent):
    page = render_page(content)
    allowed = ("data:",)
    for tag, attributes in Reader(page).tags:
        for name in ("src", "href", "poster", "srcset", "action", "formaction", "data", "xlink:href", "background"):
            is_beside = tag == "a" and attributes.get(name) in content.links.values()  # a file in the page's folder
            assert name not in attributes or is_beside or attributes[name].startswith(allowed), (tag, name)
        assert tag not in ("iframe", "object", "embed", "base", "form")
    outside_text = re.findall(r"(?:https?:)?//[a-z0-9-]+\.[^\s<\"]+", page)
    stated = [content.neighbors[0].source, "http://creativecommons.org/licenses/by/4.0"]
    settings = [DownloadConfig().base_url]  # written once, in the table of settings
    assert sorted(outside_text) == sorted(stated * 2 + settings)
    assert not re.search(r"url\(|@import|\bfetch\b|XMLHttpRequest|WebSocket|import\(|sendBeacon", page)


def test_the_policy_allows_no_request_and_only_our_script(content: PageContent):
    tags = Reader(render_page(content)).tags
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}';", policy)


def test_everything_a_reader_wants_to_know_is_on_the_page(content: PageContent):
    page = render_page(content)
    text = Reader(page).text
    for expected in (
        "a yellow toy",
        "A yellow toy with a red nose",
        "CC-BY 4.0",
        "Ada Lovelace",
        "https://example.org/models/f00d",
        "found at -130°",
        "no clear front",
        "CLIP score",
        "0.27",
        "higher is better",
        "lower is better",
        "distill/loss",
        "No finite value",
        "back view",
        "guidance_scale",
        "Miniature figures.",
        "2026-11-28",
        "distill.num_steps = 900",
        "redream generate 'a yellow toy'",
        "warm up, step 3",
    ):
        assert expected in text, expected
    assert base64.b64encode(content.mesh_glb).decode() in page
    assert base64.b64encode(content.turntable_mp4).decode() in page


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_inert_everywhere(content: PageContent, hostile: str):
    clean = Reader(render_page(content))
    neighbor = replace(
        content.neighbors[0], caption=hostile, license=hostile, author=hostile, source=hostile, asset_id=hostile
    )
    attacked = replace(
        content,
        prompt=hostile,
        subtitle=hostile,
        neighbors=[neighbor, *content.neighbors[1:]],
        notes=[hostile],
        metrics=[replace(content.metrics[0], name=hostile, model=hostile, note=hostile), content.metrics[1]],
        curves=[replace(content.curves[0], name=hostile), content.curves[1]],
        samples=[replace(content.samples[0], view_name=hostile)],
        settings={**content.settings, "retrieval.clip_model": hostile},
        versions={hostile: hostile},
    )
    seen = Reader(render_page(attacked))
    # The browser sees the same elements with the same attributes, only their text differs.
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in clean.tags]
    assert [sorted(a) for _, a in seen.tags] == [sorted(a) for _, a in clean.tags]
    assert seen.text.count(visible_text(hostile)) >= 10


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_page_can_be_written_and_read_as_utf8(content: PageContent, hostile: str, tmp_path: Path):
    write_page(tmp_path / "page.html", replace(content, prompt=hostile))
    written = (tmp_path / "page.html").read_bytes().decode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]", written)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_writing_of_every_script_stays_as_it_is():
    for text in ("ロボット 🤖 👩‍🚀", "یک ربات می‌رود", "רובוט צהוב", "robot\tjaune\nà roues", "ก็ไก่", "naïve café"):
        assert visible_text(text) == text


def test_a_page_without_optional_parts_is_whole(glb: bytes):
    page = render_page(PageContent(prompt="an owl", mesh_glb=glb, poster=png(0)))
    text = Reader(page).text
    assert "an owl" in text
    for absent in ("Retrieved assets", "Metrics", "Curves", "Adaptation", "Settings", "Origin"):
        assert absent not in text
    assert "<video" not in page


def test_page_of_a_run_under_way_loads_itself_again_and_says_how_far_it_is():
    stages = [
        PageStage(name="warm_up", state="running", remark="step 3 of 9"),
        PageStage(name="adapt", state="to come"),
    ]
    page = render_page(
        PageContent(prompt="an owl", state="running", stages=stages, reload_seconds=5, remaining="8 s left")
    )
    seen = Reader(page)
    assert ("meta", {"http-equiv": "refresh", "content": "5"}) in seen.tags
    assert all(text in seen.text for text in ("running", "step 3 of 9", "to come", "8 s left"))
    assert "<canvas" not in page and "<script" not in page
    stopped = render_page(PageContent(prompt="an owl", state="stopped", reason="stopped; `redream rerun X` goes on"))
    assert "refresh" not in stopped and "Stopped; `redream rerun X` goes on" in Reader(stopped).text


def points_of(path: str) -> np.ndarray:
    return np.array([[float(v) for v in point.split()] for point in path.removeprefix("M").split("L")])


def test_a_chart_spans_its_box_and_points_up():
    chart = line_chart([10, 20, 30], [1.0, 3.0, 2.0], width=100, height=50)
    assert chart is not None
    np.testing.assert_allclose(points_of(chart.line), [[0, 50], [50, 0], [100, 25]])
    assert (chart.first, chart.last, chart.low, chart.high) == (10, 30, 1.0, 3.0)


def test_a_constant_curve_and_a_single_point_are_drawn_in_the_middle():
    for steps, values in (([0, 1, 2], [5.0] * 3), ([7], [5.0])):
        chart = line_chart(steps, values, width=100, height=50)
        assert chart is not None and (points_of(chart.line)[:, 1] == 25).all()


def test_a_long_curve_is_thinned_and_keeps_its_mean():
    values = [math.sin(i / 500) for i in range(20_000)]
    chart = line_chart(range(20_000), values, height=100)
    assert chart is not None and len(points_of(chart.line)) <= MAX_CURVE_POINTS
    heights = chart.low + (1 - points_of(chart.line)[:, 1] / 100) * (chart.high - chart.low)
    assert heights.mean() == pytest.approx(sum(values) / len(values), abs=0.01)
    assert (chart.first, chart.last) == (0, 19_999)


def test_values_that_are_not_finite_leave_no_trace_in_a_chart():
    chart = line_chart(range(5), [1.0, math.nan, math.inf, -math.inf, 2.0])
    assert chart is not None and len(points_of(chart.line)) == 2 and (chart.low, chart.high) == (1.0, 2.0)
    assert line_chart(range(2), [math.nan, math.inf]) is None and line_chart([], []) is None


def test_smoothing_keeps_a_straight_line_straight():
    chart = line_chart(range(300), [0.5 * i for i in range(300)])
    assert chart is not None and chart.smooth == chart.line


CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine")


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    # Root may not use Chromium's sandbox; the page is ours.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return subprocess.run(
        [
            CHROMIUM,
            "--headless",
            *sandbox,
            "--use-gl=angle",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            "--hide-scrollbars",
            "--force-prefers-reduced-motion",
            "--window-size=600,700",
            "--virtual-time-budget=2000",
            "--enable-logging=stderr",
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )


@needs_chromium
def test_a_browser_draws_the_mesh_front_and_left_where_they_belong(content: PageContent, tmp_path: Path):
    write_page(tmp_path / "page.html", replace(content, prompt="a yellow toy", notes=[], subtitle=""))
    shot = tmp_path / "shot.png"
    log = browse(tmp_path / "page.html", tmp_path / "profile", f"--screenshot={shot}").stderr
    assert "CONSOLE" not in log, log
    with Image.open(shot) as image:
        rgb = np.asarray(image.convert("RGB")).astype(int)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    drawn = {
        "nose": (red > 130) & (green < 60) & (blue < 60),
        "ear": (blue > 130) & (red < 70) & (green < 70),
        "ball": (red > 130) & (green > 110) & (blue < 60),
    }
    assert all(mask.sum() > 300 for mask in drawn.values()), {name: mask.sum() for name, mask in drawn.items()}
    column = {name: np.nonzero(mask)[1].mean() for name, mask in drawn.items()}
    # From azimuth 30 the front has turned to the left of the picture, and +y lies on the right.
    assert column["nose"] < column["ball"] < column["ear"]


@needs_chromium
def test_a_browser_runs_our_script_and_nobody_elses(content: PageContent, tmp_path: Path):
    neighbors = [replace(content.neighbors[0], caption=text, asset_id=text, source=text) for text in HOSTILE]
    write_page(tmp_path / "page.html", replace(content, prompt=HOSTILE[1], neighbors=neighbors, notes=HOSTILE))
    dom = browse(tmp_path / "page.html", tmp_path / "profile", "--dump-dom").stdout
    assert 'data-state="live"' in dom and "azimuth 30°, elevation 15°" in dom
    assert "<title>owned" not in dom and "<title>&lt;/script&gt;" in dom


@needs_chromium
def test_a_browser_without_webgl_shows_the_poster(content: PageContent, tmp_path: Path):
    write_page(tmp_path / "page.html", content)
    ended = browse(tmp_path / "page.html", tmp_path / "profile", "--disable-3d-apis", "--dump-dom")
    assert 'data-state="poster"' in ended.stdout
    assert "Uncaught" not in ended.stderr
