"""Commands on what a run left, finished or not: export, watch, delete."""

from __future__ import annotations

import sys
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.command.options import AsJson, Device, Out, RunId, Settings
from flows.command.running import print_json, use_device
from flows.processes.environment import prepare_environment
from flows.requests.request import DEFAULT_OUT, checked_config, checked_out, parsed_settings
from redream.settings import RunConfig
from tasks.machinery.devices import needed_gib
from tasks.runs.description import reason_of
from tasks.runs.records import read_run

if TYPE_CHECKING:
    from tasks.runs.deletion import Deletion

FORMATS = ("glb", "obj", "ply", "stl", "mp4", "png")
POLL_SECONDS = 2.0


def export(
    run: RunId,
    formats: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="glb, obj, ply, stl; mp4 turns; png is a still.")
    ] = "glb,mp4,png",
    settings: Settings = [],
    to: Annotated[str, typer.Option(metavar="DIR", help="Where the files go.", show_default="the run's folder")] = "",
    device: Device = "",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Write a run's object as files for other programs, also of a run that was stopped."""
    asked = [name.strip().lower() for name in formats.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in FORMATS]:
        raise ValueError(f"--formats {unknown[0]!r}: there are {', '.join(FORMATS)}")
    if not asked:
        raise ValueError(f"--formats names none; there are {', '.join(FORMATS)}")
    overrides = parsed_settings(settings)
    if other := [name for name in overrides if not name.startswith("export.")]:
        raise ValueError(f"--set {other[0]} does not concern the export; only export.… settings can change here")
    folder = checked_out(out)
    record = read_run(folder, run)
    config = config_of(record, overrides)
    use_device(device, needed_gib(config))
    prepare_environment(folder)
    from tasks.machinery.slots import device_slot, slots_folder
    from tasks.results.model_files import write_object

    place = Path(to).absolute() if to else Path(record["folder"]) / "export"
    with device_slot(slots_folder(), needed_gib(config), trains=False, holder=f"an export of run {run}") as where:
        written = write_object(folder, record, config, asked, place, where)
    if as_json:
        print_json({"run_id": run, "files": [str(path) for path in written]})
    else:
        for path in written:
            print(path)


def watch(run: RunId, out: Out = DEFAULT_OUT) -> None:
    """Open the page of a run, which grows while the run is under way; without a browser, say how the run goes."""
    folder = checked_out(out)
    record = read_run(folder, run)
    page = Path(record["folder"]) / "page.html"
    if page.is_file():
        print(page, flush=True)
        if webbrowser.open(page.as_uri()):
            return
    said = ""
    while True:
        line = _progress_of(folder, record)
        if line != said:
            print(said := line, flush=True)
        if record["state"] != "running":
            return
        time.sleep(POLL_SECONDS)
        record = read_run(folder, run)


def delete(
    run: RunId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Delete a run: its folder, its runs in MLflow, and the stage outputs that no other run uses."""
    folder = checked_out(out)
    record = read_run(folder, run)
    prepare_environment(folder)
    from tasks.runs.deletion import delete_run, plan_deletion

    plan = plan_deletion(folder, record)
    for line in _said_of(plan):
        print(line, file=sys.stderr)
    if not yes:
        print("delete all of this? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ValueError("nothing was deleted")
    busy = delete_run(folder, plan)
    for path in busy:
        print(f"in use, so it stays: {path}; `redream gc` lists it later", file=sys.stderr)
    if as_json:
        print_json({"run_id": run, "num_bytes": plan.num_bytes, "busy": busy})
    else:
        print(f"run {run} is deleted")


def _said_of(plan: Deletion) -> list[str]:
    """Say what a deletion removes, and how much."""
    lines = [f"folder    {plan.folder_bytes / 1e6:8.1f} MB  {plan.folder}"]
    lines += [f"{entry.stage:<9} {entry.num_bytes / 1e6:8.1f} MB  {entry.path}" for entry in plan.store]
    lines += [f"MLflow    {plan.artifact_bytes / 1e6:8.1f} MB  {len(plan.mlflow_runs)} runs with their artifacts"]
    return [*lines, f"in all    {plan.num_bytes / 1e6:8.1f} MB"]


def config_of(record: dict[str, Any], overrides: dict[str, Any]) -> RunConfig:
    """Return the settings of a run that made an object, some of them changed."""
    if record["flow"] != "generate":
        raise ValueError(f"run {record['run_id']} is of the flow {record['flow']!r}, which makes no object")
    asked = record["request"]
    return checked_config(asked["preset"], asked["method"], {**asked["settings"], **overrides})


def _progress_of(folder: Path, record: dict[str, Any]) -> str:
    """Say in one line where a run stands."""
    from tasks.results.page_content import steps_of

    if record["state"] != "running":
        return record["state"] if record["state"] == "finished" else reason_of(folder, record)
    words = []
    for name, entry in record["stages"].items():
        if entry["state"] == "waiting":
            words.append(f"{name}: {entry.get('waits_for', 'waiting')}")
        elif entry["state"] == "running":
            steps = len(steps_of(folder, record, name, {}))
            words.append(f"{name}: step {steps}" if steps else name)
    return "; ".join(words) or "starting"
