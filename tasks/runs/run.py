"""Runs: what was asked, how far it came, and where everything is, in `<out>/runs/<run_id>/run.json`.

`run.json` is the authority; Prefect's and MLflow's databases are views of it. Beside it lie copies of what a person
wants to open: the page, the mesh, the turntable.

    <out>/runs/<run_id>/   one folder per run          <out>/mlflow.db, mlartifacts/   MLflow
    <out>/store/           stage outputs, by content   <out>/.prefect/                 Prefect
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from prefect.runtime import flow_run
from sqlalchemy.engine import make_url

from redream.overrides import flatten
from redream.settings import RunConfig
from tasks.machinery.devices import SMALL_GIB, require_device
from tasks.machinery.progress import say, stop_requested
from tasks.machinery.store import Output, StageKey, Store, write_json
from tasks.runs.records import ALIVE_LOCK, as_crashed, list_runs, run_folder
from tasks.tracking.run_description import comparison, picture_and_files, run_note
from tasks.tracking.tracker import (
    LOCAL,
    Tracker,
    Tracking,
    default_tracking_uri,
    is_own,
    new_local_id,
    open_tracking,
    uri_today,
)

PICTURE = "orbit.png"  # of a run that made an object, in the run's folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run under way, as tasks get it: names and places, nothing that decides a result but prompt and seed."""

    run_id: str
    out: str
    prompt: str
    seed: int
    tracking: Tracking
    mlflow_run_id: str
    prefect_tags: dict[str, str]
    salts: dict[str, str] = field(default_factory=dict)  # by stage: what must be made anew
    gpu_gib: float = SMALL_GIB  # of a GPU's memory that its stages need

    @property
    def folder(self) -> Path:
        return run_folder(Path(self.out), self.run_id)

    @property
    def store(self) -> Store:
        return Store(Path(self.out) / "store")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """Which run is repeated, and a salt for each stage that is made anew although its output may be there."""

    run_id: str
    mlflow_run_id: str
    salts: dict[str, str]
    change: str = ""  # what differs, in a few words


@contextmanager
def open_run(
    name: str,
    prompt: str,
    seed: int,
    config: RunConfig | None,
    request: Mapping[str, Any],
    out: Path,
    repeats: Repeats | None = None,
    batch: str = "",
    gpu_gib: float = SMALL_GIB,
) -> Iterator[Run]:
    """Record a run from its first moment to its end, however it ends.

    Args:
        name: the flow's name.
        request: the parameters of the flow, as JSON.
        config: none for a flow of flows.
        repeats: the run that this one repeats in part.
        batch: the run of the batch that this one belongs to.
        gpu_gib: memory that it needs of a GPU.

    Raises:
        ValueError: no device of this machine will do.
    """
    device = ""
    if config is not None:  # else others compute
        device = require_device(gpu_gib).line()
        say(device)
    repeated = (repeats.run_id, repeats.mlflow_run_id) if repeats is not None else ("", "")
    settle_crashed(out)  # an earlier attempt perhaps, which could not close what it had opened
    if (flow_run.run_count or 0) > 1 and repeats is None:
        repeated = _earlier_attempt(out)
    started = datetime.now(UTC)
    run_id = new_run_id(prompt, started, request)
    run_folder(out, run_id).mkdir(parents=True)
    tracking = open_tracking(default_tracking_uri(out), out)
    prefect_tags = _prefect_tags()
    tags = {"redream.run_id": run_id, "redream.flow": name, "redream.prompt": prompt, "redream.batch": batch}
    tags |= prefect_tags
    tags |= {"redream.rerun_of": repeated[0], "redream.rerun_of_mlflow_run": repeated[1]}
    settings = flatten(config) if config is not None else {}
    tracker = Tracker(tracking, new_local_id())
    run = Run(
        run_id=run_id,
        out=str(out),
        prompt=prompt,
        seed=seed,
        tracking=tracking,
        mlflow_run_id=tracker.run_id,
        prefect_tags=prefect_tags,
        salts=dict(repeats.salts) if repeats is not None else {},
        gpu_gib=gpu_gib,
    )
    alive = FileLock(run.folder / ALIVE_LOCK)  # dies with this process, by which others know a crashed run
    alive.acquire()
    write_json(
        run.folder / "run.json",
        {
            "run_id": run_id,
            "flow": name,
            "state": "running",
            "prompt": prompt,
            "request": dict(request),
            "started": started.isoformat(timespec="seconds"),
            "machine": platform.platform(),
            "device": device.removeprefix("device: "),
            "process": {"host": platform.node(), "pid": os.getpid()},
            "mlflow": {"uri": tracking.uri, "is_own": is_own(tracking, out), "run_id": tracker.run_id},
            "prefect": prefect_tags,
            "rerun_of": repeated[0],
            "salts": run.salts,
            "batch": batch,
            "settings": settings,
            "stages": {},
            "metrics": {},
            "files": [],
        },
    )
    try:
        shown = f"{prompt[:80]} ({repeats.change})" if repeats is not None and repeats.change else prompt[:80]
        tracker.create(shown, tags, run_note(prompt, run_id, tags))
        tracker.log_params({**request, **settings})
        if config is not None:
            tracker.log_text(json.dumps(asdict(config), indent=1), "config.json")
        run = replace(run, mlflow_run_id=tracker.run_id)
        _update(run, lambda record: record["mlflow"].update(run_id=tracker.run_id))
        yield run
    except BaseException as error:
        if not isinstance(error, Exception):
            stop_requested.set()  # Prefect takes SIGTERM for itself, and the stages in other threads must hear of it
        (run.folder / "error.txt").write_text("".join(traceback.format_exception(error)))
        _finish(
            run,
            tracker,
            ending_of(error),
            "FAILED" if isinstance(error, Exception) else "KILLED",
            error=f"{type(error).__name__}: {error}",
        )
        raise
    else:
        _finish(run, tracker, "finished", "FINISHED")
    finally:
        alive.release()


