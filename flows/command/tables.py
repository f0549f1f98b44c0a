"""What the command prints for people: tables of runs, stages, assets and figures.

Prompts and captions come from strangers: rich reads no markup in them, and what a terminal would obey is made visible.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flows.requests.plan import first_unfinished
from flows.requests.prompt_files import Member
from flows.requests.request import DEFAULT_OUT
from redream.pages.text import visible_text
from redream.records import Asset
from redream.retrieval.licenses import attribution
from tasks.machinery.progress import duration
from tasks.runs.description import changed_settings, run_facts, took
from tasks.runs.garbage import Garbage
from tasks.runs.records import UNFINISHED

PIPE_WIDTH = 1000  # characters
ID_CHARS = 32  # what Objaverse's ids have; a file of a folder may have a longer one


def console() -> Console:
    """Return where tables go; a pipe or a file has no width, so that nothing is broken there."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_made(made: dict[str, Any], out: str) -> None:
    """Say what was found, the figures, where the page is and how to open MLflow."""
    screen = console()
    if made["neighbors"]:
        print_neighbors(made["neighbors"])
    screen.print(metric_table(made["metrics"], title=made["prompt"]))
    for name in ("page", "turntable", "mesh"):
        screen.print(f"{name:<10}{made[name]}", soft_wrap=True)
    where = "" if out == DEFAULT_OUT else f" --out {shlex.quote(out)}"
    screen.print(f"{'MLflow':<10}redream ui{where}", soft_wrap=True)


def print_neighbors(neighbors: list[dict[str, Any]]) -> None:
    """Say what was found, and whose work it is."""
    screen = console()
    screen.print(_neighbor_table(neighbors))
    for neighbor in neighbors:
        screen.print(shown(attribution(Asset(**neighbor["asset"]))), soft_wrap=True)


def _neighbor_table(neighbors: list[dict[str, Any]]) -> Table:
    table = Table("words", "caption", "renders", "fit", "", "asset", "caption", "licence", box=None)
    for neighbor in neighbors:
        asset = neighbor["asset"]
        table.add_row(
            f"{neighbor['lexical_score']:.1f}",
            f"{neighbor['text_score']:.3f}",
            f"{neighbor['score']:.3f}" if neighbor["has_picture"] else "none yet",
            f"{neighbor['fit']:.0%}" if neighbor["has_picture"] else "",
            "[yellow]weak[/]" if neighbor["is_weak"] else "",
            shown(asset["asset_id"][:ID_CHARS]),
            shown(asset["caption"]),
            shown(asset["license"]),
        )
    return table


def metric_table(metrics: dict[str, float], title: str) -> Table:
    table = Table("figure", "value", title=shown(title), title_justify="left", box=None)
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.4f}")
    return table


def runs_table(records: Sequence[Mapping[str, Any]]) -> Table:
    longest = max(len(record["run_id"]) for record in records)  # whole, for it is what other commands take
    table = Table(Column("run", min_width=longest), "state", "method", "prompt", "figures", box=None)
    for record in records:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in sorted(record["metrics"].items()))
        method = record["request"].get("method", record["flow"])
        table.add_row(record["run_id"], record["state"], method, shown(record["prompt"]), figures)
    return table


def print_run(record: Mapping[str, Any], out: str) -> None:
    """Say how a run went: its stages, figures, files, and how to run it again."""
    screen = console()
    screen.print(f"{shown(record['prompt'])}\n{record['run_id']}  [bold]{record['state']}[/]", soft_wrap=True)
    if "error" in record:
        screen.print(f"[red]{shown(record['error'])}[/]", soft_wrap=True)
    table = Table("stage", "state", "took", Column("output or reason", overflow="fold"), box=None)
    for name, entry in record["stages"].items():
        place = entry.get("folder", entry.get("error", entry.get("waits_for", "")))
        seconds = duration(entry["seconds"]) if "seconds" in entry else ""
        is_reused = entry["state"] == "cached"
        state, seconds = ("reused", f"({seconds})") if is_reused else (entry["state"], seconds)
        table.add_row(name, state, seconds, shown(place))
    if record["stages"]:
        screen.print(table)
    if any(entry["state"] == "cached" for entry in record["stages"].values()):
        screen.print("in brackets: what the reused output took when it was computed")
    if record["metrics"]:
        screen.print(metric_table(record["metrics"], title="figures"))
    for name, value in facts_of(record, out).items():
        screen.print(f"{name:<12}{shown(value)}", soft_wrap=True)


