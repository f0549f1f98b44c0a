"""Methods x prompts x seeds: every object as in a batch, and at the end a report as the paper's Table 1.

What a finished run of the same request has made already is not made again, so that a comparison goes on where it was
stopped, and another method or prompt costs only its own objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.runtime import flow_run as this_run

from flows.batch import asked_members
from flows.batches.comparing import deliver_comparison
from flows.batches.making import make_missing
from flows.batches.on_workers import cancel_submitted
from flows.batches.outcomes import Outcome
from flows.requests.columns import Column, checked_columns, column_defaults, require_plain
from flows.requests.parameters import MethodNames, Place, PresetName, Processes, Prompts, Seeds, Settings, StudyName
from flows.requests.prompt_files import Defaults, Member
from flows.requests.request import DEFAULT_OUT, checked_out
from tasks.runs.run import open_run


def run_name() -> str:
    """Name the run by what it compares, for Prefect."""
    asked = this_run.parameters
    return f"comparison of {asked.get('study') or ', '.join(asked.get('methods') or [])}"


@flow(name="compare", flow_run_name=run_name, on_cancellation=[cancel_submitted])
def compare(
    prompts_file: Place = "",
    prompts: Prompts = [],
    methods: MethodNames = ["redream", "vsd", "sds"],
    study: StudyName = "",
    preset: PresetName = "mini",
    seeds: Seeds = [0],
    index: Place = "",
    settings: Settings = {},
    workers: Processes = 0,
    gpus: Processes = 0,
    out: Place = DEFAULT_OUT,
) -> dict[str, Any]:
    """Make every prompt's object by every method and compare them; returns `run_id`, `report` and `means`.

    Args:
        prompts_file: a list of prompts: lines of text, JSON, JSON lines or a table (docs/prompts.md).
        prompts: the prompts themselves instead.
        methods: the columns; the others are compared with the first.
        study: components, particles or assets: the columns of a study of the paper instead of methods.
        preset: mini (CPU, embedded models), sd21 (the paper's setting) or smoke (a few steps, to try the machinery).
        seeds: an object of each prompt for each of these.
        index: folder of an index; empty for the miniature's own, which is built where it is missing.
        settings: overrides of every column, such as `{"distill.num_steps": 500}`.
        workers: objects at a time; 0 for one more than trainings, and on a deployment for as many as workers take.
        gpus: trainings at a time on a machine; 0 for one per GPU.
        out: folder of runs and stage outputs, on the worker's machine.
    """
    folder = checked_out(out)
    defaults = Defaults(preset=preset, seeds=tuple(seeds), index=index, settings=dict(settings), out=folder)
    columns = checked_columns(methods, study)
    members = {column.name: column_members(column, prompts_file, prompts, defaults) for column in columns}
    request = {
        "prompts_file": prompts_file, "prompts": prompts, "methods": methods, "study": study, "preset": preset,
        "seeds": seeds, "index": index, "settings": settings,
    }  # fmt: skip
    title = f"comparison of {study or ', '.join(column.name for column in columns)}"
    with open_run("compare", title, 0, None, request, folder) as run:
        asked = [member for column in columns for member in members[column.name]]
        ended: dict[int, Outcome] = {}
        make_missing(run, asked, workers, gpus, {} if out == DEFAULT_OUT else {"out": out}, ended)
        outcomes = iter(ended[number] for number in range(len(asked)))
        by_column = {column.name: [next(outcomes) for _ in members[column.name]] for column in columns}
        facts = comparison_facts(preset, columns, members[columns[0].name], seeds, settings)
        return deliver_comparison(run, title, facts, list(by_column), by_column)


def column_members(column: Column, prompts_file: str, prompts: Sequence[str], defaults: Defaults) -> list[Member]:
    """Return the objects of a column, checked; a prompt that comes twice counts once."""
    members = asked_members(prompts_file, prompts, column_defaults(column, defaults))
    require_plain(members, column)
    return list({(member.request.prompt, member.request.seed): member for member in reversed(members)}.values())[::-1]


def comparison_facts(
    preset: str, columns: Sequence[Column], members: Sequence[Member], seeds: Sequence[int], settings: dict[str, Any]
) -> dict[str, str]:
    """Return what a reader needs to know of a comparison to repeat it."""
    prompts = list(dict.fromkeys(member.request.prompt for member in members))
    facts = {
        "prompts": f"{len(prompts)}, SHA-256 {hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]}",
        "seeds": ", ".join(str(seed) for seed in seeds),
        "preset": preset,
    }
    facts |= {f"set in all: {name}": str(value) for name, value in sorted(settings.items())}
    return facts | {
        column.name: ", ".join([column.method, *(f"{name}={value}" for name, value in column.settings.items())])
        for column in columns
    }
