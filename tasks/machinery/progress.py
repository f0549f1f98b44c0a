"""Progress on the terminal: bars with the time left, or plain lines where standard error is no terminal.

Standard output stays free for results. Two stages may run at once, and a terminal has one place for bars: all of them
share one display per process. Each step also asks whether the user wants to stop, which is how a stage in a worker
thread learns of Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")
LINE_EVERY_SECONDS = 10.0

logger = logging.getLogger("redream.progress")  # PREFECT_LOGGING_EXTRA_LOGGERS names its parent

stop_requested = threading.Event()


class Stopped(BaseException):
    """The user asked to stop. No `Exception`: nothing may take it for a failure and try again."""


class StoppedInside(Stopped):
    """Stopped in the middle of a step: what the step changes is half changed and must not be saved."""


GRACE_SECONDS = 1.0  # in which a step may end by itself


@contextmanager
def stopping_inside_steps(device: str) -> Iterator[None]:
    """Let a step that takes minutes on a CPU hear a request to stop between two layers, forward and backward.

    It ends there with `StoppedInside`, once the grace is over; a fast step, as on a GPU, ends by itself and is saved.
    """
    if device != "cpu":
        yield
        return
    import torch
    from torch.nn.modules import module as modules

    asked: list[float] = []

    def hear(*_: object) -> None:
        if stop_requested.is_set():
            asked.append(time.monotonic())
            if asked[-1] - asked[0] >= GRACE_SECONDS:
                raise StoppedInside

    def hear_backward(_module: object, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(hear)

    hooks = [modules.register_module_forward_pre_hook(hear), modules.register_module_forward_hook(hear_backward)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Show how many items come per second, or how long each takes."""
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{duration(1 / task.speed)} each")


class _Display:
    """The bars of one process: shown with the first, gone with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_shown = 0
        self._progress: Progress | None = None
        self.console = Console(stderr=True, highlight=False)

    def add(self, label: str, total: int | None, done: int) -> TaskID:
        with self._lock:
            if self._progress is None:
                self._progress = Progress(
                    TextColumn("{task.description:<26}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    TextColumn("left"),
                    TimeRemainingColumn(),
                    _RateColumn(),
                    console=self.console,
                    transient=True,
                )
                self._progress.start()
            self._num_shown += 1
            return self._progress.add_task(label, total=total, completed=done)

    def update(self, task: TaskID, done: int) -> None:
        with self._lock:
            if self._progress is not None:
                self._progress.update(task, completed=done)

    def remove(self, task: TaskID) -> None:
        with self._lock:
            if self._progress is None:
                return
            self._progress.remove_task(task)
            self._num_shown -= 1
            if self._num_shown == 0:
                self._progress.stop()
                self._progress = None


_display = _Display()


def track(items: Iterable[Item], label: str, total: int | None, done: int = 0) -> Iterator[Item]:
    """Yield items and show how many of `total` have come; `done` of them were there before, in an earlier attempt."""
    start = shown = time.monotonic()
    bar = _display.add(label, total, done) if _display.console.is_terminal else None
    num_before = done
    try:
        raise_if_stopped()
        for item in items:
            done += 1
            if bar is not None:
                _display.update(bar, done)
            elif time.monotonic() - shown >= LINE_EVERY_SECONDS:
                shown = time.monotonic()
                say(_line(label, done, total, (shown - start) / (done - num_before)))
            yield item
            raise_if_stopped()  # between two steps, so that what a step changes is whole
    finally:
        if bar is not None:
            _display.remove(bar)


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Show that something without steps is under way, and for how long."""
    if not _display.console.is_terminal:
        say(f"{label} …")
        yield
        return
    bar = _display.add(label, None, 0)
    try:
        yield
    finally:
        _display.remove(bar)


def say(line: str) -> None:
    """Print one line on standard error, above the bars if there are any; a deployed run writes it to its log."""
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        logger.info(line)
    else:
        _display.console.print(line, markup=False, soft_wrap=True)


def raise_if_stopped() -> None:
    if stop_requested.is_set():
        raise Stopped


def duration(seconds: float) -> str:
    """Write a duration as `8 s`, `2 min 05 s` or `3 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def _line(label: str, done: int, total: int | None, seconds_each: float) -> str:
    if not total:
        return f"{label}: {done}"
    rate = f"{1 / seconds_each:.1f}/s" if 0 < seconds_each < 1 else f"{duration(seconds_each)} each"
    return f"{label}: {done}/{total}, {rate}, {duration(max(total - done, 0) * seconds_each)} left"
