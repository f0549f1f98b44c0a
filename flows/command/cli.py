"""The `redream` command: a thin door to the flows.

It checks what it was given before it imports anything heavy. Results go to standard output, as JSON with `--json`;
everything else goes to standard error. The exit code is 0, or 2 where the user can help it, 130 after Ctrl-C, else 1.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from flows.children import stop_with_parent
from flows.environment import prepare_environment, starting_services
from flows.members import Defaults, parsed_seeds, read_members
from flows.own_server import collect_rarely
from flows.plan import checked_rerun
from flows.request import (
    DEFAULT_OUT,
    checked_config,
    checked_index_place,
    checked_out,
    checked_prompt,
    checked_request,
    checked_runner,
    checked_weights,
    parsed_settings,
)
from flows.serving import TAG
from flows.tables import (
    again,
    console,
    metric_table,
    print_batch,
    print_garbage,
    print_made,
    print_neighbors,
    print_run,
    runs_table,
)
from redream.config import MeshLimits, RunConfig
from redream.page import visible_text
from tasks.garbage import delete_garbage, find_garbage
from tasks.records import UNFINISHED, finished_stage, list_runs, read_run

if TYPE_CHECKING:
    from tasks.searching import IndexPlace

app = typer.Typer(
    help="Generate 3D objects from text, after ReDream (arXiv 2402.02972).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
index_app = typer.Typer(help="Build and examine indexes of 3D assets.", no_args_is_help=True)
app.add_typer(index_app, name="index")

Prompt = Annotated[str, typer.Argument(help="What to make, in a few words.", show_default=False)]
Preset = Annotated[str, typer.Option(help="mini (CPU, embedded models) or sd21 (the paper's setting).")]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a setting.", show_default=False)
]
Index = Annotated[str, typer.Option(metavar="DIR", help="An index to search.", show_default="the miniature's own")]
Out = Annotated[str, typer.Option(metavar="DIR", help="Where runs, stage outputs and databases go.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run, as `redream runs` names it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def generate(
    prompt: Prompt,
    preset: Preset = "mini",
    method: Annotated[str, typer.Option(help="redream, vsd or sds.")] = "redream",
    seed: Annotated[int, typer.Option(help="The same seed gives the same object.")] = 0,
    asset: Annotated[
        list[str], typer.Option(metavar="FILE", help="Start from your own mesh; may be repeated.", show_default=False)
    ] = [],
    settings: Settings = [],
    index: Index = "",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
    batch_id: Annotated[str, typer.Option("--batch", hidden=True)] = "",
) -> None:
    """Make a 3D object from a prompt."""
    request = checked_request(prompt, preset, method, seed, out, index, asset, parsed_settings(settings))
    if asset:
        _check_meshes(request.assets, request.config.mesh)
    with _services(request.out):
        from flows.generate import generate as generate_flow
    with _results_only():
        made = generate_flow(**request.parameters(), out=str(request.out), batch=batch_id)
    if as_json:
        _print_json(asdict(made))
    else:
        print_made(asdict(made), out)


@app.command()
def search(
    prompt: Prompt,
    preset: Preset = "mini",
    top_k: Annotated[int, typer.Option(min=1, help="How many assets to show.")] = 3,
    license: Annotated[str, typer.Option(metavar="CODES", help="Only these licences, such as cc0,by.")] = "",
    settings: Settings = [],
    index: Index = "",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Find the assets nearest to a prompt."""
    from redream.licenses import parse_licenses

    overrides = {
        "retrieval.num_assets": top_k,
        "retrieval.licenses": parse_licenses(license),
        **parsed_settings(settings),
    }
    defaults = checked_config(preset, "redream", {}).retrieval
    overrides.setdefault("retrieval.num_recall", max(defaults.num_recall, top_k))
    config = checked_config(preset, "redream", overrides)
    text = checked_prompt(prompt)
    checked_index_place(index, preset, config)
    checked_weights(config)
    place = _open_index(index, config, preset, checked_out(out))
    from tasks.searching import search as search_index

    found = [asdict(neighbor) for neighbor in search_index(place, text, config.retrieval).neighbors]
    if as_json:
        _print_json({"prompt": text, "index": asdict(place), "neighbors": found})
    else:
        print_neighbors(found)


