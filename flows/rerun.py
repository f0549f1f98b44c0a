"""A run repeated in part, as a flow: what stays is reused from the store, the rest is made anew in a run of its own.

A stage is made anew by a salt in its key, so that the store stays as it is. The salt is the id of the flow run:
Prefect's own Retry keeps it, and so continues the rerun instead of starting another.
"""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from flows.generate import THREADS, make
from flows.processes.stopped_state import name_stopped
from flows.requests.parameters import HiddenPlace, RunId, Settings, StageName
from flows.requests.plan import checked_rerun
from flows.requests.request import DEFAULT_OUT
from tasks.machinery.devices import needed_gib
from tasks.results.delivery import Made
from tasks.runs.run import Repeats, open_run


@flow(
    name="rerun",
    flow_run_name="rerun of {run_id}",
    task_runner=THREADS,
    on_crashed=[name_stopped],
    on_cancellation=[name_stopped],
)
def rerun(run_id: RunId, from_stage: StageName = "", settings: Settings = {}, out: HiddenPlace = DEFAULT_OUT) -> Made:
    """Repeat a run in part.

    Args:
        run_id: a run, as `redream runs` names it.
        from_stage: the first stage to make anew, with all that depend on it; empty for what has not finished.
        settings: overrides beside those of the run, such as `{"distill.num_steps": 500}`.
        out: folder of runs and stage outputs, on the worker's machine.
    """
    asked = checked_rerun(run_id, from_stage, settings, out)
    request, parent = asked.request, asked.parent
    salts = {**parent.get("salts", {}), **dict.fromkeys(asked.redone, str(flow_run.id))}
    words = [f"{name}={value}" for name, value in settings.items()] + ([f"from {from_stage}"] if from_stage else [])
    change = ", ".join(words)[:120] or "goes on"
    repeats = Repeats(run_id=run_id, mlflow_run_id=parent["mlflow"]["run_id"], salts=salts, change=change)
    parameters = request.parameters()
    gpu_gib = needed_gib(request.config)
    with open_run(
        "generate", request.prompt, request.seed, request.config, parameters, request.out, repeats, gpu_gib=gpu_gib
    ) as run:
        return make(run, request)
