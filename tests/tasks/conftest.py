from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from redream.presets import smoke
from tasks.runs.run import Run, open_run
from tasks.tracking.tracker import default_tracking_uri


@pytest.fixture
def run(tmp_path: Path, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run under way, with a store of its own and real MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_tracking_uri(mlflow_folder))
    with open_run("test", "a red cube", 7, smoke(), {"prompt": "a red cube"}, tmp_path) as run:
        yield run
