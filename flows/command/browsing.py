"""Commands that look at what was made and tidy it up: runs, show, ui, sync, gc."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.command.options import AsJson, Out, RunId
from flows.command.running import print_json
from flows.command.tables import (
    again,
    console,
    print_garbage,
    print_run,
    runs_table,
)
from flows.processes.environment import check_mlflow, prepare_environment
from flows.requests.request import (
    DEFAULT_OUT,
    checked_out,
)
from flows.service.addresses import OWN_MLFLOW, check_free
from tasks.runs.garbage import delete_garbage, find_garbage
from tasks.runs.records import UNFINISHED, list_runs, read_run
from tasks.tracking.databases import sqlite_url
from tasks.tracking.relocation import relocate_artifacts


def runs(
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed, stopped or crashed.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Write a page with a picture of each.")] = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """List the runs, the oldest first."""
    records = [record for record in list_runs(Path(out)) if not failed or record["state"] in UNFINISHED]
    if html:
        page = _runs_page(Path(out).absolute(), [each for each in records if each["flow"] == "generate"])
    if as_json:
        print_json(records)
        return
    if html:
        print(page)
        return
    console().print(runs_table(records) if records else f"no runs in {out}")


def _runs_page(out: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Write the page of all runs, the newest first, with what people noted of them in MLflow."""
    prepare_environment(out)
    from redream.pages.gallery import write_gallery
    from tasks.results.gallery import run_item
    from tasks.tracking.tracker import default_tracking_uri, labels_of, open_tracking

    labels = labels_of(open_tracking(default_tracking_uri(out), out)) if records else {}
    items = [run_item(out, each, "runs", labels.get(each["mlflow"]["run_id"])) for each in reversed(records)]
    page = out / "runs.html"
    write_gallery(page, "All runs", f"{len(items)} runs in {out}", items)
    return page


def note(
    run: RunId,
    text: Annotated[str, typer.Argument(help="What to remember of it; nothing leaves the note as it is.")] = "",
    favorite: Annotated[
        bool | None, typer.Option("--favorite/--no-favorite", help="Mark it.", show_default=False)
    ] = None,
    out: Out = DEFAULT_OUT,
) -> None:
    """Note something of a run, or mark it as a favourite: tags in MLflow, shown by `redream runs --html`."""
    folder = checked_out(out)
    record = read_run(folder, run)
    if not text and favorite is None:
        raise ValueError("give a note, --favorite or --no-favorite")
    prepare_environment(folder)
    from tasks.tracking.tracker import Tracker, drain, open_tracking, uri_today

    tags = {"redream.note": text} | ({} if favorite is None else {"redream.favorite": str(favorite).lower()})
    Tracker(open_tracking(uri_today(record["mlflow"], folder), folder), record["mlflow"]["run_id"]).set_tags(tags)
    drain()


def show(run: RunId, out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """Show a run: its stages, figures and files, and how to run it again."""
    record = read_run(Path(out).absolute(), run)
    if as_json:
        print_json({**record, "again": again(record, out)})
    else:
        print_run(record, out)
        if record["flow"] == "batch":
            members = [each for each in list_runs(Path(out).absolute()) if each.get("batch") == run]
            console().print(runs_table(members) if members else "no object of this batch has begun")


def settings(
    section: Annotated[str, typer.Argument(help="Such as distill.", show_default="all")] = "", as_json: AsJson = False
) -> None:
    """List the settings: their values in each preset, what is allowed, what they do."""
    from redream.setting_table import all_settings, shown

    found = [each for each in all_settings() if not section or each.name.startswith(f"{section.rstrip('.')}.")]
    if not found:
        sections = dict.fromkeys(each.name.partition(".")[0] for each in all_settings())
        raise ValueError(f"there is no section {section!r}; the sections are {', '.join(sections)}")
    if as_json:
        print_json([asdict(each) for each in found])
        return
    table = Table("setting", *found[0].defaults, "allowed", "what it is", box=None)
    for each in found:
        table.add_row(each.name, *map(shown, each.defaults.values()), each.allowed, each.meaning)
    console().print(table)


def methods(as_json: AsJson = False) -> None:
    """List the methods, and the settings that only some of them use."""
    from redream.methods import METHODS

    if as_json:
        print_json({name: asdict(facts) for name, facts in METHODS.items()})
        return
    table = Table("method", "what it is", "settings of its own", box=None)
    for name, facts in METHODS.items():
        own = [f"{setting}*" if setting.endswith(".") else setting for setting in facts.settings]
        table.add_row(name, f"{facts.what} ({facts.source})", "\n".join(own))
    console().print(table)


def sync(out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """Deliver to MLflow what it could not take before, and close what has crashed."""
    folder = checked_out(out)
    prepare_environment(folder)
    check_mlflow(os.environ)  # other commands go on without it, and leave to this one what waits
    from tasks.runs.run import settle_crashed
    from tasks.tracking.tracker import default_tracking_uri, deliver_leftovers, drain, open_tracking

    delivered, waiting = deliver_leftovers(open_tracking(default_tracking_uri(folder), folder))
    crashed = settle_crashed(folder)
    drain()
    if as_json:
        print_json({"delivered": delivered, "waiting": waiting, "crashed": crashed})
    else:
        print(f"{delivered} events delivered, {waiting} still wait; {len(crashed)} crashed runs closed")
    if waiting:
        raise typer.Exit(1)


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """List the stage outputs that no run needs; runs are kept as long as their folder is there."""
    folder = Path(out).absolute()
    found = find_garbage(folder)
    deleted = delete_garbage(folder, found) if yes else []
    if as_json:
        print_json({"garbage": [asdict(each) for each in found], "deleted": [each.path for each in deleted]})
    else:
        print_garbage(found, len(deleted), yes)


def ui(
    out: Out = DEFAULT_OUT,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Open MLflow on this machine, until Ctrl-C."""
    folder = Path(out).absolute()
    if not (folder / "mlflow.db").is_file():
        raise ValueError(f"no runs in {out}; make one with `redream generate`")
    check_free("127.0.0.1", "--port", port)
    prepare_environment(folder)
    # By default it starts 15 processes and takes 3 GiB; this needs two and a half.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["PYTHONSAFEPATH"] = "1"  # it starts in the output folder, whose modules must not count
    from tasks.tracking.tracker import open_tracking, runs_address

    database = _writable(folder / "mlflow.db", folder / "mlartifacts")
    tracking = open_tracking(sqlite_url(database), folder)
    print(f"MLflow: {runs_address(f'http://127.0.0.1:{port}', tracking)}  (Ctrl-C ends it)", flush=True)
    os.chdir(database.parent)
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-P",
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            "--backend-store-uri",
            OWN_MLFLOW,
            "--artifacts-destination",
            (folder / "mlartifacts").as_uri(),
        ],
    )


def _writable(database: Path, artifacts: Path) -> Path:
    """Return MLflow's database, or a copy where it cannot be written, such as in an archive."""
    if os.access(database.parent, os.W_OK) and os.access(database, os.W_OK):
        return database
    copy = Path(tempfile.mkdtemp(prefix="redream-ui-"), database.name)  # MLflow's server needs it to the end
    shutil.copyfile(database, copy)
    relocate_artifacts(copy, artifacts)
    return copy
