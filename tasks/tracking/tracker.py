"""MLflow, in the only file that imports it: a `Tracker` bound to one run by its id, never to an ambient run.

One parent run per prompt, one nested run per stage and attempt. By default MLflow writes to SQLite beside the runs, so
that no server is needed; `MLFLOW_TRACKING_URI` names another. Nothing is pickled, nothing phones home.

Whatever a stage logs goes into an outbox on disk (`spool.py`), from where one thread per process delivers it in order.
So a server that is dead or hangs delays nobody but that thread: a stage waits `START_PATIENCE` for the id of its run
and `FINISH_PATIENCE` for its last figures, and not even that once the server is known to be away. What could not be
delivered is delivered by the next command that tracks anything, or by `redream sync`. A run that MLflow does not know
yet is called by a local id, which its tag `redream.local_id` keeps.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# Read by mlflow when it is imported and when it first connects: hence here, above the import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the outbox tries again, and knows since when
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image
from sqlalchemy.engine import make_url

from redream.messages import reason
from tasks.tracking.databases import MLFLOW, prepare_database, sqlite_url
from tasks.tracking.relocation import EXPERIMENT, relocate_artifacts
from tasks.tracking.spool import Outbox, attachment, leftovers, read_event, remove

DATABASE = "mlflow.db"  # in the output folder
PAGES = "REDREAM_MLFLOW_PAGES"  # where browsers reach MLflow, if elsewhere than this process does
VIEW = "redream"  # name of the shared view, in MLflow's own words, that shows the columns which matter
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
# Beside the figures of the last run that finished.
COLUMNS = ("attributes.`Duration`", "params.`preset`", "params.`method`", "params.`seed`", "tags.`redream.state`")
PARAMS_PER_CALL, METRICS_PER_CALL = 100, 1000  # limits of MLflow's API
MAX_PARAM_CHARS = 6000
FLUSH_EVERY_SECONDS = 5.0
START_PATIENCE, FINISH_PATIENCE, END_PATIENCE = 2.0, 2.0, 5.0  # seconds without an answer: a stage's, a run's
LOCAL_PATIENCE = 120.0  # a database in a file may be slow, but is never away
MAX_PAUSE = 30.0  # seconds between attempts
LOCAL = "local:"
# What no later attempt can mend, such as a run that somebody deleted.
FINAL_ERRORS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")

logger = logging.getLogger(__name__)
# Its chatter about tables that it creates is none of the user's business.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """Where MLflow keeps runs, and where what waits for it lies: a record, for tasks to open trackers by."""

    uri: str
    artifacts: str  # a folder; empty where the server has a place of its own
    spool: str

    @property
    def is_local(self) -> bool:
        return not self.uri.startswith(("http:", "https:"))


def default_tracking_uri(out: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(out / DATABASE)


def is_own(tracking: Tracking, out: Path) -> bool:
    """Tell whether runs are tracked in the folder's own database, which moves along with it."""
    return tracking.uri == sqlite_url(out / DATABASE)


def uri_today(tracked: Mapping[str, Any], out: Path) -> str:
    """Return where a run of this folder is tracked: the folder's own database moves along with it.

    Args:
        tracked: what the run's record says of MLflow; records of before `is_own` tell by the file's name.
    """
    uri = tracked["uri"]
    is_named_so = uri.startswith("sqlite:") and Path(uri).name == DATABASE and (out / DATABASE).is_file()
    return sqlite_url(out / DATABASE) if tracked.get("is_own", is_named_so) else uri


def open_tracking(uri: str, out: Path) -> Tracking:
    """Return where to track; a local database is created the first time, a server is not asked.

    Raises:
        ValueError: the database cannot be used.
    """
    artifacts = str((out / "mlartifacts").absolute()) if uri.startswith("sqlite:") else ""
    tracking = Tracking(uri=uri, artifacts=artifacts, spool=str((out / "spool").absolute()))
    if uri.startswith("sqlite:") and (path := make_url(uri).database) not in (None, ":memory:"):
        prepare_database(Path(path), MLFLOW)
        if Path(path) == (out / DATABASE).absolute():
            relocate_artifacts(Path(path), Path(artifacts))
    if tracking.is_local:
        try:
            experiment_id(tracking)
        except MlflowException as error:
            raise ValueError(f"MLflow cannot use {make_url(uri)!r}: {reason(error)}") from error
    return tracking


