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
from redream.config import RunConfig
from tasks.records import finished_stage, list_runs, read_run

if TYPE_CHECKING:
    from tasks.indexing import IndexPlace

app = typer.Typer(
    help="Generate 3D objects from text, after ReDream (arXiv 2402.02972).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
index_app = typer.Typer(help="Build indexes of 3D assets.", no_args_is_help=True)
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
        _check_meshes(request.assets)
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
    settings: Settings = [],
    index: Index = "",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Find the assets nearest to a prompt."""
    overrides = {"retrieval.num_assets": top_k, **parsed_settings(settings)}
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
def serve(
    out: Out = DEFAULT_OUT,
    host: Annotated[str, typer.Option(help="Another than this machine's own needs passwords.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow.")] = 5000,
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time; one per GPU.")] = 1,
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
        Console().print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


@index_app.command("build")
def index_build(
    preset: Preset = "mini",
    settings: Settings = [],
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Build the index of the miniature's catalog."""
    config = checked_config(preset, "redream", parsed_settings(settings))
    if not config.retrieval.clip_model.startswith("mini:"):
        raise ValueError(f"preset {preset} has no catalog of its own to index; choose mini")
    checked_weights(config)
    folder = checked_out(out)
    with _services(folder):
        from flows.build_index import build_index
    with redirect_stdout(sys.stderr):
        place = asdict(build_index(preset, parsed_settings(settings), str(folder)))
    if as_json:
        _print_json(place)
    else:
        print(f"index of {place['num_assets']} assets: {place['index_dir']}")


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
        return build_index(preset, {}, str(out))


def _check_meshes(paths: Sequence[str]) -> None:
    """Refuse what is no mesh before anything is started."""
    from redream.assets import load_mesh

    for path in paths:
        load_mesh(path)


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
