"""Many prompts, each in a process of its own with its own flow run and MLflow run, so that none can harm another.

The processes are children of this one or, where the batch is deployed, runs that the workers of the pool take. The
batch itself is a run too: its folder holds the gallery, the table and what its children said. What a finished run of
the same request has made already is not run again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from httpx import HTTPError
from prefect import flow
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.runtime import deployment
from prefect.runtime import flow_run as this_run

from flows.children import Children, Ended, Job
from flows.members import Defaults, Member, checked_members, read_members
from flows.parameters import MethodName, Place, PresetName, Processes, Prompts, Seeds, Settings
from flows.request import DEFAULT_OUT, Request, checked_out
from flows.submitted import Over, cancel_submitted, run_on_workers
from redream.config import flatten
from redream.gallery import GalleryItem, StageSpan, write_gallery
from redream.page import visible_text
from tasks import adaptation, delivery, distillation, evaluation, exporting, indexing, orientation, rendering, retrieval
from tasks.gallery import gallery_markdown, stage_spans, thumbnail
from tasks.progress import duration, say, track
from tasks.records import list_runs, read_run, run_folder
from tasks.runs import Run, open_run, record_result
from tasks.slots import NUM_SLOTS, asked_slots
from tasks.stage import default_slots
from tasks.store import write_json
from tasks.tracking import run_address

VERSIONS = {
    "index": indexing.STAGE_VERSION, "retrieve": retrieval.STAGE_VERSION, "take_assets": retrieval.STAGE_VERSION,
    "align": orientation.STAGE_VERSION, "render": rendering.STAGE_VERSION, "warm_up": distillation.STAGE_VERSION,
    "adapt": adaptation.STAGE_VERSION, "distill": distillation.STAGE_VERSION,
    "evaluate": evaluation.STAGE_VERSION, "export": exporting.STAGE_VERSION,
}  # fmt: skip
STOPPED = (130, 143, -2, -15)  # exit codes of Ctrl-C and SIGTERM
MISSING = ("failed", "stopped")  # states of objects, after which their batch has failed
EXTRA_WORKERS = 1  # beyond one per GPU: their first stages need none


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one object of a batch."""

    line: int
    prompt: str
    seed: int
    method: str
    state: str  # done, skipped, failed or stopped
    reason: str = ""
    run_id: str = ""
    seconds: float = 0.0
    metrics: dict[str, float]


Outcomes = Generator[tuple[int, Outcome], None, None]  # with the number of the member