@app.command()
def evaluate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Runs, as `redream runs` names them.")],
    settings: Settings = [],
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Measure the objects of finished runs again."""
    overrides = parsed_settings(settings)
    if other := [name for name in overrides if not name.startswith("evaluation.")]:
        raise ValueError(f"--set {other[0]} does not concern evaluation; only evaluation.… settings can change here")
    folder = checked_out(out)
    for run in runs:
        finished_stage(folder, read_run(folder, run), "distill")
    with _services(folder):
        from flows.evaluate import evaluate_runs
    with _results_only():
        reports = evaluate_runs(runs, overrides, str(folder))
    if as_json:
        _print_json(reports)
        return
    for run, report in reports.items():
        console().print(metric_table(report["metrics"], title=run))


@app.command()
def runs(
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed, stopped or crashed.")] = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """List the runs, the oldest first."""
    records = [record for record in list_runs(Path(out)) if not failed or record["state"] in UNFINISHED]
    if as_json:
        _print_json(records)
        return
    console().print(runs_table(records) if records else f"no runs in {out}")


@app.command()
def show(run: RunId, out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """Show a run: its stages, figures and files, and how to run it again."""
    record = read_run(Path(out).absolute(), run)
    if as_json:
        _print_json({**record, "again": again(record, out)})
    else:
        print_run(record, out)


@app.command()
def rerun(
    run: RunId,
    from_stage: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="The first stage to make anew.", show_default="what failed")
    ] = "",
    settings: Settings = [],
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Repeat a run in part: reuse what comes before a stage, make it and what depends on it anew."""
    overrides = parsed_settings(settings)
    asked = checked_rerun(run, from_stage, overrides, out)
    with _services(asked.request.out):
        from flows.rerun import rerun as rerun_flow
    with _results_only():
        made = rerun_flow(run, from_stage, overrides, str(asked.request.out))
    if as_json:
        _print_json(asdict(made))
    else:
        print_made(asdict(made), out)


