"""Commands that make objects, or parts of them again: generate, batch, rerun, evaluate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from flows.batches.preview import expected_seconds, first_members
from flows.command.comparing import evaluate_foreign
from flows.command.indexes import open_index
from flows.command.options import AsJson, Device, Index, LeaveOut, Out, Preset, Prompt, RunId, Settings
from flows.command.running import print_json, results_only, services, use_device
from flows.command.tables import (
    console,
    metric_table,
    print_batch,
    print_made,
    print_members,
)
from flows.requests.plan import checked_rerun
from flows.requests.prompt_files import Defaults, parsed_seeds, read_members
from flows.requests.request import (
    DEFAULT_OUT,
    Request,
    checked_config,
    checked_out,
    checked_prompt,
    checked_request,
    parsed_settings,
    split_ids,
)
from redream.methods import METHODS
from redream.settings import MeshLimits
from tasks.machinery.devices import needed_gib
from tasks.runs.description import out_option, repeating
from tasks.runs.records import finished_stage, read_run

METHOD_HELP = f"{', '.join(METHODS)}; `redream methods` tells them apart."


def generate(
    prompt: Prompt,
    preset: Preset = "mini",
    method: Annotated[str, typer.Option(help=METHOD_HELP)] = "redream",
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same object on a CPU, and nearly the same on a GPU.")
    ] = 0,
    asset: Annotated[
        list[str], typer.Option(metavar="FILE", help="Start from your own mesh; may be repeated.", show_default=False)
    ] = [],
    use: Annotated[
        list[str], typer.Option(metavar="ID[,ID]", help="Take these assets of the index.", show_default=False)
    ] = [],
    leave_out: LeaveOut = [],
    num_assets: Annotated[
        int, typer.Option("--assets", min=0, help="Take this many at most.", show_default="the preset's")
    ] = 0,
    confirm: Annotated[bool, typer.Option("--confirm", help="Show what was found, and wait for a yes.")] = False,
    settings: Settings = [],
    index: Index = "",
    device: Device = "",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
    batch_id: Annotated[str, typer.Option("--batch", hidden=True)] = "",
) -> None:
    """Make a 3D object from a prompt."""
    overrides = {**_choice(use, leave_out, num_assets, preset), **parsed_settings(settings)}
    request = checked_request(prompt, preset, method, seed, out, index, asset, overrides)
    use_device(device, needed_gib(request.config))
    if asset:
        _check_meshes(request.assets, request.config.mesh)
    if confirm and (asset or method != "redream"):
        raise ValueError("--confirm needs --method redream without --asset: it shows what is found in the index")
    if request.index and request.config.retrieval.use:
        from tasks.machinery.searching import given_index, require_assets

        require_assets(given_index(request.index), request.config.retrieval.use)
    if confirm:
        request = checked_request(
            prompt, preset, method, seed, out, index, asset, {**overrides, "retrieval.use": _confirmed(request)}
        )
    with services(request.out):
        from flows.generate import generate as generate_flow
    with results_only():
        made = generate_flow(**request.parameters(), out=str(request.out), batch=batch_id)
    if as_json:
        print_json(asdict(made))
    else:
        print_made(asdict(made), out)


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="[RUN]…", help="Runs, as `redream runs` names them.", show_default=False)
    ] = [],
    mesh: Annotated[
        str, typer.Option(metavar="FILE", help="Measure a mesh of another system instead.", show_default=False)
    ] = "",
    views: Annotated[
        str, typer.Option(metavar="PATH", help="Measure a folder of views, or a video, instead.", show_default=False)
    ] = "",
    prompt: Annotated[str, typer.Option(help="What the mesh or the views should show.", show_default=False)] = "",
    preset: Annotated[str, typer.Option(help="Whose cameras and models measure a mesh or views.")] = "mini",
    settings: Settings = [],
    device: Device = "",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Measure the objects of finished runs again, or results of other systems by the same cameras and models."""
    overrides = parsed_settings(settings)
    if other := [name for name in overrides if not name.startswith("evaluation.")]:
        raise ValueError(f"--set {other[0]} does not concern evaluation; only evaluation.… settings can change here")
    if mesh or views or prompt:
        if runs or bool(mesh) == bool(views) or not prompt:
            raise ValueError("give runs, or else --prompt with either --mesh FILE or --views PATH")
        evaluate_foreign(mesh, views, checked_prompt(prompt), preset, overrides, device, as_json)
        return
    if not runs:
        raise ValueError("give runs, or else --prompt with either --mesh FILE or --views PATH")
    folder = checked_out(out)
    for run in runs:
        record = read_run(folder, run)
        finished_stage(folder, record, "distill")
        asked = record["request"]
        use_device(device, needed_gib(checked_config(asked["preset"], asked["method"], asked["settings"])))
    with services(folder):
        from flows.evaluate import evaluate_runs
    with results_only():
        reports = evaluate_runs(runs, overrides, str(folder))
    if as_json:
        print_json(reports)
        return
    for run, report in reports.items():
        console().print(metric_table(report["metrics"], title=run))


