"""The `redream` command: a thin door to the flows.

It checks what it was given before it imports anything heavy. Results go to standard output, as JSON with `--json`;
everything else goes to standard error. The exit code is 0, or 2 where the user can help it, 130 after Ctrl-C, else 1.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.environment import prepare_environment, starting_services
from flows.request import (
    DEFAULT_OUT,
    checked_config,
    checked_index,
    checked_out,
    checked_prompt,
    checked_request,
    checked_weights,
    parsed_settings,
)
from redream.config import MeshLimits, RunConfig
from tasks.records import finished_stage, list_runs, read_run

if TYPE_CHECKING:
    from tasks.indexing import IndexPlace

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
) -> None:
    """Make a 3D object from a prompt."""
    request = checked_request(prompt, preset, method, seed, out, index, asset, parsed_settings(settings))
    if asset:
        _check_meshes(request.assets, request.config.mesh)
    with _services(request.out):
        from flows.generate import generate as generate_flow
    with redirect_stdout(sys.stderr):
        made = generate_flow(**request.parameters(), out=str(request.out))
    if as_json:
        _print_json(asdict(made))
    else:
        _print_made(asdict(made), out)


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
    checked_index(index, preset, config)
    checked_weights(config)
    place = _open_index(index, config, preset, checked_out(out))
    from tasks.retrieval import search as search_index

    found = [asdict(neighbor) for neighbor in search_index(place, text, config.retrieval).neighbors]
    if as_json:
        _print_json({"prompt": text, "index": asdict(place), "neighbors": found})
    else:
        Console().print(_neighbor_table(found))


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
    with redirect_stdout(sys.stderr):
        reports = evaluate_runs(runs, overrides, str(folder))
    if as_json:
        _print_json(reports)
        return
    for run, report in reports.items():
        Console().print(_metric_table(report["metrics"], title=run))


@app.command()
def runs(out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """List the runs, the oldest first."""
    records = list_runs(Path(out))
    if as_json:
        _print_json(records)
        return
    table = Table("run", "state", "method", "prompt", "figures", box=None)
    for record in records:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in sorted(record["metrics"].items()))
        table.add_row(
            record["run_id"],
            record["state"],
            record["request"].get("method", record["flow"]),
            escape(record["prompt"]),
            figures,
        )
    Console().print(table if records else f"no runs in {out}")


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
    print(f"MLflow: http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
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
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, and what to do about what it lacks."""
    from flows.doctor import examine

    findings = examine()
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        table = Table("", "what", "found", "what to do", box=None)
        marks = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "optional": "[yellow]-[/]"}
        for finding in findings:
            table.add_row(marks[finding.state], finding.name, finding.found, finding.remedy)
        Console().print(table)
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
    if catalog not in ("objaverse", "mini") and not Path(catalog).is_dir():
        raise ValueError(f"--catalog {catalog}: give objaverse, mini, or a folder of meshes")
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
    with redirect_stdout(sys.stderr):
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
    table.add_row("catalog", escape(f"{manifest.catalog}, meshes below {manifest.asset_root}"))
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
    Console().print(table)


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
    checked_index(index, preset, config)
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
    Console().print(table)


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
        _fail(f"{type(error).__name__}: {error} (REDREAM_TRACEBACK=1 shows the traceback)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(f"redream: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(code)


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
    prepare_environment(out)
    with waiting("starting Prefect and MLflow"), starting_services(out):
        yield


def _open_index(index: str, config: RunConfig, preset: str, out: Path) -> IndexPlace:
    """Return the index to search; the miniature's own is built where it is missing."""
    prepare_environment(out)
    from tasks.indexing import built_index, given_index, index_key
    from tasks.store import Store

    if index:
        return given_index(index)
    found = Store(out / "store").find(index_key(config.retrieval))
    if found is not None:
        return built_index(found)
    with _services(out):
        from flows.build_index import build_index
    with redirect_stdout(sys.stderr):
        return build_index(preset=preset, out=str(out))


def _check_meshes(paths: Sequence[str], limits: MeshLimits) -> None:
    """Refuse what is no mesh before anything is started."""
    from redream.assets import load_mesh

    for path in paths:
        load_mesh(path, limits)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=1))


def _print_made(made: dict[str, Any], out: str) -> None:
    """Say what was found, the figures, where the page is and how to open MLflow."""
    console = Console(highlight=False)
    if made["neighbors"]:
        console.print(_neighbor_table(made["neighbors"]))
    console.print(_metric_table(made["metrics"], title=made["prompt"]))
    for name in ("page", "turntable", "mesh"):
        console.print(f"{name:<10}{made[name]}", soft_wrap=True)
    where = "" if out == DEFAULT_OUT else f" --out {shlex.quote(out)}"
    console.print(f"{'MLflow':<10}redream ui{where}", soft_wrap=True)


def _neighbor_table(neighbors: list[dict[str, Any]]) -> Table:
    table = Table("score", "text", "asset", "caption", "licence", box=None)
    for neighbor in neighbors:
        asset = neighbor["asset"]
        table.add_row(
            f"{neighbor['score']:.3f}",
            f"{neighbor['text_score']:.3f}",
            asset["asset_id"][:12],
            escape(asset["caption"]),
            escape(asset["license"]),
        )
    return table


def _metric_table(metrics: dict[str, float], title: str) -> Table:
    table = Table("figure", "value", title=escape(title), title_justify="left", box=None)
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.4f}")
    return table


if __name__ == "__main__":
    main()
