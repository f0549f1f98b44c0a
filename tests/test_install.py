"""The wheel that a user installs: its metadata, its files, and a run from it with nothing of this checkout in reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder for an environment of 6 GB, which does not stay."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_no_resolver_needs_to_be_overridden() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "override-dependencies" not in project.get("tool", {}).get("uv", {})


@pytest.mark.timeout(3600)
def test_wheel_installs_with_pip_and_makes_an_object_elsewhere_in_minutes(elsewhere: Path) -> None:
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "REDREAM", "VIRTUAL"))}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=elsewhere, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    venv.create(elsewhere / "fresh", with_pip=True)
    bin_folder = elsewhere / "fresh" / "bin"
    pip = (bin_folder / "python", "-m", "pip", "--disable-pip-version-check", "--quiet")
    if not _reaches_an_index(pip, elsewhere, clean):
        pytest.skip("pip reaches no package index from here")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", elsewhere, ROOT)
    (wheel,) = elsewhere.glob("redream-*.whl")
    run(*pip, "install", wheel)
    run(*pip, "check")

    findings = json.loads(run(bin_folder / "redream", "doctor", "--json"))
    assert [each for each in findings if each["state"] == "missing"] == []
    made = json.loads(run(bin_folder / "redream", "generate", "a red cube", "--preset", "smoke", "--json"))
    for name in ("page", "turntable", "mesh"):
        assert Path(made[name]).is_relative_to(elsewhere)
        assert Path(made[name]).stat().st_size > 0


def _reaches_an_index(pip: tuple[str | Path, ...], folder: Path, environment: dict[str, str]) -> bool:
    command = [*pip, "download", "--no-deps", "--dest", folder / "probe", "hatchling"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode == 0
