"""Fixtures for all tests, and the one place that says which tests need a GPU, a network or patience."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# No test phones home, and none touches what the user has of Prefect or MLflow. Set before either is imported.
os.environ.update(
    DO_NOT_TRACK="true",
    MLFLOW_DISABLE_TELEMETRY="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL",
    PREFECT_SERVER_API_BLOCKS_REGISTER_ON_START="false",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # sums come out the same, whatever else a process computes at the time
    HF_HUB_OFFLINE="1",
    REDREAM_SLOTS=tempfile.mkdtemp(prefix="redream-slots-"),  # nobody else's training holds up a test
)
for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI", "REDREAM_TRACEBACK", "REDREAM_DEVICE"):
    os.environ.pop(name, None)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# The same examples at every run; `--hypothesis-profile default` looks for others.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

# By the ends of their names: `test_..._on_a_gpu`, `test_..._from_the_network`, `test_..._in_minutes`.
MARKERS = {"_on_a_gpu": "gpu", "_from_the_network": "network", "_in_minutes": "slow"}


def pytest_configure(config: pytest.Config) -> None:
    """Hide the machine's GPUs from the tests and from what they start, unless the tests that need one are asked for."""
    markers, words = (str(config.getoption(name) or "") for name in ("markexpr", "keyword"))
    is_named = any("_on_a_gpu" in text for text in (words, *config.args))
    if not is_named and ("gpu" not in markers or "not gpu" in markers):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name functions without their addresses, which differ between the processes that share the tests."""
    return val.__qualname__.partition(".")[0] if inspect.isfunction(val) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.name.partition("[")[0]
        for ending, marker in MARKERS.items():
            if name.endswith(ending):
                item.add_marker(marker)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect's own server with a database of the session; its start takes about ten seconds, so there is one."""
    os.environ["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] = str(tmp_path_factory.mktemp("prefect-results"))
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=600):
        yield


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an MLflow database, made once: creating its tables takes seconds."""
    from tasks.tracking.tracker import default_tracking_uri, open_tracking

    folder = tmp_path_factory.mktemp("mlflow")
    open_tracking(default_tracking_uri(folder), folder)
    return folder