def experiment_id(tracking: Tracking) -> str:
    """Find or create the project's experiment, or bring it back where somebody has deleted it.

    Where artifacts lie in a folder, a server is told so as well: it would name itself as their place, and commands
    without it could then not write there.
    """
    client = _client_of(tracking.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
            logger.warning("MLflow's experiment %r was deleted; it is restored, with its runs", EXPERIMENT)
        return experiment.experiment_id
    location = Path(tracking.artifacts).as_uri() if tracking.artifacts else None
    try:
        return client.create_experiment(EXPERIMENT, artifact_location=location)
    except MlflowException:  # another process was faster
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise
        return experiment.experiment_id


def _client_of(uri: str) -> MlflowClient:
    if uri.startswith("sqlite:") and "%" in uri:
        from mlflow.store.db.utils import create_sqlalchemy_engine
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        # MLflow would create the folder that such a URL names when it is taken for a path.
        SqlAlchemyStore._engine_map.setdefault(uri, create_sqlalchemy_engine(uri))
    return MlflowClient(uri)


def runs_address(server: str, tracking: Tracking) -> str:
    """Return the address of the list of runs, with the columns that matter, on a server for this tracking.

    Raises:
        RuntimeError: MLflow refuses, for the want of a password perhaps.
        ConnectionError: it does not answer, or not in time.
    """
    try:
        client, experiment = _client_of(tracking.uri), experiment_id(tracking)
        if VIEW_TAG not in client.get_experiment(experiment).tags:
            _show_columns(client, experiment, COLUMNS)
    except MlflowException as error:
        if _is_refusal(error):
            raise RuntimeError(f"MLflow at {tracking.uri} refuses: {reason(error)}") from error
        raise ConnectionError(f"MLflow at {tracking.uri} does not answer: {reason(error)}") from error
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def run_address(tracking: Tracking, run_id: str) -> str:
    """Return the address of a run's page; empty where it has none, or is not known without waiting for the server."""
    courier = _courier_for(tracking)
    experiment, run_id = courier.experiment, courier.ids.get(run_id, run_id)  # known by now, on a busy server too
    if tracking.is_local or not experiment or run_id.startswith(LOCAL):
        return ""
    pages = os.environ.get(PAGES) or tracking.uri
    return "" if "@" in pages else f"{pages.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def new_local_id() -> str:
    return LOCAL + uuid.uuid4().hex


class UnknownRun(Exception):
    """This MLflow has no such run."""


class Tracker:
    """One MLflow run."""

    def __init__(self, tracking: Tracking, run_id: str) -> None:
        self._courier = _courier_for(tracking)
        self._named = run_id
        self._pending: list[list[Any]] = []  # name, value, timestamp, step
        self._flushed = time.monotonic()

    @classmethod
    def start(cls, tracking: Tracking, name: str, tags: Mapping[str, str], note: str = "", parent: str = "") -> Tracker:
        """Create a run, nested in `parent` if given; `note` is Markdown."""
        tracker = cls(tracking, new_local_id())
        tracker.create(name, tags, note, parent)
        return tracker

    def create(self, name: str, tags: Mapping[str, str], note: str = "", parent: str = "") -> None:
        """Create the run of a tracker that was made with a new local id."""
        tags = {key: str(value) for key, value in tags.items() if value} | {"redream.local_id": self._named}
        if note:
            tags["mlflow.note.content"] = note
        self._send("create", name=name, tags=tags, parent=parent)
        self._courier.wait_for(self._named)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run, or the local one as long as MLflow does not know the run."""
        return self._courier.ids.get(self._named, self._named)

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment; empty as long as MLflow has not said it."""
        return self._courier.experiment

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._send("params", params={name: str(value)[:MAX_PARAM_CHARS] for name, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Queue figures; they are sent in batches, at the latest by `finish`."""
        now = int(time.time() * 1000)
        self._pending += [[name, float(value), now, step] for name, value in metrics.items() if value is not None]
        if time.monotonic() - self._flushed >= FLUSH_EVERY_SECONDS or len(self._pending) >= METRICS_PER_CALL:
            self.flush()

    def log_final(self, metrics: Mapping[str, float | None]) -> None:
        """Log figures that have no steps, at once."""
        self.log_metrics(metrics)
        self.flush()

    def flush(self) -> None:
        pending, self._pending, self._flushed = self._pending, [], time.monotonic()
        if pending:
            self._send("metrics", metrics=pending)

    def log_image(self, rgb: np.ndarray, key: str, step: int = 0) -> None:
        """Log an image of uint8 [H W 3], shown with a slider over steps."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "image.png")
            Image.fromarray(rgb).save(path)
            self._send("image", path, key=key, step=step)

    def log_text(self, text: str, name: str) -> None:
        self._send("text", text=text, name=name)

    def log_artifacts(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Copy files and folders; a folder keeps its name."""
        for path in paths:
            self._send("artifact", path, folder=f"{folder or ''}/{path.name}".strip("/") if path.is_dir() else folder)

    def show_figures(self, names: Iterable[str]) -> None:
        """Let the experiment's view have columns of these figures; `runs_address` leads there."""
        self._send("view", columns=[*COLUMNS, *(f"metrics.`{name}`" for name in names)])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._send("tags", tags={name: str(value) for name, value in tags.items() if value})

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is queued and close the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self._send("end", status=status)
        self._courier.drain(FINISH_PATIENCE)

    def close_open(self) -> None:
        """Close a run whose process died or gives up, and those nested in it, as KILLED where they are still open."""
        self._send("kill")

    def drain(self) -> None:
        """Wait for all that is under way, as a command does before it ends."""
        self._courier.drain(END_PATIENCE, is_last=True)

    def _send(self, kind: str, attached: Path | None = None, **content: Any) -> None:
        event = {"kind": kind, "run": self._named, "time": int(time.time() * 1000), **content}
        self._courier.put(event, attached)


def tracked_runs(tracking: Tracking, run_id: str) -> dict[str, int]:
    """Return the bytes of artifacts in this machine's folders by run: the run itself and those nested in it.

    Raises:
        ValueError: MLflow does not answer.
    """
    if run_id.startswith(LOCAL):
        return {}  # MLflow never knew it
    client = _client_of(tracking.uri)
    try:
        experiment = client.get_run(run_id).info.experiment_id
        nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
        found = [*nested, client.get_run(run_id)]
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # deleted there already
            return {}
        trouble = f"MLflow at {tracking.uri} does not answer ({_first_line(error)})"
        raise ValueError(f"{trouble}; nothing is deleted") from error
    return {run.info.run_id: _artifact_bytes(run.info.artifact_uri) for run in found}


def labels_of(tracking: Tracking) -> dict[str, dict[str, str]]:
    """Return what people have noted of runs, by MLflow's ids: `note` and `favorite`."""
    client, labels, token = _client_of(tracking.uri), {}, None
    while True:
        runs = client.search_runs([experiment_id(tracking)], "tags.`redream.flow` = 'generate'", page_token=token)
        for run in runs:
            labels[run.info.run_id] = {name: run.data.tags.get(f"redream.{name}", "") for name in ("note", "favorite")}
        if not (token := runs.token):
            return labels


def delete_tracked(tracking: Tracking, run_ids: Sequence[str]) -> None:
    """Delete runs with their artifacts."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = _client_of(tracking.uri)
    for run_id in run_ids:
        address = client.get_run(run_id).info.artifact_uri
        with suppress(MlflowException, OSError):  # a store that cannot delete keeps them
            get_artifact_repository(str(address), tracking_uri=tracking.uri).delete_artifacts()
        client.delete_run(run_id)


def _artifact_bytes(address: str | None) -> int:
    folder = Path(unquote(urlsplit(address or "").path))
    if not (address or "").startswith(("file:", "/")) or not folder.is_dir():
        return 0
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def deliver_leftovers(tracking: Tracking) -> tuple[int, int]:
    """Deliver what earlier processes could not; returns how many events were delivered and how many still wait."""
    delivered = _Courier(tracking).deliver_leftovers()
    return delivered, len(list(Path(tracking.spool).glob("*-*/*.json")))


def drain() -> None:
    """Wait for all that this process sends."""
    for courier in list(_couriers.values()):
        courier.drain(END_PATIENCE, is_last=True)


class _Courier:
    """The thread that delivers, and what it knows of the server."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking
        self.ids: dict[str, str] = {}  # MLflow's ids by local ones
        self._client = _client_of(tracking.uri)
        self.experiment = ""  # its id, once the server has said it
        self._outbox = Outbox(Path(tracking.spool))
        self._news = threading.Condition()
        self._is_away = False  # as far as is known
        self._is_slow = False  # nobody waits for it twice
        self._has_lost = False
        self._refused: set[str] = set()  # local ids of runs that will never have another

    def start(self) -> _Courier:
        threading.Thread(target=self._work, name="mlflow", daemon=True).start()
        return self

    def put(self, event: Mapping[str, Any], attached: Path | None) -> None:
        try:
            self._outbox.put(event, attached)
        except OSError as error:  # a full disk will end the stage soon enough, by itself
            if not self._has_lost:
                logger.warning("cannot write to %s (%s); figures get lost", self.tracking.spool, error.strerror)
            self._has_lost = True

    def wait_for(self, local_id: str) -> None:
        """Wait a moment for MLflow's id of a run."""
        self._wait(lambda: local_id in self.ids or local_id in self._refused, START_PATIENCE, is_last=False)

    def drain(self, patience: float, is_last: bool = False) -> None:
        """Wait until everything is delivered, or nothing was for a while, or the server is away."""
        if is_last:
            self._is_slow = False
        self._wait(lambda: self._outbox.num_waiting == 0, patience, is_last)

    def _wait(self, is_done: Callable[[], bool], patience: float, is_last: bool) -> None:
        """Wait for something for a while; the last time, as long as there is progress."""
        patience = LOCAL_PATIENCE if self.tracking.is_local else patience
        deadline = time.monotonic() + patience
        with self._news:
            while not (is_done() or self._is_away or self._is_slow or self._has_lost):
                has_news = self._news.wait(patience if is_last else max(0.0, deadline - time.monotonic()))
                if not has_news:  # or what waited before takes all the time
                    self._is_slow = True

    def deliver_leftovers(self) -> int:
        """Deliver what dead processes left, as far as the server answers; returns how many events that was.

        An outbox of a run that this MLflow does not know is left alone: it may be another's.
        """
        num_delivered, foreign = 0, set[Path]()
        for path in leftovers(Path(self.tracking.spool)):
            if path.parent in foreign:
                continue
            try:
                self.deliver(path)
            except UnknownRun as error:
                logger.warning("MLflow at %s: %s; figures of it wait on disk", self.tracking.uri, error)
                foreign.add(path.parent)
                continue
            except Exception as error:
                trouble = "refuses" if _is_refusal(error) else "does not answer"
                logger.warning("MLflow at %s %s (%s)", self.tracking.uri, trouble, reason(error))
                break
            remove(path)
            num_delivered += 1
            self._progress()
        return num_delivered

    def _work(self) -> None:
        pause, has_looked_back = 1.0, False
        while True:
            path = self._outbox.first()
            try:
                self.deliver(path, is_own=True)
            except Exception as error:
                with self._news:
                    if not self._is_away:
                        where = self.tracking.uri
                        trouble = "refuses" if _is_refusal(error) else "is away"
                        logger.warning("MLflow at %s %s (%s); figures wait on disk", where, trouble, reason(error))
                    self._is_away = True
                    self._news.notify_all()
                time.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE)
                continue
            pause = 1.0
            self._outbox.done(path)
            self._progress()
            if not has_looked_back and self._outbox.num_waiting == 0:
                has_looked_back = True
                with suppress(OSError):  # such as an outbox that its owner has just emptied
                    self.deliver_leftovers()

    def _progress(self) -> None:
        with self._news:
            self._is_away = self._is_slow = False
            self._news.notify_all()

    def deliver(self, path: Path, is_own: bool = False) -> None:
        """Deliver one event; one that can never be is dropped with a warning."""
        try:
            event = read_event(path)
            if is_own and event["kind"] == "kill":
                self.deliver_leftovers()  # what the dead process opened must be there before it is closed
            try:
                self._deliver(path, event)
            except MlflowException as error:
                if "'active' state" not in str(error):
                    raise
                self.experiment = ""  # somebody has deleted it meanwhile; looking for it brings it back
                self._experiment_id()
                self._deliver(path, event)
        except MlflowException as error:
            if error.error_code not in FINAL_ERRORS:
                raise
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" and not is_own:
                raise UnknownRun(_first_line(error)) from error
            logger.warning("MLflow refused to log: %s", _first_line(error))
            if event["kind"] == "create":
                self._refused.add(event["run"])
        except UnknownRun as error:
            if not is_own:
                raise
            logger.warning("%s could not be sent to MLflow (%s)", path, error)
        except (KeyError, ValueError, FileNotFoundError) as error:  # half an event, or one without its file
            logger.warning("%s could not be sent to MLflow (%s)", path, _first_line(error))

    def _deliver(self, path: Path, event: Mapping[str, Any]) -> None:
        client, kind = self._client, event["kind"]
        if kind == "create":
            self._create(event)
            return
        run_id = self._known(event["run"])
        if kind == "metrics":
            metrics = [Metric(*entry) for entry in event["metrics"]]
            for start in range(0, len(metrics), METRICS_PER_CALL):
                client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])
        elif kind == "params":
            params = [Param(name, value) for name, value in event["params"].items()]
            for start in range(0, len(params), PARAMS_PER_CALL):
                client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
        elif kind == "tags":
            # A note written while the server was away names the run by its local id.
            tags = {name: value.replace(event["run"], run_id) for name, value in event["tags"].items()}
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        elif kind == "view":
            _show_columns(client, self._experiment_id(), event["columns"])
        elif kind == "image":
            client.log_image(run_id, _pixels(attachment(path, event)), key=event["key"], step=event["step"])
        elif kind == "text":
            client.log_text(run_id, event["text"], event["name"])
        elif kind == "artifact":
            file = attachment(path, event)
            log = client.log_artifacts if file.is_dir() else client.log_artifact
            log(run_id, str(file), event["folder"])
        elif kind == "end":
            client.set_terminated(run_id, event["status"], event["time"])
        elif kind == "kill":
            self._kill(run_id, event["time"])

    def _create(self, event: Mapping[str, Any]) -> None:
        run_id = self._find(event["run"])  # the answer to an earlier attempt may have got lost
        if not run_id:
            tags = dict(event["tags"])
            if event["parent"]:
                tags["mlflow.parentRunId"] = self._known(event["parent"])
            run = self._client.create_run(self._experiment_id(), event["time"], tags, event["name"])
            run_id = run.info.run_id
        self.ids[event["run"]] = run_id

    def _known(self, run_id: str) -> str:
        """Return MLflow's id of a run."""
        if not run_id.startswith(LOCAL):
            return run_id
        if run_id not in self.ids:
            found = self._find(run_id)
            if not found:
                raise UnknownRun(f"it has no run {run_id}")
            self.ids[run_id] = found
        return self.ids[run_id]

    def _find(self, local_id: str) -> str:
        found = self._client.search_runs([self._experiment_id()], f"tags.`redream.local_id` = '{local_id}'", 1, 1)
        return found[0].info.run_id if found else ""

    def _kill(self, run_id: str, ended: int) -> None:
        nested = self._client.search_runs([self._experiment_id()], f"tags.`mlflow.parentRunId` = '{run_id}'")
        for run in [*nested, self._client.get_run(run_id)]:
            if run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED", ended)

    def _experiment_id(self) -> str:
        if not self.experiment:
            self.experiment = experiment_id(self.tracking)
        return self.experiment


_couriers: dict[Tracking, _Courier] = {}
_couriers_guard = threading.Lock()


def _courier_for(tracking: Tracking) -> _Courier:
    """Return this process's courier: one, so that what it is given keeps its order."""
    with _couriers_guard:
        if tracking not in _couriers:
            _couriers[tracking] = _Courier(tracking).start()
        return _couriers[tracking]


def _is_refusal(error: Exception) -> bool:
    return getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED")


def _show_columns(client: MlflowClient, experiment: str, columns: Sequence[str]) -> None:
    client.set_experiment_tag(experiment, VIEW_TAG, json.dumps({"selectedColumns": list(columns)}))
    # Else the pages open on what MLflow offers for language models.
    client.set_experiment_tag(experiment, "mlflow.experimentKind", "custom_model_development")


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError) as error:  # Pillow's words for half a file
        raise ValueError(f"no whole picture: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