@app.command()
def batch(
    prompts: Annotated[str, typer.Argument(help="Text with a prompt a line, or JSON lines.", show_default=False)],
    preset: Preset = "mini",
    method: Annotated[str, typer.Option(help="redream, vsd or sds.")] = "redream",
    seeds: Annotated[str, typer.Option(help="An object of each prompt for each of these seeds.")] = "0",
    settings: Settings = [],
    index: Index = "",
    workers: Annotated[int, typer.Option(min=0, help="Objects at a time.", show_default="one more than trainings")] = 0,
    gpus: Annotated[
        int, typer.Option(min=0, help="Trainings at a time on this machine.", show_default="one per GPU")
    ] = 0,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Make an object of every prompt in a file; again, and only what is missing is made."""
    overrides, numbers, folder = parsed_settings(settings), parsed_seeds(seeds), checked_out(out)
    defaults = Defaults(preset=preset, method=method, seeds=tuple(numbers), index=index, settings=overrides, out=folder)
    read_members(prompts, defaults)
    with _services(folder):
        from flows.batch import MISSING, BatchFailed
        from flows.batch import batch as batch_flow
    with _results_only():
        try:
            made = batch_flow(prompts, [], preset, method, numbers, index, overrides, workers, gpus, str(folder))
        except BatchFailed as error:
            made = error.result
    if as_json:
        _print_json(made)
    else:
        print_batch(made)
    if any(outcome["state"] in MISSING for outcome in made["outcomes"]):
        raise typer.Exit(1)


@app.command()
def sync(out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """Deliver to MLflow what it could not take before, and close what has crashed."""
    folder = checked_out(out)
    prepare_environment(folder)
    from tasks.runs import settle_crashed
    from tasks.tracking import default_tracking_uri, deliver_leftovers, drain, open_tracking

    delivered, waiting = deliver_leftovers(open_tracking(default_tracking_uri(folder), folder))
    crashed = settle_crashed(folder)
    drain()
    if as_json:
        _print_json({"delivered": delivered, "waiting": waiting, "crashed": crashed})
    else:
        print(f"{delivered} events delivered, {waiting} still wait; {len(crashed)} crashed runs closed")
    if waiting:
        raise typer.Exit(1)


@app.command()
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
        _print_json({"garbage": [asdict(each) for each in found], "deleted": [each.path for each in deleted]})
    else:
        print_garbage(found, len(deleted), yes)


@app.command()
def ui(
    out: Out = DEFAULT_OUT,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Open MLflow on this machine, until Ctrl-C."""
    folder = Path(out).absolute()
    if not (folder / "mlflow.db").is_file():
        raise ValueError(f"no runs in {out}; make one with `redream generate`")
    prepare_environment(folder)
    # By default it starts 15 processes and takes 3 GiB; this needs two and a half.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    from tasks.tracking import open_tracking, runs_address

    tracking = open_tracking(f"sqlite:///{folder / 'mlflow.db'}", folder)
    print(f"MLflow: {runs_address(f'http://127.0.0.1:{port}', tracking)}  (Ctrl-C ends it)", flush=True)
    os.execv(
        sys.executable,
        [
            sys.executable,
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
            f"sqlite:///{folder / 'mlflow.db'}",
            "--artifacts-destination",
            (folder / "mlartifacts").as_uri(),
        ],
    )


@app.command()
def serve(
    out: Out = DEFAULT_OUT,
    host: Annotated[str, typer.Option(help="Another than this machine's own needs passwords.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow.")] = 5000,
    limit: Annotated[int, typer.Option(min=0, help="Runs at a time; 0 for one more than may train.")] = 0,
    max_resumes: Annotated[int, typer.Option(min=0, help="Attempts after crashes, for each run.")] = 3,
) -> None:
    """Run Prefect, MLflow and a worker on this machine, until Ctrl-C."""
    from flows.serve import serve as serve_all
    from flows.serving import Serving, checked_serving

    asked = Serving(
        out=checked_out(out), host=host, port=port, mlflow_port=mlflow_port, limit=limit, max_resumes=max_resumes
    )
    serve_all(checked_serving(asked, os.environ), lambda line: print(line, flush=True))


@app.command()
def doctor(out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """Say what this machine has and what runs, and what to do about what is lacking."""
    from flows.doctor import examine

    findings = examine(Path(out).absolute())
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        table = Table("", "what", "found", "what to do", box=None)
        marks = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "optional": "[yellow]-[/]"}
        for finding in findings:
            table.add_row(marks[finding.state], finding.name, finding.found, finding.remedy)
        console().print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


@index_app.command("build")
def index_build(
    catalog: Annotated[str, typer.Option(metavar="objaverse|mini|DIR", help="What to index.")] = "mini",
    captions: Annotated[str, typer.Option(metavar="CSV", help="Captions; for objaverse also a hub id.")] = "",
    license: Annotated[str, typer.Option(metavar="CODES", help="Only these licences, such as cc0,by.")] = "",
    renders: Annotated[str, typer.Option(metavar="DIR", help="Cap3D's published renders, as zip files.")] = "",
    index: Annotated[str, typer.Option(metavar="DIR", help="Where the index goes.", show_default="below --out")] = "",
    runner: Annotated[str, typer.Option(help="local, dask or ray.")] = "local",
    address: Annotated[str, typer.Option(help="Of a Dask or Ray cluster.", show_default="one of its own")] = "",
    preset: Preset = "mini",
    settings: Settings = [],
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Build the index of a catalog, or bring it up to date."""
    from redream.licenses import parse_licenses

    config = checked_config(preset, "redream", parsed_settings(settings))
    licenses = parse_licenses(license)
    checked_runner(runner)
    if catalog not in ("objaverse", "mini") and not Path(catalog).is_dir():
        raise ValueError(f"--catalog {catalog}: give objaverse, mini, or a folder of meshes")
    if catalog == "objaverse" and not captions:
        raise ValueError("objaverse needs --captions: a Cap3D CSV, or a hub id such as tiange/Cap3D@REVISION")
    if catalog == "mini" and not index and not config.retrieval.clip_model.startswith("mini:"):
        raise ValueError(f"preset {preset} has no catalog of its own to index; choose mini, or name one with --catalog")
    if catalog == "mini" and (captions or licenses or renders):
        raise ValueError("the miniature has its own captions, licences and renders; leave the options for them out")
    checked_weights(config)
    folder = checked_out(out)
    with _services(folder):
        from flows.build_index import build_index, task_runner

        flow = build_index.with_options(task_runner=task_runner(runner, address))
    place_index = str(Path(index).resolve()) if index else ""
    with _results_only():
        built = flow(
            catalog=catalog if catalog in ("objaverse", "mini") else str(Path(catalog).resolve()),
            preset=preset,
            settings=parsed_settings(settings),
            captions=captions,
            licenses=list(licenses),
            renders=renders,
            index=place_index,
            out=str(folder),
        )
    if as_json:
        _print_json(asdict(built))
    else:
        print(f"index of {built.num_assets:,} assets: {built.index_dir}")


@index_app.command("info")
def index_info(index: Annotated[str, typer.Argument(metavar="DIR")], as_json: AsJson = False) -> None:
    """Say what an index holds and how it was made."""
    from redream.index_files import read_manifest

    manifest = read_manifest(index)
    if as_json:
        _print_json({**asdict(manifest), "num_bytes": manifest.num_bytes})
        return
    table = Table("", "", box=None, show_header=False)
    table.add_row("catalog", escape(f"{manifest.catalog}, meshes below {manifest.asset_folder}"))
    table.add_row("assets", f"{manifest.num_assets:,} ({manifest.num_refused:,} refused)")
    for reason, count in sorted(manifest.dropped.items()):
        table.add_row("left out", escape(f"{count:,} x {reason}"))
    table.add_row("CLIP", escape(f"{manifest.clip_model}, {manifest.embedding_dim} dimensions"))
    table.add_row("image vectors", f"{manifest.num_views} per asset")
    table.add_row("text recall", manifest.recall)
    table.add_row("size", f"{manifest.num_bytes / 1e6:,.1f} MB")
    table.add_row("made", manifest.created)
    table.add_row("settings", escape(", ".join(f"{name} {value}" for name, value in manifest.settings.items())))
    table.add_row("versions", escape(", ".join(f"{name} {value}" for name, value in manifest.versions.items())))
    console().print(table)


@index_app.command("check")
def index_check(
    index: Annotated[str, typer.Argument(metavar="DIR")],
    queries: Annotated[int, typer.Option(min=1, help="Assets to ask for.")] = 100,
    preset: Preset = "mini",
    settings: Settings = [],
    as_json: AsJson = False,
) -> None:
    """Read every byte of an index, compare its search with an exact one, and look for its meshes."""
    config = checked_config(preset, "redream", parsed_settings(settings))
    checked_index_place(index, preset, config)
    from tasks.indexing import check

    report = check(index, config.retrieval.clip_model, queries)
    if as_json:
        _print_json(asdict(report))
        return
    table = Table("", "", box=None, show_header=False)
    table.add_row("files", "whole")
    nearest = f"of the exact {report.num_neighbors} nearest, {report.num_queries} queries each"
    table.add_row("recall from captions", f"{report.text_recall:.4f} {nearest}")
    table.add_row("recall from renders", f"{report.cross_recall:.4f}")
    table.add_row("recall of the rerank", f"{report.image_recall:.4f}")
    table.add_row("assets without a mesh here", f"{report.num_missing:,} of {report.num_assets:,}")
    table.add_row("meshes that are no asset's", f"{report.num_orphaned:,}")
    for name in (*report.missing, *report.orphaned):
        table.add_row("", escape(name))
    console().print(table)


def main() -> None:
    """Run the command and turn what went wrong into one line and an exit code."""
    usage_error = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])  # click's, which typer does not export
    try:
        code = app(standalone_mode=False)
    except usage_error as error:
        _fail(error.format_message(), 2)
    except ValueError as error:
        _fail(str(error), 2)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if type(error).__name__ == "TerminationSignal":  # Prefect's word for SIGTERM
            _fail("terminated; the same command continues from the last checkpoint", 143)
        if not isinstance(error, Exception) or isinstance(error, typer.Abort):
            _fail("stopped; the same command continues from the last checkpoint", 130)
        if os.environ.get("REDREAM_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _fail(
                "the disk of --out is full; make room (redream gc lists what can go), and the same command goes on", 1
            )
        _fail(f"{type(error).__name__}: {error} (REDREAM_TRACEBACK=1 shows the traceback)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def command() -> None:
    """Run `main` as a process that ends at once: taking its modules apart would cost a command two more seconds."""
    code = 1
    collect_rarely()

    def leave() -> None:
        lost = 0
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except OSError as error:  # a full disk costs output; a reader that has gone wants no more
                lost = 0 if isinstance(error, BrokenPipeError) else 120  # as Python itself would end
        os._exit(code or lost)

    atexit.register(leave)  # called after all that is registered later
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        raise


def _fail(message: str, code: int) -> None:
    print(f"redream: {visible_text(' '.join(message.split()))}", file=sys.stderr)  # it may quote a stranger's text
    sys.stderr.flush()
    sys.exit(code)


@contextmanager
def _results_only() -> Iterator[None]:
    """Keep standard output for results while a flow runs, and mark its runs as ours for the keeper's rule."""
    from prefect import tags

    with redirect_stdout(sys.stderr), tags(TAG):
        yield


@contextmanager
def _services(out: Path) -> Iterator[None]:
    """Get Prefect and MLflow ready while the body imports a flow."""
    from tasks.progress import stop_requested, waiting

    def stop(signal_number: int, frame: object) -> None:
        stop_requested.set()  # for the stages in other threads
        signal.signal(signal_number, signal.SIG_DFL)  # a second one does not wait for them
        raise KeyboardInterrupt if signal_number == signal.SIGINT else SystemExit(143)

    for signal_number in (signal.SIGINT, signal.SIGTERM):  # by default SIGTERM would leave Prefect's server behind
        signal.signal(signal_number, stop)
    stop_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    prepare_environment(out)
    with waiting("starting Prefect and MLflow"), starting_services(out):
        yield


def _open_index(index: str, config: RunConfig, preset: str, out: Path) -> IndexPlace:
    """Return the index to search; the miniature's own is built where it is missing."""
    prepare_environment(out)
    from tasks.searching import given_index

    if index:
        return given_index(index)
    from tasks.indexing import built_index, index_key
    from tasks.store import Store

    found = Store(out / "store").find(index_key(config.retrieval))
    if found is not None:
        return built_index(found)
    with _services(out):
        from flows.build_index import build_index
    with _results_only():
        return build_index(preset=preset, out=str(out))


def _check_meshes(paths: Sequence[str], limits: MeshLimits) -> None:
    """Refuse what is no mesh before anything is started."""
    from redream.assets import load_mesh

    for path in paths:
        load_mesh(path, limits)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    command()
