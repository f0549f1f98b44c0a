"""Comparisons: the command compare, and results of other systems for `evaluate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.batches.preview import expected_seconds, first_members
from flows.command.options import AsJson, Device, Index, Out, Preset, Settings
from flows.command.running import print_json, results_only, services, use_device
from flows.command.tables import console, metric_table, print_members, shown
from flows.requests.columns import STUDIES, checked_columns, column_defaults, require_plain
from flows.requests.prompt_files import Defaults, parsed_seeds, read_members
from flows.requests.request import (
    DEFAULT_OUT,
    checked_asset,
    checked_config,
    checked_out,
    checked_weights,
    parsed_settings,
)
from tasks.machinery.devices import find_gpus, needed_gib


def compare(
    prompts: Annotated[str, typer.Argument(help="Text with a prompt a line, JSON or a table.", show_default=False)],
    methods: Annotated[str, typer.Option(help="What to compare; the others are compared with the first.")] = (
        "redream,vsd,sds"
    ),
    study: Annotated[
        str,
        typer.Option(help=f"Compare the variants of a study instead: {', '.join(STUDIES)}.", show_default=False),
    ] = "",
    preset: Preset = "mini",
    seeds: Annotated[str, typer.Option(help="An object of each prompt for each of these seeds.")] = "0",
    settings: Settings = [],
    index: Index = "",
    workers: Annotated[int, typer.Option(min=0, help="Objects at a time.", show_default="one more than trainings")] = 0,
    gpus: Annotated[
        int, typer.Option(min=0, help="Trainings at a time on this machine.", show_default="one per GPU")
    ] = 0,
    device: Device = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the objects, with the expected time.")] = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Make every prompt's object by several methods and report which is better, with 95 % intervals."""
    overrides, numbers, folder = parsed_settings(settings), parsed_seeds(seeds), checked_out(out)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    defaults = Defaults(preset=preset, seeds=tuple(numbers), index=index, settings=overrides, out=folder)
    members = []
    for column in checked_columns(names, study):
        found = read_members(prompts, column_defaults(column, defaults))
        require_plain(found, column)
        members += found
    if dry_run:
        print_members(members, expected_seconds(members, folder), as_json)
        return
    use_device(device, max(needed_gib(member.request.config) for member in members))
    print(first_members(members), file=sys.stderr, flush=True)
    with services(folder):
        from flows.compare import compare as compare_flow
    with results_only():
        made = compare_flow(prompts, [], names, study, preset, numbers, index, overrides, workers, gpus, str(folder))
    if as_json:
        print_json(made)
    else:
        print_comparison(made)


def evaluate_foreign(
    mesh: str, views: str, prompt: str, preset: str, overrides: dict[str, Any], device: str, as_json: bool
) -> None:
    """Measure a mesh or views of another system, and print how they score."""
    config = checked_config(preset, "redream", overrides)
    checked_weights(config)
    if mesh:
        checked_asset(mesh, option="--mesh")
    use_device(device, 0.0)
    from tasks.machinery.progress import waiting

    with waiting("loading the evaluation models"):
        from redream.metrics.foreign import measure_mesh, measure_views

    chosen = find_gpus().gpus
    place = f"cuda:{chosen[0].index}" if chosen else "cpu"
    measure = measure_mesh if mesh else measure_views
    report = measure(mesh or views, prompt, config, place)
    if as_json:
        print_json(asdict(report))
    else:
        console().print(metric_table(report.summary(), title=prompt))


def print_comparison(made: dict[str, Any]) -> None:
    """Show the means, and where the report is."""
    columns = list(next(iter(made["means"].values())))
    table = Table("metric", *(shown(column) for column in columns), box=None)
    for metric, means in made["means"].items():
        table.add_row(metric, *(f"{means[column]:.4f}" if column in means else "–" for column in columns))
    screen = console()
    screen.print(table)
    screen.print(f"report    {made['report']}", soft_wrap=True, markup=False)
