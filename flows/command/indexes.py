"""Commands of indexes: search, and index build, info and check."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.table import Table

from flows.command.tables import (
    console,
    print_neighbors,
)
from flows.processes.environment import check_port, prepare_environment
from flows.requests.request import (
    DEFAULT_OUT,
    checked_config,
    checked_index_place,
    checked_out,
    checked_prompt,
    checked_runner,
    checked_weights,
    parsed_settings,
    split_ids,
)
from redream.settings import RunConfig
from redream.text_files import decoded_text
from tasks.machinery.devices import SMALL_GIB
from tasks.machinery.progress import waiting

if TYPE_CHECKING:
    from tasks.machinery.searching import IndexPlace
from flows.command.options import AsJson, Device, Index, LeaveOut, Out, Preset, Prompt, Settings
from flows.command.running import print_json, results_only, services, use_device


def search(
    prompt: Prompt,
    preset: Preset = "mini",
    top_k: Annotated[int, typer.Option(min=1, help="How many assets to show.")] = 3,
    license: Annotated[str, typer.Option(metavar="CODES", help="Only these licences, such as cc0,by.")] = "",
    leave_out: LeaveOut = [],
    html: Annotated[
        str, typer.Option(metavar="FILE", help="Write a page with a picture of each.", show_default=False)
    ] = "",
    settings: Settings = [],
    index: Index = "",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Find the assets that fit a prompt; weak matches are marked."""
    from redream.retrieval.licenses import parse_licenses

    overrides = {
        "retrieval.num_assets": top_k,
        "retrieval.licenses": parse_licenses(license),
        "retrieval.leave_out": split_ids(leave_out),
        **parsed_settings(settings),
    }
    defaults = checked_config(preset, "redream", {}).retrieval
    overrides.setdefault("retrieval.num_recall", max(defaults.num_recall, top_k))
    config = checked_config(preset, "redream", overrides)
    text = checked_prompt(prompt)
    checked_index_place(index, preset, config)
    checked_weights(config)
    if html and not Path(html).resolve().parent.is_dir():
        raise ValueError(f"--html {html}: there is no such folder")
    place = open_index(index, config, preset, checked_out(out))
    from tasks.machinery.searching import search as search_index

    retrieval = search_index(place, text, config.retrieval, config.download, config.mesh)
    if html:
        from tasks.machinery.contact_sheet import write_sheet

        write_sheet(Path(html), retrieval, config)
    found = [asdict(neighbor) for neighbor in retrieval.neighbors]
    if as_json:
        print_json({"prompt": text, "index": asdict(place), "neighbors": found})
    elif found:
        print_neighbors(found)
    else:
        print(f"nothing in the index shares a word with {text!r}")


def check_cluster(runner: str, address: str) -> None:
    """Refuse a cluster that is not there, with a `ValueError`; Ray takes its address from the environment as well."""
    named_by = "--address" if address else "RAY_ADDRESS"
    address = address or (os.environ.get("RAY_ADDRESS", "") if runner == "ray" else "")
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        check_port(f"{named_by} names a cluster", place.hostname, place.port, "start it, or leave the address out")


