"""The method as a flow: a prompt becomes a 3D object, through every stage of ReDream (arXiv 2402.02972, Fig. 2).

Stages are submitted, also those that run alone: so the main thread is free to hear Ctrl-C, and a stage that ends in
Prefect's `Cached` state gives its output like any other.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.build_index import find_index
from flows.processes.stopped_state import name_stopped
from flows.requests.parameters import (
    Assets,
    BatchId,
    HiddenPlace,
    MethodName,
    Place,
    PresetName,
    Prompt,
    Seed,
    Settings,
)
from flows.requests.plan import stages_of
from flows.requests.request import DEFAULT_OUT, Request, checked_request
from redream.overrides import with_overrides
from tasks.adaptation import adapt
from tasks.distillation import distill, warm_up
from tasks.evaluation import evaluate
from tasks.exporting import export
from tasks.machinery.devices import needed_gib
from tasks.machinery.progress import say
from tasks.machinery.prompt_cuts import cut_remarks
from tasks.machinery.slots import num_cores
from tasks.machinery.store import Output
from tasks.orientation import align
from tasks.rendering import render
from tasks.results.delivery import Made, deliver
from tasks.results.live_page import growing_page
from tasks.results.prefect_page import show_made
from tasks.retrieval import remarks, retrieve, take_assets
from tasks.runs.run import Run, open_run

# Warm-up and adaptation need nothing of each other, nor do export and evaluation. Each gets half of the cores; one core
# cannot be halved.
CONCURRENT_STAGES = min(2, num_cores())
THREADS: Any = ThreadPoolTaskRunner(max_workers=CONCURRENT_STAGES)  # its generics do not fit its own decorator's


@flow(
    name="generate",
    flow_run_name="{prompt}",
    task_runner=THREADS,
    on_crashed=[name_stopped],
    on_cancellation=[name_stopped],
)
def generate(
    prompt: Prompt,
    preset: PresetName = "mini",
    method: MethodName = "redream",
    seed: Seed = 0,
    index: Place = "",
    assets: Assets = [],
    settings: Settings = {},
    out: HiddenPlace = DEFAULT_OUT,
    batch: BatchId = "",
) -> Made:
    """Generate a 3D object from a prompt.

    Args:
        prompt: what to make, in a few words on one line.
        preset: mini (CPU, embedded models), sd21 (the paper's setting) or smoke (a few steps, to try the machinery).
        method: redream, or without retrieved assets vsd or sds.
        seed: the same seed gives the same object on a CPU. On a GPU it draws the same numbers, but sums are taken in
            changing order, so that the object is nearly the same.
        index: folder of an index; empty for the miniature's own, which is built where it is missing.
        assets: mesh files to start from instead of retrieving.
        settings: overrides such as `{"distill.num_steps": 500}`.
        out: folder of runs and stage outputs, on the worker's machine.
        batch: the run of the batch that asks for this, if one does.
    """
    request = checked_request(prompt, preset, method, seed, out, index, assets, settings)
    parameters = request.parameters()
    gpu_gib = needed_gib(request.config)
    for line in cut_remarks(request.prompt, request.config):
        say(line)
    with open_run(
        "generate", request.prompt, seed, request.config, parameters, request.out, batch=batch, gpu_gib=gpu_gib
    ) as run:
        return make(run, request)


def make(run: Run, request: Request) -> Made:
    """Take a request through every stage, under a page that grows, and deliver what was made."""
    with growing_page(run, request.config, stages_of(request)):
        report = take_stages(run, request)
    made = deliver(run)
    show_made(run, made, report)
    return made


def take_stages(run: Run, request: Request) -> Output:
    """Take a request through every stage, and return the evaluation's output."""
    config = request.config
    found = fronts = views = warm = adapter = None
    if request.method == "redream":
        if request.assets:
            found = take_assets.submit(run, list(request.assets), config.mesh, config.retrieval.up_axis).result()
        else:
            index_place = find_index(run, request.index, config.retrieval)
            found = retrieve.submit(run, index_place, config.retrieval, config.download, config.mesh).result()
            for line in remarks(found, run.prompt, config):
                say(line)
        if not found.result["neighbors"]:
            found, config = None, with_overrides(config, {"distill.method": "vsd"})
    if found is not None:
        fronts = align.submit(run, found, config.retrieval.clip_model, config.orientation, config.mesh).result()
        views = render.submit(run, found, fronts, config.render, config.camera, config.mesh).result()
        warming = warm_up.submit(run, views, config, CONCURRENT_STAGES)
        adapting = adapt.submit(run, views, config, CONCURRENT_STAGES) if config.distill.use_adapter else None
        warm, adapter = warming.result(), adapting.result() if adapting else None
    particles = distill.submit(run, views, warm, adapter, config).result()
    exporting = export.submit(run, particles, found, fronts, config, CONCURRENT_STAGES)
    evaluating = evaluate.submit(run, particles, config, CONCURRENT_STAGES)
    wait([exporting, evaluating])  # where one fails, the record is closed only after the other has ended
    exporting.result()
    return evaluating.result()
