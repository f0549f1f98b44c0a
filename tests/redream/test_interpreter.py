"""Processes that we start import our modules, whatever the working directory holds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from redream.interpreter import ROOT, import_environment, python_command

NAMES = ("flows", "tasks", "redream", "index_build", "random", "numpy")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working directory whose folders and files have the names of what we import."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a foreign file was run')\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "guest.py").write_text("")
    return tmp_path


@pytest.mark.parametrize("path", [None, "", ".", ":", f":{ROOT}", f"{ROOT}:", f".:{ROOT}", "mine", "./", "nowhere"])
def test_the_working_directory_is_never_imported_from(hostile: Path, path: str | None, monkeypatch) -> None:
    monkeypatch.chdir(hostile)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment |= {} if path is None else {"PYTHONPATH": path}
    code = "import random, flows, tasks, redream, index_build; print(flows.__path__[0])"
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    for command in (python_command("-c", code), python_command("-c", grandchild)):
        done = subprocess.run(
            command, env=import_environment(environment), cwd=hostile, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, f"{ROOT}/flows"), done.stderr


def test_entries_of_the_path_stay(hostile: Path, monkeypatch) -> None:
    monkeypatch.chdir(hostile)
    kept = import_environment({"PYTHONPATH": f"mine:/elsewhere::.:{hostile}"})["PYTHONPATH"].split(":")
    assert kept[-3:] == [str(hostile / "mine"), "/elsewhere", str(hostile)]  # the last was named in full
