"""MLflow, in the only file that imports it: a `Tracker` bound to one run by its id, never to an ambient run.

One parent run per prompt, one nested run per stage and attempt. By default MLflow writes to SQLite beside the runs, so
that no server is needed; `MLFLOW_TRACKING_URI` names another. Nothing is pickled, nothing phones home.

What a stage sends while it works may get lost when a tracking server goes away; the stage does not. Its records are in
the store and in `run.json`, which are the authority.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by mlflow when it is imported and when it first connects: hence here, above the import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a hung server would hold a step for 20 minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import numpy as np
from mlflow.entities import Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

EXPERIMENT = "redream"
PARAMS_PER_CALL, METRICS_PER_CALL = 100, 1000  # limits of MLflow's API
MAX_PARAM_CHARS = 6000
FLUSH_EVERY_SECONDS = 5.0

logger = logging.getLogger(__name__)
# Its chatter about tables that it creates is none of the user's business.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """Where MLflow keeps runs: a record, for tasks to open trackers by."""

    uri: str
    experiment_id: str


def default_tracking_uri(out: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow.db').absolute()}"


def open_tracking(uri: str, artifacts: Path) -> Tracking:
    """Find or create the project's experiment; the first time, this creates the database.

    Args:
        artifacts: folder of the artifacts where MLflow is a local database; a server has its own.
    """
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return Tracking(uri=uri, experiment_id=experiment.experiment_id)
    location = artifacts.absolute().as_uri() if uri.startswith("sqlite:") else None
    try:
        return Tracking(uri=uri, experiment_id=client.create_experiment(EXPERIMENT, artifact_location=location))
    except MlflowException:  # another process was faster
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise
        return Tracking(uri=uri, experiment_id=experiment.experiment_id)


class Tracker:
    """One MLflow run. A call that fails is reported once, and the run is then left alone."""

    def __init__(self, tracking: Tracking, run_id: str) -> None:
        self.tracking = tracking
        self.run_id = run_id
        self._client = MlflowClient(tracking.uri)
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()
        self._is_lost = False

    @classmethod
    def start(cls, tracking: Tracking, name: str, tags: Mapping[str, str], note: str = "", parent: str = "") -> Tracker:
        """Create a run, nested in `parent` if given; `note` is Markdown."""
        tags = {key: str(value) for key, value in tags.items() if value}
        if note:
            tags["mlflow.note.content"] = note
        if parent:
            tags["mlflow.parentRunId"] = parent
        run = MlflowClient(tracking.uri).create_run(tracking.experiment_id, tags=tags, run_name=name)
        return cls(tracking, run.info.run_id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        entries = [Param(name, str(value)[:MAX_PARAM_CHARS]) for name, value in params.items()]
        for start in range(0, len(entries), PARAMS_PER_CALL):
            self._send("log_batch", params=entries[start : start + PARAMS_PER_CALL])

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Queue figures; they are sent in batches, at the latest by `finish`."""
        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in metrics.items() if value is not None]
        if time.monotonic() - self._flushed >= FLUSH_EVERY_SECONDS or len(self._pending) >= METRICS_PER_CALL:
            self.flush()

    def log_final(self, metrics: Mapping[str, float | None]) -> None:
        """Log figures that have no steps, at once."""
        self.log_metrics(metrics)
        self.flush()

    def flush(self) -> None:
        pending, self._pending, self._flushed = self._pending, [], time.monotonic()
        for start in range(0, len(pending), METRICS_PER_CALL):
            self._send("log_batch", metrics=pending[start : start + METRICS_PER_CALL])

    def log_image(self, rgb: np.ndarray, key: str, step: int = 0) -> None:
        """Log an image of uint8 [H W 3], shown with a slider over steps."""
        self._send("log_image", rgb, key=key, step=step)

    def log_text(self, text: str, name: str) -> None:
        self._send("log_text", text, name)

    def log_artifacts(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Copy files and folders; a folder keeps its name."""
        for path in paths:
            if path.is_dir():
                self._send("log_artifacts", str(path), f"{folder}/{path.name}" if folder else path.name)
            else:
                self._send("log_artifact", str(path), folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            if value:
                self._send("set_tag", name, value)

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is queued and close the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self._send("set_terminated", RunStatus.to_string(RunStatus.from_string(status)))

    def _send(self, method: str, *args: Any, **kwargs: Any) -> None:
        if self._is_lost:
            return
        try:
            getattr(self._client, method)(self.run_id, *args, **kwargs)
        except (MlflowException, OSError) as error:
            self._is_lost = True
            logger.warning(
                "MLflow at %s does not answer; nothing more is sent to run %s (%s)",
                self.tracking.uri,
                self.run_id,
                str(error).splitlines()[0],
            )
