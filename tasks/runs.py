"""Runs: what was asked, how far it came, and where everything is, in `<out>/runs/<run_id>/run.json`.

`run.json` is the authority; Prefect's and MLflow's databases are views of it. Beside it lie copies of what a person
wants to open: the page, the mesh, the turntable.

    <out>/runs/<run_id>/   one folder per run          <out>/mlflow.db, mlartifacts/   MLflow
    <out>/store/           stage outputs, by content   <out>/.prefect/                 Prefect
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from prefect.runtime import flow_run

from redream.config import RunConfig, flatten
from tasks.records import run_folder
from tasks.store import Output, Store, write_json
from tasks.tracking import Tracker, Tracking, default_tracking_uri, open_tracking


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

    @property
    def folder(self) -> Path:
        return run_folder(Path(self.out), self.run_id)

    @property
    def store(self) -> Store:
        return Store(Path(self.out) / "store")


@contextmanager
def open_run(
    name: str, prompt: str, seed: int, config: RunConfig, request: Mapping[str, Any], out: Path
) -> Iterator[Run]:
    """Record a run from its first moment to its end, however it ends.

    Args:
        name: the flow's name.
        request: the parameters of the flow, as JSON.
    """
    started = datetime.now(UTC)
    run_id = new_run_id(prompt, started, request)
    run_folder(out, run_id).mkdir(parents=True)
    tracking = open_tracking(default_tracking_uri(out), out / "mlartifacts")
    prefect_tags = _prefect_tags()
    tags = {"redream.run_id": run_id, "redream.flow": name, "redream.prompt": prompt, **prefect_tags}
    tracker = Tracker.start(tracking, prompt[:80], tags, note=_note(prompt, run_id, prefect_tags))
    tracker.log_params({**request, **flatten(config)})
    tracker.log_text(json.dumps(asdict(config), indent=1), "config.json")
    run = Run(
        run_id=run_id,
        out=str(out),
        prompt=prompt,
        seed=seed,
        tracking=tracking,
        mlflow_run_id=tracker.run_id,
        prefect_tags=prefect_tags,
    )
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
            "mlflow": {"uri": tracking.uri, "experiment_id": tracking.experiment_id, "run_id": tracker.run_id},
            "prefect": prefect_tags,
            "settings": flatten(config),
            "stages": {},
            "metrics": {},
        },
    )
    try:
        yield run
    except BaseException as error:
        is_failure = isinstance(error, Exception)
        (run.folder / "error.txt").write_text("".join(traceback.format_exception(error)))
        _finish(
            run,
            tracker,
            "failed" if is_failure else "stopped",
            "FAILED" if is_failure else "KILLED",
            error=f"{type(error).__name__}: {error}",
        )
        raise
    _finish(run, tracker, "finished", "FINISHED")


def record_stage(run: Run, output: Output, is_cached: bool) -> None:
    """Note a finished stage in `run.json`, with its figures in the run's own MLflow run as well."""
    entry = {
        "state": "cached" if is_cached else "computed",
        "key": output.key,
        "digest": output.digest,
        "folder": str(Path(output.folder).relative_to(run.out)),
        "seconds": output.seconds,
        "mlflow_run_id": output.mlflow_run_id,
    }
    _update(run, lambda record: record["stages"].update({output.stage: entry}))


def record_failure(run: Run, stage: str, key: str, error: BaseException) -> None:
    state = "failed" if isinstance(error, Exception) else "stopped"
    entry = {"state": state, "key": key, "error": f"{type(error).__name__}: {error}"}
    _update(run, lambda record: record["stages"].update({stage: entry}))


def record_result(
    run: Run, metrics: Mapping[str, float], found: Mapping[str, Any], files: Sequence[Path]
) -> dict[str, Any]:
    """Note a run's final figures and what it found, log `files` as artifacts, and return the record."""
    tracker = Tracker(run.tracking, run.mlflow_run_id)
    tracker.log_final(metrics)
    tracker.log_artifacts(files)
    return _update(run, lambda record: record.update(metrics=dict(metrics), found=dict(found)))


def new_run_id(prompt: str, started: datetime, request: Mapping[str, Any]) -> str:
    """Name a run by its time and prompt, so that a listing reads; the suffix tells runs of one second apart."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    suffix = hashlib.sha256(f"{started.isoformat()}{json.dumps(dict(request), sort_keys=True)}".encode()).hexdigest()[
        :4
    ]
    return "-".join(filter(None, [started.strftime("%Y%m%d-%H%M%S"), words, suffix]))


def _finish(run: Run, tracker: Tracker, state: str, status: str, error: str = "") -> None:
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    record = _update(run, lambda record: record.update(state=state, ended=ended, **({"error": error} if error else {})))
    tracker.set_tags(
        {
            "redream.state": state,
            "redream.error": error,
            "mlflow.note.content": _note(run.prompt, run.run_id, run.prefect_tags, record["stages"]),
        }
    )
    tracker.log_artifacts([run.folder / "run.json"])
    tracker.finish(status)


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


def _note(prompt: str, run_id: str, prefect_tags: Mapping[str, str], stages: Mapping[str, Any] | None = None) -> str:
    lines = [f"**{prompt}**", "", f"Run `{run_id}`."]
    if url := prefect_tags.get("prefect.flow_run_url"):
        lines.append(f"Prefect: [{prefect_tags.get('prefect.flow_run_name', 'flow run')}]({url}).")
    if stages:
        lines += ["", "| stage | state | seconds |", "|---|---|---|"]
        lines += [f"| {name} | {entry['state']} | {entry.get('seconds', '')} |" for name, entry in stages.items()]
    return "\n".join(lines)
