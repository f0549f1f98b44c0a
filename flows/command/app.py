"""The `redream` command: a thin door to the flows.

It checks what it was given before it imports anything heavy. Results go to standard output, as JSON with `--json`;
everything else goes to standard error. The exit code is 0, or 2 where the user can help it, 130 after Ctrl-C, else 1.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
from typing import cast

import typer

from flows.command import browsing, comparing, indexes, keeping, machine, objects
from flows.processes.command_server import collect_rarely
from redream.messages import reason
from redream.pages.text import visible_text

# What only a mistake in the code raises, and what says nothing without its class.
FAULTS = (TypeError, AttributeError, LookupError, NameError, AssertionError, ArithmeticError, NotImplementedError)
INTERRUPTED = 130
GOES_ON = "stopped; the same command continues from the last checkpoint"

app = typer.Typer(
    help="Generate 3D objects from text, after ReDream (arXiv 2402.02972).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

index_app = typer.Typer(help="Build and examine indexes of 3D assets.", no_args_is_help=True)
app.add_typer(index_app, name="index")
for run in (
    objects.generate,
    indexes.search,
    objects.evaluate,
    browsing.runs,
    browsing.show,
    browsing.note,
    browsing.settings,
    browsing.methods,
    objects.rerun,
    objects.batch,
    comparing.compare,
    keeping.export,
    keeping.watch,
    keeping.delete,
    browsing.sync,
    browsing.gc,
    browsing.ui,
    machine.serve,
    machine.doctor,
):
    app.command()(run)
for name, run in (
    ("build", indexes.build),
    ("info", indexes.info),
    ("check", indexes.check),
    ("compact", indexes.compact),
):
    index_app.command(name)(run)


def main() -> None:
    """Run the command and turn what went wrong into one line and an exit code."""
    usage_error = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])  # click's, which typer does not export
    try:
        code = app(standalone_mode=False)
    except usage_error as error:
        _fail(error.format_message(), 2)
    except ValueError as error:
        _fail(str(error), 2)
    except BaseException as error:
        word = next(iter(getattr(error, "__notes__", [])), "")  # what a run that was stopped leaves
        if isinstance(error, SystemExit) and not word:
            raise
        if type(error).__name__ == "TerminationSignal":  # Prefect's word for SIGTERM
            _fail(word or "terminated; the same command continues from the last checkpoint", 143)
        if not isinstance(error, Exception) or isinstance(error, typer.Abort):
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else INTERRUPTED
            _fail(word or GOES_ON, code)
        if os.environ.get("REDREAM_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _fail(
                "the disk of --out is full; make room (redream gc lists what can go), and the same command goes on", 1
            )
        _fail(f"{_words(error)} (REDREAM_TRACEBACK=1 shows the traceback)", 1)
    if code == INTERRUPTED:  # Typer's, of Ctrl-C before a flow has begun
        _fail(GOES_ON, INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def command() -> None:
    """Run `main` as a process that ends at once: taking its modules apart would cost a command two more seconds."""
    code = 1
    collect_rarely()

    def leave() -> None:
        lost = 0
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except OSError as error:  # a full disk costs output; a reader that has gone wants no more
                lost = 0 if isinstance(error, BrokenPipeError) else 120  # as Python itself would end
        os._exit(code or lost)

    atexit.register(leave)  # called after all that is registered later
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        raise


def _words(error: BaseException) -> str:
    if isinstance(error, FAULTS):
        return f"a fault of redream itself: {type(error).__name__}: {error}"
    return str(error) if isinstance(error, RuntimeError) and str(error) else reason(error)


def _fail(message: str, code: int) -> None:
    print(f"redream: {visible_text(' '.join(message.split()))}", file=sys.stderr)  # it may quote a stranger's text
    sys.stderr.flush()
    sys.exit(code)
