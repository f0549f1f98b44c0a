"""What a run ends with: the page, and the files that a person opens in the run's own folder, and the run's record.

It is no stage: it takes a moment, and every run has a page of its own, whatever it reused.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from redream.overrides import flatten
from redream.settings import RunConfig
from tasks.evaluation import load_reports, sheet_name
from tasks.exporting import MESH, POSTER, TURNTABLE, thumbnail
from tasks.machinery.store import Output
from tasks.orientation import load_aligned
from tasks.runs.run import PICTURE, Run, record_result
from tasks.runs.stage import STEPS_FILE
from tasks.tracking.tracker import Tracker

if TYPE_CHECKING:
    from redream.pages.page import PageContent, PageCurve, PageMetric, PageSamples

PAGE = "page.html"
DELIVERED = (PAGE, PICTURE, TURNTABLE, MESH)
NO_CURVES = ("step", "t", "particle")  # drawn at random in every step
MINI_NOTE = (
    "Figures with mini models come from the miniature's own small networks. They compare runs of the miniature "
    "with each other, and with nothing else."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """The outputs that a page is made of; methods without retrieval have no assets and no adapter."""

    particles: Output
    report: Output
    exported: Output
    retrieval: Output | None = None
    orientation: Output | None = None
    warm_up: Output | None = None
    adapter: Output | None = None

    def present(self) -> dict[str, Output]:
        named = {name: getattr(self, name) for name in self.__slots__}
        return {name: output for name, output in named.items() if output is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a run made, as the command shows it."""

    run_id: str
    prompt: str
    metrics: dict[str, float]
    neighbors: list[dict[str, Any]]
    page: str
    turntable: str
    mesh: str
    stages: dict[str, str]  # computed or cached
    mlflow_run_id: str


def deliver(run: Run, outputs: Outputs, config: RunConfig) -> Made:
    """Write the page, copy what a person opens into the run's folder, and close the run's record with its figures."""
    from redream.pages.page import write_page

    write_page(run.folder / PAGE, _page(run, outputs, config))
    made = {name: outputs.exported.path(name) for name in (TURNTABLE, MESH)}
    for name, path in {PICTURE: outputs.report.path(sheet_name(0)), **made}.items():
        aside = run.folder / f".{name}"
        shutil.copyfile(path, aside)
        os.replace(aside, run.folder / name)
    neighbors = _neighbors(outputs)
    files = [run.folder / name for name in DELIVERED]
    record = record_result(run, outputs.report.metrics, {"neighbors": neighbors}, files)
    return Made(
        run_id=run.run_id,
        prompt=run.prompt,
        metrics=outputs.report.metrics,
        neighbors=neighbors,
        page=str(run.folder / PAGE),
        turntable=str(run.folder / TURNTABLE),
        mesh=str(run.folder / MESH),
        mlflow_run_id=Tracker(run.tracking, run.mlflow_run_id).run_id,
        stages={name: entry["state"] for name, entry in record["stages"].items()},
    )


def _neighbors(outputs: Outputs) -> list[dict[str, Any]]:
    """Return the retrieved assets with their scores and where their fronts were found."""
    if outputs.retrieval is None or outputs.orientation is None:
        return []
    found = zip(
        load_aligned(outputs.retrieval, outputs.orientation).neighbors,
        outputs.orientation.result["orientations"],
        strict=True,
    )
    return [
        {**asdict(neighbor), "margin": entry["margin"], "has_clear_front": entry["has_clear_front"]}
        for neighbor, entry in found
    ]


def _page(run: Run, outputs: Outputs, config: RunConfig) -> PageContent:
    from redream.pages.page import PageContent, PageNeighbor

    neighbors = []
    for number, entry in enumerate(_neighbors(outputs)):
        kept = {name: entry["asset"][name] for name in ("asset_id", "caption", "license", "author", "source")}
        neighbors.append(
            PageNeighbor(
                **kept,
                thumbnail=outputs.exported.path(thumbnail(number)).read_bytes(),
                score=entry["score"],
                text_score=entry["text_score"],
                azimuth_deg=entry["azimuth_offset_deg"],
                margin=entry["margin"],
                has_clear_front=entry["has_clear_front"],
            )
        )
    metrics = _page_metrics(outputs)
    return PageContent(
        prompt=run.prompt,
        mesh_glb=outputs.exported.path(MESH).read_bytes(),
        poster=outputs.exported.path(POSTER).read_bytes(),
        turntable_mp4=outputs.exported.path(TURNTABLE).read_bytes(),
        subtitle=f"{config.distill.method}, {config.distill.num_steps} steps, seed {run.seed}",
        neighbors=neighbors,
        metrics=metrics,
        curves=_curves(outputs),
        samples=_samples(outputs),
        settings=flatten(config),
        versions={"prior": config.prior.model, **{name: output.key[:16] for name, output in outputs.present().items()}},
        notes=[MINI_NOTE] if any(metric.model.startswith("mini:") for metric in metrics) else [],
    )


def _page_metrics(outputs: Outputs) -> list[PageMetric]:
    from redream.pages.page import PageMetric

    metrics = []
    reports = load_reports(outputs.report)
    for number, report in enumerate(reports):
        particle = f", particle {number}" if len(reports) > 1 else ""
        for model, value in report["clip_score"].items():
            metrics.append(
                PageMetric(
                    name=f"CLIP score{particle}",
                    model=model,
                    value=value,
                    is_higher_better=True,
                    values=tuple(report["clip_score_per_view"][model]),
                )
            )
        for model, value in report["a_lpips"].items():
            metrics.append(
                PageMetric(
                    name=f"A-LPIPS{particle}",
                    model=model,
                    value=value,
                    is_higher_better=False,
                    values=tuple(report["a_lpips_per_pair"][model]),
                )
            )
        if report["wrong_front_share"] is not None:
            metrics.append(
                PageMetric(
                    name=f"false fronts{particle}",
                    model="judge",
                    is_higher_better=False,
                    value=report["wrong_front_share"],
                    note="share of the views from behind",
                )
            )
    return metrics


def _curves(outputs: Outputs) -> list[PageCurve]:
    """Return every loss that a loop recorded, over its steps."""
    from redream.pages.page import PageCurve

    curves = []
    for output in outputs.present().values():
        if not output.path(STEPS_FILE).is_file():
            continue
        entries = [json.loads(line) for line in output.path(STEPS_FILE).read_text().splitlines()]
        for name in dict.fromkeys(name for entry in entries for name in entry if name not in NO_CURVES):
            found = [entry for entry in entries if name in entry]
            steps, values = tuple(entry["step"] for entry in found), tuple(float(entry[name]) for entry in found)
            curves.append(PageCurve(name=f"{output.stage}: {name}", steps=steps, values=values))
    return curves


def _samples(outputs: Outputs) -> list[PageSamples]:
    from redream.pages.page import PageSamples

    if outputs.adapter is None:
        return []
    return [
        PageSamples(
            view_name=path.name.removesuffix("_before.png"),
            before=path.read_bytes(),
            after=path.with_name(path.name.replace("_before", "_after")).read_bytes(),
        )
        for path in sorted(outputs.adapter.path("samples").glob("*_before.png"))
    ]