def build(
    catalog: Annotated[str, typer.Option(metavar="objaverse|mini|DIR", help="What to index.")] = "mini",
    captions: Annotated[str, typer.Option(metavar="CSV", help="Captions; for objaverse also a hub id.")] = "",
    license: Annotated[str, typer.Option(metavar="CODES", help="Only these licences, such as cc0,by.")] = "",
    renders: Annotated[str, typer.Option(metavar="DIR", help="Cap3D's published renders, as zip files.")] = "",
    views: Annotated[str, typer.Option(help="all, or none: embed captions alone; searches add pictures.")] = "all",
    warm: Annotated[
        str, typer.Option(metavar="FILE", help="With --views none: add the pictures that these prompts need.")
    ] = "",
    index: Annotated[str, typer.Option(metavar="DIR", help="Where the index goes.", show_default="below --out")] = "",
    runner: Annotated[str, typer.Option(help="local, dask or ray.")] = "local",
    address: Annotated[str, typer.Option(help="Of a Dask or Ray cluster.", show_default="one of its own")] = "",
    preset: Preset = "mini",
    settings: Settings = [],
    device: Device = "",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Build the index of a catalog, or bring it up to date."""
    from redream.retrieval.licenses import parse_licenses

    config = checked_config(preset, "redream", parsed_settings(settings))
    licenses = parse_licenses(license)
    checked_runner(runner)
    if runner != "local":
        check_cluster(runner, address)
    if views not in ("all", "none"):
        raise ValueError(f"--views {views}: give all or none")
    if views == "none" and renders:
        raise ValueError("--renders has every picture already; leave --views none out")
    if warm and views != "none":
        raise ValueError("--warm needs --views none: without it the index has every picture anyway")
    prompts = warm_prompts(warm) if warm else []
    if catalog not in ("objaverse", "mini") and not Path(catalog).is_dir():
        raise ValueError(f"--catalog {catalog}: give objaverse, mini, or a folder of meshes")
    if catalog == "objaverse" and not captions:
        raise ValueError("objaverse needs --captions: a Cap3D CSV, or a hub id such as tiange/Cap3D@REVISION")
    if catalog == "mini" and not index and not config.retrieval.clip_model.startswith("mini:"):
        raise ValueError(f"preset {preset} has no catalog of its own to index; choose mini, or name one with --catalog")
    if catalog == "mini" and (captions or licenses or renders):
        raise ValueError("the miniature has its own captions, licences and renders; leave the options for them out")
    checked_weights(config)
    use_device(device, SMALL_GIB)
    folder = checked_out(out)
    with services(folder):
        from flows.build_index import build_index, task_runner

        flow = build_index.with_options(task_runner=task_runner(runner, address))
    place_index = str(Path(index).resolve()) if index else ""
    with results_only():
        built = flow(
            catalog=catalog if catalog in ("objaverse", "mini") else str(Path(catalog).resolve()),
            preset=preset,
            settings=parsed_settings(settings),
            captions=captions,
            licenses=list(licenses),
            renders=renders,
            views=views,
            warm=prompts,
            index=place_index,
            out=str(folder),
        )
    if as_json:
        print_json(asdict(built))
    else:
        print(f"index of {built.num_assets:,} assets: {built.index_dir}")


def warm_prompts(path: str) -> list[str]:
    """Read a file of prompts, one a line."""
    if not Path(path).is_file():
        raise ValueError(f"--warm {path}: there is no such file")
    prompts = [checked_prompt(line) for line in decoded_text(Path(path).read_bytes()).splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"--warm {path} has no prompts; write one a line")
    return prompts


def compact(index: Annotated[str, typer.Argument(metavar="DIR")]) -> None:
    """Put the pictures that searches have added into the index itself."""
    from index_build.compacting import compact as compact_index

    with waiting("compacting the index"):
        manifest, num_added = compact_index(index)
    print(f"{num_added:,} pictures added to {manifest.index_dir}")


def info(index: Annotated[str, typer.Argument(metavar="DIR")], as_json: AsJson = False) -> None:
    """Say what an index holds and how it was made."""
    from redream.retrieval.index_files import read_assets, read_manifest, read_pictures

    manifest = read_manifest(index)
    if as_json:
        print_json({**asdict(manifest), "num_bytes": manifest.num_bytes})
        return
    table = Table("", "", box=None, show_header=False)
    table.add_row("catalog", escape(f"{manifest.catalog}, meshes below {manifest.asset_folder}"))
    table.add_row("assets", f"{manifest.num_assets:,} ({manifest.num_refused:,} refused)")
    for reason, count in sorted(manifest.dropped.items()):
        table.add_row("left out", escape(f"{count:,} x {reason}"))
    table.add_row("CLIP", escape(f"{manifest.clip_model}, {manifest.embedding_dim} dimensions"))
    table.add_row("image vectors", f"{manifest.num_views} per asset")
    if not manifest.has_all_pictures:
        num = len(read_pictures(manifest, read_assets(manifest)["key"]).rows())
        table.add_row("pictures", f"of {num:,} assets so far; searches add what they need")
    table.add_row("text recall", manifest.recall)
    table.add_row("size", f"{manifest.num_bytes / 1e6:,.1f} MB")
    table.add_row("made", manifest.created)
    table.add_row("settings", escape(", ".join(f"{name} {value}" for name, value in manifest.settings.items())))
    table.add_row("versions", escape(", ".join(f"{name} {value}" for name, value in manifest.versions.items())))
    console().print(table)


def check(
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
        print_json(asdict(report))
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


def open_index(index: str, config: RunConfig, preset: str, out: Path) -> IndexPlace:
    """Return the index to search; the miniature's own is built where it is missing."""
    prepare_environment(out)
    from tasks.machinery.searching import given_index

    if index:
        return given_index(index)
    from tasks.indexing import built_index, index_key
    from tasks.machinery.store import Store

    found = Store(out / "store").find(index_key(config.retrieval))
    if found is not None:
        return built_index(found)
    with services(out):
        from flows.build_index import build_index
    with results_only():
        return build_index(preset=preset, out=str(out))