def ending_of(error: BaseException) -> str:
    """Return the state of what an error ends: it has failed, or somebody stopped it."""
    return "failed" if isinstance(error, Exception) else "stopped"


def record_start(run: Run, key: StageKey, waits_for: str = "") -> None:
    """Note that a stage is running, or that it waits, and for what."""
    entry = {"state": "waiting", "waits_for": waits_for} if waits_for else {"state": "running"}
    _update(run, lambda record: record["stages"].update({key.stage: {**entry, **_begun(key)}}))


def record_stage(
    run: Run, key: StageKey, output: Output, is_cached: bool, facts: Mapping[str, str] | None = None
) -> None:
    """Note a finished stage in `run.json`; its seconds are those of the attempt that made it.

    Args:
        facts: the attempt's device, and what drew its pictures.
    """
    entry = {
        "state": "cached" if is_cached else "computed",
        "digest": output.digest,
        "folder": str(Path(output.folder).relative_to(run.out)),
        "seconds": output.seconds,
        "mlflow_run_id": output.mlflow_run_id,
        **(facts or {}),
    }
    _end(run, key, entry)


def record_failure(run: Run, key: StageKey, error: BaseException) -> None:
    _end(run, key, {"state": ending_of(error), "error": f"{type(error).__name__}: {error}"})


def record_result(
    run: Run, metrics: Mapping[str, float], found: Mapping[str, Any], files: Sequence[Path]
) -> dict[str, Any]:
    """Note a run's final figures and what it found, log `files` as artifacts, and return the record."""
    tracker = Tracker(run.tracking, run.mlflow_run_id)
    tracker.log_final(metrics)
    tracker.show_figures(metrics)
    tracker.log_artifacts(files)
    names = [file.name for file in files]
    return _update(run, lambda record: record.update(metrics=dict(metrics), found=dict(found), files=names))


