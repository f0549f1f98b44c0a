from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from redream.config import smoke
from tasks.runs import Run, open_run
from tasks.tracking import default_tracking_uri


@pytest.fixture
def run(tmp_path: Path, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run under way, with a store of its own and real MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_tracking_uri(mlflow_folder))
    with open_run("test", "a red cube", 7, smoke(), {"prompt": "a red cube"}, tmp_path) as run:
        yield run
