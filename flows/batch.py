"""Many prompts, each in a process of its own with its own flow run and MLflow run, so that none can harm another.

The processes are children of this one or, where the batch is deployed, runs that the workers of the pool take. The
batch itself is a run too: its folder holds the gallery, the table and what its children said. What a finished run of
the same request has made already is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run as this_run

from flows.batches.making import make_missing
from flows.batches.on_workers import cancel_submitted
from flows.batches.outcomes import MISSING, Outcome, not_made
from flows.batches.reporting import deliver_batch
from flows.processes.stopped_state import name_stopped
from flows.requests.parameters import HiddenPlace, MethodName, Place, PresetName, Processes, Prompts, Seeds, Settings
from flows.requests.prompt_files import Defaults, Member, checked_members, read_members
from flows.requests.request import DEFAULT_OUT, checked_out
from tasks.machinery.progress import say
from tasks.runs.run import open_run


class BatchFailed(RuntimeError):
    """Some objects of a batch could not be made; the others were."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


def run_name() -> str:
    """Name the run by its prompts, for Prefect."""
    asked = this_run.parameters
    return f"batch of {Path(asked.get('prompts_file') or '').name or str(len(asked.get('prompts') or [])) + ' prompts'}"


@flow(name="batch", flow_run_name=run_name, on_crashed=[name_stopped], on_cancellation=[cancel_submitted, name_stopped])
def batch(
    prompts_file: Place = "",
    prompts: Prompts = [],
    preset: PresetName = "mini",
    method: MethodName = "redream",
    seeds: Seeds = [0],
    index: Place = "",
    settings: Settings = {},
    workers: Processes = 0,
    gpus: Processes = 0,
    out: HiddenPlace = DEFAULT_OUT,
) -> dict[str, Any]:
    """Make an object of every prompt and seed; returns `run_id`, `gallery` and `outcomes`.

    Args:
        prompts_file: a list of prompts: lines of text, JSON, JSON lines or a table (docs/prompts.md).
        prompts: the prompts themselves instead.
        preset: mini (CPU, embedded models), sd21 (the paper's setting) or smoke (a few steps, to try the machinery).
        method: redream, or without retrieved assets vsd or sds.
        seeds: for lines that name none.
        index: folder of an index; empty for the miniature's own, which is built where it is missing.
        settings: overrides such as `{"distill.num_steps": 500}`.
        workers: objects at a time; 0 for one more than trainings, and on a deployment for as many as workers take.
        gpus: trainings at a time on a machine; 0 for one per GPU.
        out: folder of runs and stage outputs, on the worker's machine.
    """
    folder = checked_out(out)
    defaults = Defaults(
        preset=preset, method=method, seeds=tuple(seeds), index=index, settings=dict(settings), out=folder
    )
    members = asked_members(prompts_file, prompts, defaults)
    title = f"batch of {Path(prompts_file).name or 'prompts'}: {len(members)} objects"
    request = {
        "prompts_file": prompts_file, "prompts": prompts, "preset": preset, "method": method, "seeds": seeds,
        "index": index, "settings": settings, "workers": workers, "gpus": gpus,
    }  # fmt: skip
    with open_run("batch", title, 0, None, request, folder) as run:
        ended: dict[int, Outcome] = {}
        try:
            make_missing(run, members, workers, gpus, {} if out == DEFAULT_OUT else {"out": out}, ended)
        except BaseException:  # above all Ctrl-C: what is made is shown nevertheless
            shown = [ended.get(number) or not_made(run, member) for number, member in enumerate(members)]
            say(f"gallery: {deliver_batch(run, title, shown)['gallery']}")
            raise
        outcomes = [ended[number] for number in range(len(members))]
        result = deliver_batch(run, title, outcomes)
        num_missing = sum(outcome.state in MISSING for outcome in outcomes)
        if num_missing:
            raise BatchFailed(f"{num_missing} of {len(members)} objects are missing; see {result['gallery']}", result)
        return result


def asked_members(prompts_file: str, prompts: Sequence[str], defaults: Defaults) -> list[Member]:
    if bool(prompts_file) == bool(prompts):
        raise ValueError("a batch needs a file of prompts, or the prompts themselves")
    if prompts_file:
        return read_members(prompts_file, defaults)
    return checked_members([(number, {"prompt": text}) for number, text in enumerate(prompts, 1)], defaults, "prompts")
