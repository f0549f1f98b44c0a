"""Progress on standard error: plain lines where there is no terminal, and a way to stop."""

from __future__ import annotations

import pytest

from tasks.machinery import progress
from tasks.machinery.progress import Stopped, duration, stop_requested, track, waiting


def test_plain_lines_tell_the_time_left_and_leave_standard_output_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    assert list(track(range(3), "render", 3)) == [0, 1, 2]
    with waiting("starting Prefect"):
        pass
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("render: 1/3, ")
    assert lines[0].endswith(" left")
    assert lines[-1] == "starting Prefect …"


def test_resumed_progress_counts_what_was_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    list(track([0, 1], "distill", 10, done=8))
    assert capsys.readouterr().err.splitlines()[0].startswith("distill: 9/10")


def test_stop_request_ends_the_iteration() -> None:
    stop_requested.set()
    try:
        with pytest.raises(Stopped):
            list(track(range(3), "render", 3))
    finally:
        stop_requested.clear()


def test_prompt_that_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("[red]not a colour[/red]")
    assert capsys.readouterr().err == "[red]not a colour[/red]\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (125, "2 min 05 s"), (11_220, "3 h 07 min")]
)
def test_durations_read(seconds: float, text: str) -> None:
    assert duration(seconds) == text