def rerun(
    run: RunId,
    from_stage: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="The first stage to make anew.", show_default="what failed")
    ] = "",
    seed: Annotated[int | None, typer.Option(hidden=True)] = None,
    settings: Settings = [],
    device: Device = "",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Repeat a run in part: reuse what comes before a stage, make it and what depends on it anew."""
    if seed is not None:
        folder = checked_out(out)
        again = repeating({**read_run(folder, run)["request"], "seed": seed}) + out_option(folder)
        raise ValueError(f"a rerun keeps its run's seed; with another, nearly every stage is new: {again}")
    overrides = parsed_settings(settings)
    asked = checked_rerun(run, from_stage, overrides, out)
    use_device(device, needed_gib(asked.request.config))
    with services(asked.request.out):
        from flows.rerun import rerun as rerun_flow
    with results_only():
        made = rerun_flow(run, from_stage, overrides, str(asked.request.out))
    if as_json:
        print_json(asdict(made))
    else:
        print_made(asdict(made), out)


def batch(
    prompts: Annotated[str, typer.Argument(help="Text with a prompt a line, JSON or a table.", show_default=False)],
    preset: Preset = "mini",
    method: Annotated[str, typer.Option(help=METHOD_HELP)] = "redream",
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
    """Make an object of every prompt in a file; again, and only what is missing is made."""
    overrides, numbers, folder = parsed_settings(settings), parsed_seeds(seeds), checked_out(out)
    defaults = Defaults(preset=preset, method=method, seeds=tuple(numbers), index=index, settings=overrides, out=folder)
    members = read_members(prompts, defaults)
    if dry_run:
        print_members(members, expected_seconds(members, folder), as_json)
        return
    use_device(device, max(needed_gib(member.request.config) for member in members))
    print(first_members(members), file=sys.stderr, flush=True)
    with services(folder):
        from flows.batch import BatchFailed
        from flows.batch import batch as batch_flow
        from flows.batches.outcomes import MISSING
    with results_only():
        try:
            made = batch_flow(prompts, [], preset, method, numbers, index, overrides, workers, gpus, str(folder))
        except BatchFailed as error:
            made = error.result
    if as_json:
        print_json(made)
    else:
        print_batch(made)
    if any(outcome["state"] in MISSING for outcome in made["outcomes"]):
        raise typer.Exit(1)


def _choice(use: list[str], leave_out: list[str], num_assets: int, preset: str) -> dict[str, Any]:
    """Return the settings that options of choosing assets stand for."""
    chosen: dict[str, Any] = {}
    if use:
        chosen["retrieval.use"] = split_ids(use)
    if leave_out:
        chosen["retrieval.leave_out"] = split_ids(leave_out)
    if num_assets:
        chosen["retrieval.num_assets"] = num_assets
        num_recall = checked_config(preset, "redream", {}).retrieval.num_recall
        chosen["retrieval.num_recall"] = max(num_recall, num_assets)
    return chosen


def _confirmed(request: Request) -> list[str]:
    """Show what was found and return its ids once the user says yes."""
    place = open_index(request.index, request.config, request.preset, request.out)
    from tasks.machinery.contact_sheet import write_sheet
    from tasks.machinery.searching import search

    config = request.config
    retrieval = search(place, request.prompt, config.retrieval, config.download, config.mesh)
    sheet = request.out / "assets.html"
    write_sheet(sheet, retrieval, request.config)
    taken = [each.asset.asset_id for each in retrieval.taken(request.config.retrieval.take_weak)]
    question = f"start from {', '.join(taken)}?" if taken else "nothing fits; go on without assets?"
    print(f"assets for {request.prompt!r}: {sheet}\n{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ValueError("nothing was made; choose assets with --use ID,ID or leave some out with --not ID")
    return taken


def _check_meshes(paths: Sequence[str], limits: MeshLimits) -> None:
    """Refuse what is no mesh before anything is started."""
    from redream.meshes.assets import load_mesh

    for path in paths:
        load_mesh(path, limits)
