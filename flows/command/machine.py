"""Commands of the machine: serve and doctor."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.command.options import AsJson, Out, Preset, Settings
from flows.command.running import print_json
from flows.command.tables import (
    console,
)
from flows.requests.request import (
    DEFAULT_OUT,
    checked_config,
    checked_out,
    parsed_settings,
)


def serve(
    out: Out = DEFAULT_OUT,
    host: Annotated[str, typer.Option(help="Another than this machine's own needs passwords.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow.")] = 5000,
    limit: Annotated[int, typer.Option(min=0, help="Runs at a time; 0 for one more than may train.")] = 0,
    max_resumes: Annotated[int, typer.Option(min=0, help="Attempts after crashes, for each run.")] = 3,
) -> None:
    """Run Prefect, MLflow and a worker on this machine, until Ctrl-C."""
    from flows.service.addresses import Serving, checked_serving
    from flows.service.supervisor import serve as serve_all

    asked = Serving(
        out=checked_out(out), host=host, port=port, mlflow_port=mlflow_port, limit=limit, max_resumes=max_resumes
    )
    serve_all(checked_serving(asked, os.environ), lambda line: print(line, flush=True))


def doctor(preset: Preset = "mini", settings: Settings = [], out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """Say what this machine has for a preset and what runs, and what to do about what is lacking."""
    from flows.command.doctor import examine

    findings = examine(Path(out).absolute(), checked_config(preset, "redream", parsed_settings(settings)))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table("", "what", "found", "what to do", box=None)
        marks = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "optional": "[yellow]-[/]"}
        for finding in findings:
            table.add_row(marks[finding.state], finding.name, finding.found, finding.remedy)
        console().print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)
