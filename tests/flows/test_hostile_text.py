"""Prompts and captions are data: in file names, pages, logs, terminals, run names and tags."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.command import app, tables
from flows.requests.request import checked_prompt
from redream.pages.page import PageContent, PageNeighbor, render_page
from tasks.runs.records import list_runs, read_run
from tests.flows.conftest import World

# What a prompt may be, and each must stay what it is.
TAKEN = {
    "markup": '<script>alert(1)</script><img src=x onerror="alert(2)">',
    "quotes": """a "cube" 'of' `glass` \\" ' -- """,
    "path traversal": "../../../../etc/passwd",
    "absolute path": "/etc/passwd",
    "Windows path": r"C:\Windows\..\con.glb",
    "shell": "$(touch /tmp/owned); rm -rf / | `id` && echo $HOME > x",
    "templates": "{{ 7 * 7 }} {% raw %} {prompt} {0} %s %(x)s ${PATH} #{1}",
    "console markup": "[red]a cube[/red] [link=file:///etc/passwd]x[/link] [/]",
    "option": "--out=/etc",
    "Markdown": "**x** [a](javascript:alert(1)) ![b](http://example.invalid/c.png) | d | # e",
    "SQL": "'; DROP TABLE runs; --",
    "right to left": "a \u202ecube\u202c \u05d0\u05d1",
    "zero width": "a\u200b cube\ufeff",
    "combining": "Z" + "\u0351" * 100,
    "beyond the BMP": "\U0001f409\U000e0041",
    "long": "a very long cube " * 58,
    "dots": "...",
    "formula": '=HYPERLINK("http://example.invalid")',
}
REFUSED = {
    "newline": "a cube\nb: injected",
    "carriage return": "a cube\rINFO forged line",
    "escape sequence": "a \x1b]0;title\x07 cube",
    "C1 control": "a \x9b31m cube",
    "NUL": "a\x00cube",
    "line separator": "a\u2028cube",
    "lone surrogate": "a\udc80cube",
    "too long": "x" * 1001,
}


@pytest.mark.parametrize("prompt", TAKEN.values(), ids=TAKEN.keys())
def test_folder_of_a_run_is_made_of_plain_letters_only(prompt: str) -> None:
    from tasks.runs.run import new_run_id

    run_id = new_run_id(checked_prompt(prompt), datetime.now(UTC), {"prompt": prompt})
    assert re.fullmatch(r"[0-9]{8}-[0-9]{6}(-[a-z0-9]+)*", run_id)
    assert len(run_id) < 80


@pytest.mark.parametrize("prompt", REFUSED.values(), ids=REFUSED.keys())
def test_what_could_forge_a_line_or_command_a_terminal_is_refused_in_one_clean_line(
    prompt: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["redream", "generate", prompt])
    with pytest.raises(SystemExit) as ended:
        app.main()
    written = capsys.readouterr()
    assert ended.value.code == 2
    assert (written.out, written.err.count("\n")) == ("", 1)
    assert not controls(written.err)


@pytest.mark.parametrize("text", [*TAKEN.values(), *REFUSED.values()], ids=[*TAKEN, *REFUSED])
def test_page_shows_hostile_text_and_runs_none_of_it(text: str) -> None:
    neighbor = PageNeighbor(
        asset_id=text, caption=text, thumbnail=b"", score=0.5, text_score=0.5, license=text, author=text, source=text
    )
    page = render_page(PageContent(prompt=text, mesh_glb=b"", poster=b"", neighbors=[neighbor], notes=[text]))
    harmless = replace(neighbor, asset_id="a", caption="a", license="a", author="a", source="a")
    plain = render_page(PageContent(prompt="a", mesh_glb=b"", poster=b"", neighbors=[harmless], notes=["a"]))
    assert tags(page) == tags(plain)  # the text adds no element and no attribute
    assert not controls(page.replace("\r", "\n"))  # the same to a browser
    assert "\u202e" not in page


@pytest.mark.parametrize("text", [*TAKEN.values(), *REFUSED.values()], ids=[*TAKEN, *REFUSED])
def test_terminal_gets_no_commands_from_captions_and_records(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asset = dict.fromkeys(("asset_id", "mesh_path", "caption", "source", "license", "author"), text)
    neighbor = {
        "score": 0.5,
        "text_score": 0.5,
        "lexical_score": 0.5,
        "is_weak": False,
        "has_picture": True,
        "fit": 0.5,
        "asset": asset,
    }
    made = {"neighbors": [neighbor], "metrics": {}, "prompt": text, "page": "p", "turntable": "t", "mesh": "m"}
    tables.print_made(made, "out")
    assert not controls(capsys.readouterr().out)


@pytest.mark.parametrize("run", ["../../etc", "/etc", "..", ".", "a/../../b", "a\\..\\b", "a\x00b", ""])
def test_no_name_of_a_run_leads_out_of_the_folder_of_runs(run: str, tmp_path: Path) -> None:
    outside = tmp_path / "etc"
    outside.mkdir()
    (outside / "run.json").write_text("{}")
    (tmp_path / "out" / "runs").mkdir(parents=True)
    with pytest.raises(ValueError, match="no run"):
        read_run(tmp_path / "out", run)


@pytest.fixture(scope="module")
def tracking_uri(prefect_server: None, mlflow_folder: Path) -> Iterator[str]:
    from tasks.tracking.tracker import default_tracking_uri

    with pytest.MonkeyPatch.context() as patch:
        uri = default_tracking_uri(mlflow_folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.mark.timeout(1200)
def test_hostile_prompt_is_a_name_in_prefect_and_a_tag_in_mlflow_in_minutes(
    tracking_uri: str, world: World, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient
    from prefect.client.orchestration import get_client

    from flows.generate import generate

    prompt = "".join(TAKEN[name] + " " for name in ("markup", "shell", "templates", "console markup", "right to left"))
    prompt = prompt.strip()
    made = generate(prompt, preset="smoke", method="sds", settings=world.settings, out=str(tmp_path))
    record = list_runs(tmp_path)[-1]
    assert record["prompt"] == prompt
    flow_run = get_client(sync_client=True).read_flow_run(record["prefect"]["prefect.flow_run_id"])
    assert flow_run.name == prompt  # not formatted a second time
    run = MlflowClient(tracking_uri).get_run(made.mlflow_run_id)
    assert run.data.tags["redream.prompt"] == prompt
    assert json.loads(json.dumps(asdict(made)))["prompt"] == prompt
    for path in tmp_path.rglob("*"):
        assert re.fullmatch(r"[\w.-]+", path.name, re.ASCII), path
    assert not Path("/tmp/owned").exists()


def controls(text: str) -> list[str]:
    """Return what moves a cursor, hides text or starts a line, other than ends of lines."""
    return [
        c for c in text if (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t") or c == "\u202e"
    ]


def tags(page: str) -> list[str]:
    from html.parser import HTMLParser

    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
            found.append(f"{tag} {sorted(name for name, _ in attrs)}")

    Reader().feed(page)
    return found
