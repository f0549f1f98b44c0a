"""Where `redream` begins, before any other module of ours: what it imports, and how it speaks to a terminal."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])


def command() -> None:
    leave_working_directory()
    speak_utf8()
    from redream.interpreter import keep_imports_ours

    keep_imports_ours()
    # What libraries say to their developers would stand between the lines of a run.
    warnings.filterwarnings("ignore", module=r"(peft|diffusers|transformers|torch|open_clip|pyrender|trimesh)(\.|$)")
    from flows.command.app import command as run

    run()


def leave_working_directory() -> None:
    """Take the working directory off the path of imports, where an empty or relative entry of PYTHONPATH put it."""
    here = os.path.abspath(".")
    if here != ROOT and here not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]


def speak_utf8() -> None:
    """Let no locale decide what a file holds or what a prompt is; what a terminal cannot show is shown escaped."""
    if sys.getfilesystemencoding() != "utf-8":
        shown = f"{sys.stdout.encoding if sys.stdout else 'ascii'}:backslashreplace"
        environment = {"PYTHONIOENCODING": shown, **os.environ, "PYTHONUTF8": "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