def print_batch(made: Mapping[str, Any]) -> None:
    """Say what became of every object of a batch, and where its gallery is."""
    table = Table("line", "state", "seed", "prompt", "run or reason", box=None)
    for outcome in made["outcomes"]:
        place = outcome["reason"] if outcome["state"] in ("failed", "stopped") else outcome["run_id"]
        table.add_row(
            str(outcome["line"]), outcome["state"], str(outcome["seed"]), shown(outcome["prompt"]),
            shown(place or outcome["reason"]),
        )  # fmt: skip
    screen = console()
    screen.print(table)
    screen.print(f"gallery   {made['gallery']}", soft_wrap=True, markup=False)


def print_members(members: Sequence[Member], seconds: float | None, as_json: bool) -> None:
    """List the objects that a batch would make, and how long it may take."""
    if as_json:
        objects = [{"line": member.line, **member.request.parameters()} for member in members]
        print(json.dumps({"objects": objects, "seconds": seconds}, indent=1))
        return
    table = Table("line", "preset", "method", "seed", "prompt", box=None)
    for member in members:
        asked = member.request
        table.add_row(str(member.line), asked.preset, asked.method, str(asked.seed), shown(asked.prompt))
    screen = console()
    screen.print(table)
    took = (
        "unknown: no run of this kind has finished here" if seconds is None else f"{duration(seconds)} by earlier runs"
    )
    screen.print(f"{len(members):,} objects, one after the other: {took}; what is here already is not made again")


def print_garbage(found: Sequence[Garbage], num_deleted: int, is_deleting: bool) -> None:
    """List what can go, with sizes, and say whether it is gone."""
    table = Table("stage", "what", Column("MB", justify="right"), Column("folder", overflow="fold"), box=None)
    for each in found:
        table.add_row(each.stage, each.kind, f"{each.num_bytes / 1e6:.1f}", each.path)
    screen = console()
    if found:
        screen.print(table)
    total = f"{len(found)} folders, {sum(each.num_bytes for each in found) / 1e6:.1f} MB"
    if is_deleting:
        screen.print(f"{total}; {num_deleted} of them deleted")
    else:
        screen.print(f"{total}; --yes deletes them" if found else "nothing can go")


def facts_of(record: Mapping[str, Any], out: str) -> dict[str, str]:
    """Return what a run was asked for, where its things are and how to run it again."""
    facts = run_facts(record) if record["flow"] == "generate" else {"started": record["started"], "took": took(record)}
    facts.pop("run", None)
    if record["flow"] == "generate":
        changed = changed_settings(record)
        facts["changed"] = ", ".join(f"{name}={value}" for name, value in changed.items()) or "no setting"
    facts |= {"files": record["folder"], "MLflow": record["mlflow"]["run_id"]}
    facts |= {"Prefect": record["prefect"].get("prefect.flow_run_url", ""), "again": again(record, out)}
    return {name: value for name, value in facts.items() if value}


def again(record: Mapping[str, Any], out: str) -> str:
    """Return the command that takes up a run, or makes a part of it anew."""
    if record["state"] == "running":
        return ""
    where = "" if out == DEFAULT_OUT else f" --out {shlex.quote(out)}"
    if record["flow"] == "batch":
        return batch_command(record["request"]) + where
    if record["flow"] != "generate":
        return ""
    if record["state"] not in UNFINISHED:
        return f"redream rerun {record['run_id']} --from STAGE{where}"
    stage = first_unfinished(record)
    return f"redream rerun {record['run_id']}{where}" + (f"   (from {stage})" if stage else "")


def batch_command(request: Mapping[str, Any]) -> str:
    """Return the command that makes what is missing of a batch; empty where its prompts were given without a file."""
    if not request["prompts_file"]:
        return ""
    words = ["redream", "batch", request["prompts_file"], "--preset", request["preset"], "--method", request["method"]]
    words += ["--seeds", ",".join(map(str, request["seeds"]))]
    words += ["--index", request["index"]] if request["index"] else []
    for name, value in request["settings"].items():
        words += ["--set", f"{name}={value if isinstance(value, str) else repr(value)}"]
    return shlex.join(words)


def shown(text: str) -> str:
    """Return a stranger's text as a table may hold it."""
    return escape(visible_text(text).replace("\r", " "))  # which would start a line anew
