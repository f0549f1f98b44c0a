"""Evaluation as a flow: finished runs are measured again, with other settings if wanted."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.requests.parameters import HiddenPlace, RunIds, Settings
from flows.requests.request import DEFAULT_OUT, checked_config, checked_out
from tasks.evaluation import evaluate, load_reports
from tasks.machinery.devices import needed_gib
from tasks.runs.records import finished_stage, read_run
from tasks.runs.run import open_run, record_result


@flow(name="evaluate", flow_run_name="evaluate {run_ids}")
def evaluate_runs(
    run_ids: RunIds,
    settings: Settings = {},
    out: HiddenPlace = DEFAULT_OUT,
) -> dict[str, dict[str, Any]]:
    """Measure the objects of finished runs; returns `metrics` and the per-view `reports` by run.

    Args:
        run_ids: finished runs, as `redream runs` names them.
        settings: overrides, of the `evaluation` section only.
        out: folder of runs and stage outputs, on the worker's machine.
    """
    folder = checked_out(out)
    reports = {}
    for run_id in run_ids:
        record = read_run(folder, run_id)
        asked = record["request"]
        config = checked_config(asked["preset"], asked["method"], {**asked["settings"], **settings})
        particles = finished_stage(folder, record, "distill")
        request = {**asked, "settings": {**asked["settings"], **settings}, "run": run_id}
        gpu_gib = needed_gib(config)
        with open_run("evaluate", record["prompt"], asked["seed"], config, request, folder, gpu_gib=gpu_gib) as run:
            report = evaluate.submit(run, particles, config).result()
            record_result(run, report.metrics, {}, [report.path("report.json")])
            reports[run_id] = {"metrics": report.metrics, "reports": load_reports(report)}
    return reports