def settle_crashed(out: Path) -> list[str]:
    """Write down that runs have crashed whose process died, close them in MLflow, and return their ids."""
    settled = []
    for path in sorted((out / "runs").glob("*/run.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # somebody else's damage must not end this run
            if json.loads(path.read_text())["state"] != "running":
                continue
            with FileLock(path.with_name(ALIVE_LOCK), timeout=0):  # else it is alive, or has just ended by itself
                record = json.loads(path.read_text())
                if record["state"] != "running":
                    continue
                write_json(path, as_crashed(record))
            uri = uri_today(record["mlflow"], out)
            if not uri.startswith("sqlite:") or Path(make_url(uri).database or "").is_file():  # it may be gone
                Tracker(open_tracking(uri, out), record["mlflow"]["run_id"]).close_open()
            settled.append(record["run_id"])
    return settled


def new_run_id(prompt: str, started: datetime, request: Mapping[str, Any]) -> str:
    """Name a run by its time and prompt, so that a listing reads; the suffix tells runs of one second apart."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    suffix = hashlib.sha256(f"{started.isoformat()}{json.dumps(dict(request), sort_keys=True)}".encode()).hexdigest()[
        :4
    ]
    return "-".join(filter(None, [started.strftime("%Y%m%d-%H%M%S"), words, suffix]))


def _end(run: Run, key: StageKey, entry: Mapping[str, Any]) -> None:
    def change(record: dict[str, Any]) -> None:
        begun = record["stages"].get(key.stage) or _begun(key)
        record["stages"][key.stage] = {**begun, **entry, "ended": _now()}

    _update(run, change)


def _begun(key: StageKey) -> dict[str, Any]:
    return {"key": key.digest, "version": key.identity["version"], "started": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _earlier_attempt(out: Path) -> tuple[str, str]:
    """Return the run that this flow run's last attempt made, here and in MLflow: Prefect's Retry repeats it."""
    attempts = [record for record in list_runs(out) if record["prefect"].get("prefect.flow_run_id") == flow_run.id]
    return (attempts[-1]["run_id"], attempts[-1]["mlflow"]["run_id"]) if attempts else ("", "")


def _finish(run: Run, tracker: Tracker, state: str, status: str, error: str = "") -> None:
    ended = datetime.now(UTC).isoformat(timespec="seconds")

    def end(record: dict[str, Any]) -> None:
        record.update(state=state, ended=ended, **({"error": error} if error else {}))
        for entry in record["stages"].values():
            if entry["state"] in ("running", "waiting"):  # in a thread that nobody waits for any more
                entry.update(state="stopped", ended=_now())

    record = _update(run, end)
    tracker.set_tags(
        {
            "redream.state": state,
            "redream.error": error,
            "mlflow.note.content": run_note(
                run.prompt,
                run.run_id,
                {**run.prefect_tags, "redream.rerun_of": record["rerun_of"]},
                record["stages"],
                _shown(run, record, tracker),
            ),
        }
    )
    tracker.log_artifacts([run.folder / "run.json"])
    tracker.finish(status)
    if state != "finished":
        tracker.close_open()
    tracker.drain()
    _update(run, lambda record: record["mlflow"].update(run_id=tracker.run_id))  # it may have been a local one


def _shown(run: Run, record: Mapping[str, Any], tracker: Tracker) -> list[str]:
    """Return Markdown for a run that made an object: its picture, its files, and other runs of the prompt beside it."""
    if not (run.folder / PICTURE).is_file():
        return []
    shown = picture_and_files(tracker.run_id, PICTURE, record["files"])
    if (others := _others(run, record)) and tracker.experiment_id:
        shown.append(comparison([*others, tracker.run_id], tracker.experiment_id))
    return shown


def _others(run: Run, record: Mapping[str, Any]) -> list[str]:
    """Return MLflow's ids of the other finished runs of a prompt, the oldest first."""
    found = []
    for path in (Path(run.out) / "runs").glob("*/run.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # somebody else's damage must not end this run
            other = json.loads(path.read_text())
            is_alike = all(other[name] == record[name] for name in ("flow", "prompt"))
            is_here = uri_today(other["mlflow"], Path(run.out)) == run.tracking.uri
            is_shown = is_here and not other["mlflow"]["run_id"].startswith(LOCAL)
            if is_alike and is_shown and other["state"] == "finished" and other["run_id"] != run.run_id:
                found.append((other["started"], other["mlflow"]["run_id"]))
    return [mlflow_run_id for _, mlflow_run_id in sorted(found)]


def _update(run: Run, change: Any) -> dict[str, Any]:
    path = run.folder / "run.json"
    with FileLock(run.folder / ".run.lock"):  # two stages may end at once
        record = json.loads(path.read_text())
        change(record)
        write_json(path, record)
    return record


def _prefect_tags() -> dict[str, str]:
    """Return the tags that link an MLflow run to the Prefect flow run around it; none outside a flow."""
    tags = {"prefect.flow_run_id": flow_run.id, "prefect.flow_run_name": flow_run.name}
    if (url := flow_run.ui_url) and str(url).startswith("http"):  # Prefect's own short-lived server shows no pages
        tags["prefect.flow_run_url"] = url
    return {name: str(value) for name, value in tags.items() if value}
