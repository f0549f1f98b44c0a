"""The command starts in any folder and any locale: it imports only ours, and shows every prompt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from redream.interpreter import ROOT

PROMPT = "ein gr\u00fcner W\u00fcrfel \u7acb\u65b9\u4f53 \U0001f680"
START = "import sys; sys.path.insert(0, {root!r}); from flows.command.start import command; command()"


def redream(folder: Path, *arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command as its installed script does: without its working directory, but with PYTHONPATH."""
    command = [sys.executable, "-P", "-c", START.format(root=ROOT), *arguments]
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    return subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, check=False)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    for name in ("flows", "tasks", "redream", "index_build", "prefect", "mlflow", "numpy", "random"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\n")
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "locale",
    [
        {"LANG": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "de_DE.ISO-8859-1"},
        {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C.UTF-8"},
    ],
    ids=str,
)
def test_every_prompt_is_shown_and_means_the_same_in_every_locale(hostile: Path, locale: dict[str, str]) -> None:
    shown = redream(hostile, "batch", "prompts.txt", "--dry-run", **locale)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"1 objects" in shown.stdout and b"ein gr" in shown.stdout
    told = redream(hostile, "batch", "prompts.txt", "--dry-run", "--json", **locale)
    assert [each["prompt"] for each in json.loads(told.stdout)["objects"]] == [PROMPT]
    refused = redream(hostile, "generate", f"{PROMPT} <|endoftext|>".encode(), "--method", "sds", **locale)
    assert refused.returncode == 2 and refused.stderr.count(b"\n") == 1


@pytest.mark.parametrize("path", [":", f".:{ROOT}"])
def test_a_hostile_working_directory_is_not_imported_from(hostile: Path, path: str) -> None:
    done = redream(hostile, "doctor", "--json", PYTHONPATH=path)
    assert json.loads(done.stdout), done.stderr
    assert not (hostile / "was-run").exists()


@pytest.mark.timeout(1800)
def test_every_command_works_in_a_hostile_working_directory_in_minutes(hostile: Path) -> None:
    smoke = ("--preset", "smoke", "--json", "--out", str(hostile / "out"))
    path = f":{ROOT}"
    for arguments in (
        ("index", "build", *smoke),
        ("search", "a red cube", *smoke),
        ("generate", "a red cube", *smoke),
        ("batch", "prompts.txt", *smoke),
        ("runs", *smoke[2:]),
        ("sync", *smoke[2:]),
        ("gc", *smoke[2:]),
    ):
        done = redream(hostile, *arguments, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
    records = json.loads(redream(hostile, "runs", *smoke[2:]).stdout)
    (run,) = [record["run_id"] for record in records if record["prompt"] == "a red cube"]
    for arguments in (("show", run), ("rerun", run, "--from", "export"), ("evaluate", run)):
        done = redream(hostile, *arguments, *smoke[2:], PYTHONPATH=path)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert not (hostile / "was-run").exists()