class BatchFailed(RuntimeError):
    """Some objects of a batch could not be made; the others were."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


def run_name() -> str:
    """Name the run by its prompts, for Prefect."""
    asked = this_run.parameters
    return f"batch of {Path(asked.get('prompts_file') or '').name or str(len(asked.get('prompts') or [])) + ' prompts'}"


@flow(name="batch", flow_run_name=run_name, on_cancellation=[cancel_submitted])
def batch(
    prompts_file: Place = "",
    prompts: Prompts = [],
    preset: PresetName = "mini",
    method: MethodName = "redream",
    seeds: Seeds = [0],
    index: Place = "",
    settings: Settings = {},
    workers: Processes = 0,
    gpus: Processes = 0,
    out: Place = DEFAULT_OUT,
) -> dict[str, Any]:
    """Make an object of every prompt and seed; returns `run_id`, `gallery` and `outcomes`.

    Args:
        prompts_file: text with a prompt a line, or JSON lines with settings of their own (`.jsonl`).
        prompts: the prompts themselves instead.
        preset: mini (CPU, embedded models), sd21 (the paper's setting) or smoke (a few steps, to try the machinery).
        method: redream, or without retrieved assets vsd or sds.
        seeds: for lines that name none.
        index: folder of an index; empty for the miniature's own, which is built where it is missing.
        settings: overrides such as `{"distill.num_steps": 500}`.
        workers: objects at a time; 0 for one more than trainings, and on a deployment for as many as workers take.
        gpus: trainings at a time on a machine; 0 for one per GPU.
        out: folder of runs and stage outputs, on the worker's machine.
    """
    folder = checked_out(out)
    defaults = Defaults(
        preset=preset, method=method, seeds=tuple(seeds), index=index, settings=dict(settings), out=folder
    )
    members = asked_members(prompts_file, prompts, defaults)
    title = f"batch of {Path(prompts_file).name or 'prompts'}: {len(members)} objects"
    request = {
        "prompts_file": prompts_file, "prompts": prompts, "preset": preset, "method": method, "seeds": seeds,
        "index": index, "settings": settings, "workers": workers, "gpus": gpus,
    }  # fmt: skip
    with open_run("batch", title, 0, None, request, folder) as run:
        outcomes = _made(run, members, workers, gpus, {} if out == DEFAULT_OUT else {"out": out})
        result = _deliver(run, title, outcomes)
        num_missing = sum(outcome.state in MISSING for outcome in outcomes)
        if num_missing:
            raise BatchFailed(f"{num_missing} of {len(members)} objects are missing; see {result['gallery']}", result)
        return result


def asked_members(prompts_file: str, prompts: Sequence[str], defaults: Defaults) -> list[Member]:
    if bool(prompts_file) == bool(prompts):
        raise ValueError("a batch needs a file of prompts, or the prompts themselves")
    if prompts_file:
        return read_members(prompts_file, defaults)
    return checked_members([prompt.encode() for prompt in prompts], defaults, is_json=False, name="prompts")


def finished_runs(out: Path) -> dict[str, dict[str, Any]]:
    """Return the finished runs whose results are there and would come out the same today, by their requests."""
    return {_identity(record["request"]): record for record in list_runs(out) if _is_whole(out, record)}


def _is_whole(out: Path, record: Mapping[str, Any]) -> bool:
    if record["flow"] != "generate" or record["state"] != "finished":
        return False
    named = [Path(asset) for asset in record["request"]["assets"]]
    if record["request"]["index"]:
        named.append(Path(record["request"]["index"]) / "manifest.json")
    started = datetime.fromisoformat(record["started"]).timestamp()
    return (
        all((run_folder(out, record["run_id"]) / name).is_file() for name in delivery.DELIVERED)
        and all(entry.get("version") == VERSIONS.get(name) for name, entry in record["stages"].items())
        and all(path.is_file() and path.stat().st_mtime < started for path in named)
    )


def _identity(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)


def _made(run: Run, members: Sequence[Member], workers: int, gpus: int, place: Mapping[str, str]) -> list[Outcome]:
    """Make what is missing, some at a time, and return what became of each."""
    there = finished_runs(Path(run.out))
    outcomes: dict[int, Outcome] = {}
    missing: dict[str, int] = {}  # by request: a prompt that comes twice is made once
    for number, member in enumerate(members):
        identity = _identity(member.request.parameters())
        record = there.get(identity)
        if record is not None and record["settings"] == json.loads(json.dumps(flatten(member.request.config))):
            outcomes[number] = _skipped(member, record["run_id"], "made before", record["metrics"])
        elif identity in missing:
            first = members[missing[identity]]
            outcomes[number] = _skipped(member, "", f"the same as line {first.line}", {})
        else:
            missing[identity] = number
    if outcomes:
        say(f"{len(outcomes)} of {len(members)} objects are there already")
    asked = {number: members[number] for number in missing.values()}
    ended = _run_on_workers(run, asked, place, workers, gpus) if deployment.id else _run_here(run, asked, workers, gpus)
    description = f"{len(asked)} objects to make"
    shown = _show(lambda: create_progress_artifact(progress=0.0, key="batch-progress", description=description))
    with closing(ended):  # what is under way ends with it, also where the loop breaks off
        for num_ended, (number, outcome) in enumerate(track(ended, "batch", len(asked)), start=1):
            outcomes[number] = outcome
            say(f"{outcome.state}: {visible_text(outcome.prompt)} (seed {outcome.seed}) {visible_text(outcome.reason)}")
            progress = 100.0 * num_ended / len(asked)
            if shown is not None:
                _show(partial(update_progress_artifact, cast(UUID, shown), progress=progress))
    return [outcomes[number] for number in range(len(members))]


def _run_here(run: Run, asked: Mapping[int, Member], workers: int, gpus: int) -> Outcomes:
    """Make objects in children of this process."""
    logs = run.folder / "members"
    logs.mkdir()
    # One server for all: several on one database would wait for each other.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT__")}
    environment["PREFECT_API_URL"] = str(get_client(sync_client=True).api_url).rstrip("/")
    if gpus:
        environment[NUM_SLOTS] = str(gpus)
    jobs = [
        Job(name=str(number), command=_command(member.request, run.run_id, Path(run.out)))
        for number, member in asked.items()
    ]
    num_workers = workers or (gpus or asked_slots() or default_slots()) + EXTRA_WORKERS
    with closing(Children(logs, environment).run(jobs, num_workers)) as ended:
        for child in ended:
            number = int(child.name)
            yield number, _outcome(asked[number], child, run)


def _run_on_workers(
    run: Run, asked: Mapping[int, Member], place: Mapping[str, str], workers: int, gpus: int
) -> Outcomes:
    """Let the workers of the pool make objects."""
    requests = {number: member.request for number, member in asked.items()}
    for number, ended in run_on_workers(requests, run.run_id, place, workers, gpus):
        yield number, _submitted_outcome(asked[number], ended, run)


def _command(request: Request, batch_id: str, out: Path) -> list[str]:
    """Return the command that makes one object; its arguments are a list that no shell reads."""
    command = [
        sys.executable, "-m", "flows.cli", "generate", "--json", "--batch", batch_id, "--out", str(out),
        "--preset", request.preset, "--method", request.method, "--seed", str(request.seed),
    ]  # fmt: skip
    if request.index:
        command += ["--index", request.index]
    for asset in request.assets:
        command += ["--asset", asset]
    for name, value in request.settings.items():
        command += ["--set", f"{name}={value!r}"]
    return [*command, "--", request.prompt]


def _outcome(member: Member, child: Ended, run: Run) -> Outcome:
    asked = member.request
    common = {"line": member.line, "prompt": asked.prompt, "seed": asked.seed, "method": asked.method}
    if child.code == 0:
        try:
            record = read_run(Path(run.out), json.loads(child.output)["run_id"])
            started, ended = (datetime.fromisoformat(record[name]) for name in ("started", "ended"))
        except (ValueError, KeyError) as error:
            return Outcome(**common, state="failed", reason=f"its record cannot be read ({error})", metrics={})
        seconds = (ended - started).total_seconds()
        return Outcome(**common, state="done", run_id=record["run_id"], seconds=seconds, metrics=record["metrics"])
    state = "stopped" if child.code in STOPPED else "failed"
    found = [
        record["run_id"]
        for record in list_runs(Path(run.out))
        if record.get("batch") == run.run_id and record["request"] == json.loads(json.dumps(asked.parameters()))
    ]
    return Outcome(**common, state=state, reason=child.reason, run_id=found[-1] if found else "", metrics={})


def _submitted_outcome(member: Member, ended: Over, run: Run) -> Outcome:
    """Say what became of an object, by Prefect's state and, where this machine sees the files, the run's record."""
    asked = member.request
    common = {"line": member.line, "prompt": asked.prompt, "seed": asked.seed, "method": asked.method}
    records = [
        record
        for record in list_runs(Path(run.out))
        if record["prefect"].get("prefect.flow_run_id") == ended.flow_run_id != ""
    ]
    record = records[-1] if records else {"run_id": "", "metrics": {}}
    if ended.state == "Completed":
        return Outcome(
            **common,
            state="done",
            reason="" if records else f"its files are not below {run.out} on this machine",
            run_id=record["run_id"],
            seconds=ended.seconds,
            metrics=record["metrics"],
        )
    return Outcome(
        **common,
        state="stopped" if ended.state == "Cancelled" else "failed",
        reason=str(record.get("error") or ended.message),
        run_id=record["run_id"],
        metrics={},
    )


def _skipped(member: Member, run_id: str, reason: str, metrics: Mapping[str, float]) -> Outcome:
    asked = member.request
    return Outcome(
        line=member.line, prompt=asked.prompt, seed=asked.seed, method=asked.method, state="skipped", reason=reason,
        run_id=run_id, metrics=dict(metrics),
    )  # fmt: skip


def _deliver(run: Run, title: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write the table and the gallery, and log both."""
    counts = {state: sum(o.state == state for o in outcomes) for state in ("done", "skipped", "failed", "stopped")}
    summary = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    gallery = run.folder / "gallery.html"
    items, spans = _gallery(run, outcomes)
    write_gallery(gallery, title, summary, [item for item, _ in items], spans)
    result = {"run_id": run.run_id, "gallery": str(gallery), "outcomes": [asdict(outcome) for outcome in outcomes]}
    write_json(run.folder / "outcomes.json", result)
    figures = {f"batch/{state}": float(number) for state, number in counts.items()}
    record_result(run, figures, {}, [gallery, run.folder / "outcomes.json"])
    rows = [{**asdict(o), "prompt": visible_text(o.prompt), "metrics": _figures(o.metrics)} for o in outcomes]
    _show(lambda: create_table_artifact(key="batch", table=rows, description=summary))
    markdown = gallery_markdown(items, summary, gallery)
    _show(lambda: create_markdown_artifact(key="gallery", markdown=markdown, description=summary))
    return result


def _show(show: Callable[[], Any]) -> Any:
    """Show something in Prefect; a server that is away costs the batch nothing."""
    try:
        return show()
    except HTTPError as error:
        say(f"Prefect does not show all of this batch ({type(error).__name__})")
        return None


def _gallery(run: Run, outcomes: Sequence[Outcome]) -> tuple[list[tuple[GalleryItem, str]], list[StageSpan]]:
    """Return what is shown of each object, with its address in MLflow where it has one, and when its stages ran."""
    items, spans = [], []
    out = Path(run.out)
    began = datetime.fromisoformat(read_run(out, run.run_id)["started"])
    for outcome in outcomes:
        record = read_run(out, outcome.run_id) if outcome.run_id else None
        is_made = record is not None and outcome.state in ("done", "skipped")
        if record is not None and outcome.state != "skipped":
            spans += stage_spans(record, len({span.lane for span in spans}), began)
        took = f", {duration(outcome.seconds)}" if outcome.seconds else ""
        is_here = record is not None and record["mlflow"]["uri"] == run.tracking.uri
        address = run_address(run.tracking, record["mlflow"]["run_id"]) if record is not None and is_here else ""
        item = GalleryItem(
            prompt=outcome.prompt,
            state=outcome.state,
            reason=outcome.reason,
            subtitle=f"{outcome.state}, {outcome.method}, seed {outcome.seed}{took}",
            thumbnail=_thumbnail(out, record) if record is not None and is_made else b"",
            link=f"../{outcome.run_id}/page.html" if is_made else "",
            metrics=outcome.metrics,
        )
        items.append((item, address))
    return items, spans


def _thumbnail(out: Path, record: Mapping[str, Any]) -> bytes:
    try:
        return thumbnail(out, record)
    except ValueError:  # the evaluation's output has been deleted since; the run's own page has not
        return b""


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in sorted(metrics.items()))
