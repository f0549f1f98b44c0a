"""What a run's page shows, read from the run's record and the store: of a finished run, and of one that is under way,
stopped, failed or crashed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redream.metrics.kinds import A_LPIPS, CLIP_SCORE, WRONG_FRONTS
from tasks.distillation import PREVIEWS
from tasks.evaluation import load_reports
from tasks.exporting import MESH, POSTER, TURNTABLE, thumbnail
from tasks.machinery.progress import duration
from tasks.machinery.store import Output, read_output
from tasks.orientation import load_aligned
from tasks.retrieval import load_retrieval
from tasks.runs.description import changed_settings, out_option, reason_of, repeating, run_facts
from tasks.runs.records import run_folder
from tasks.runs.stage import STEPS_FILE

if TYPE_CHECKING:
    from redream.pages.page import PageContent, PageCurve, PageMetric, PageNeighbor, PagePreview, PageSamples, PageStage

LINKS = {"mesh (glTF)": MESH, "video": TURNTABLE, "picture": "orbit.png", "attribution": "ATTRIBUTION.txt"}
NO_CURVES = ("step", "t", "particle")  # drawn at random in every step
MINI_NOTE = (
    "Metrics with mini models come from the miniature's own small networks. They compare runs of the miniature "
    "with each other, and with nothing else."
)
SMOKE_NOTE = (
    "This is a smoke run: a few steps that try the machinery. Neither the object nor its metrics mean anything; "
    "--preset mini makes an object."
)
STAGE_WORDS = {"cached": "reused"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What a run under way still has before it: its stages, remarks on those at work, and the time left, in words."""

    stages: tuple[str, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)
    remaining: str = ""
    reload_seconds: int = 0


def page_content(out: Path, record: Mapping[str, Any], expected: Expected | None = None) -> PageContent:
    """Gather what there is of a run."""
    from redream.pages.page import PageContent

    expected = expected or Expected()
    outputs = stage_outputs(out, record)
    folder = run_folder(out, record["run_id"])
    settings, request = record["settings"], record["request"]
    exported, finished = outputs.get("export"), record["state"] == "finished"
    metrics = _metrics(outputs)
    neighbors = _neighbors(outputs)
    notes = [SMOKE_NOTE] if request["preset"] == "smoke" else []
    notes += [MINI_NOTE] if any(metric.model.startswith("mini:") for metric in metrics) and not notes else []
    return PageContent(
        prompt=record["prompt"],
        mesh_glb=_bytes(exported.path(MESH) if exported else folder / MESH),
        poster=_bytes(exported.path(POSTER)) if exported else b"",
        turntable_mp4=_bytes(exported.path(TURNTABLE)) if exported else b"",
        turntable_labels=_labels(exported, neighbors),
        state=record["state"],
        subtitle=f"{settings['distill.method']}, {settings['distill.num_steps']} steps, seed {request['seed']}",
        remaining=expected.remaining,
        reason="" if finished else reason_of(out, record),
        reload_seconds=expected.reload_seconds,
        facts=run_facts(record),
        changed=changed_settings(record),
        command=repeating(request) + out_option(out),
        links={label: name for label, name in LINKS.items() if (folder / name).is_file()},
        stages=_stages(record, expected),
        previews=_previews(folder),
        neighbors=neighbors,
        metrics=metrics,
        curves=_curves(out, record, outputs),
        samples=_samples(out, record, outputs),
        settings=settings,
        versions={"prior": settings["prior.model"], **{name: output.key[:16] for name, output in outputs.items()}},
        notes=notes,
    )


def stage_outputs(out: Path, record: Mapping[str, Any]) -> dict[str, Output]:
    """Return the outputs of a run's finished stages that the store still has."""
    found = {}
    for name, entry in record["stages"].items():
        if entry["state"] in ("computed", "cached") and (output := read_output(out / entry["folder"])) is not None:
            found[name] = output
    return found


def _stages(record: Mapping[str, Any], expected: Expected) -> list[PageStage]:
    from redream.pages.page import PageStage

    stages = []
    for name in [*record["stages"], *(name for name in expected.stages if name not in record["stages"])]:
        entry = record["stages"].get(name, {"state": "to come"})
        state = STAGE_WORDS.get(entry["state"], entry["state"])
        took = duration(entry["seconds"]) if "seconds" in entry and state != "reused" else ""
        why = entry.get("error", "") if state == "failed" else entry.get("waits_for", "")
        remark = expected.remarks.get(name, why)
        stages.append(PageStage(name=name, state=state, took=took, remark=remark))
    return stages


def _previews(folder: Path) -> list[PagePreview]:
    from redream.pages.page import PagePreview

    previews = []
    for path in sorted((folder / PREVIEWS).glob("*.png")):
        step, _, stage = path.stem.partition("_")
        previews.append(PagePreview(label=f"{stage.replace('_', ' ')}, step {int(step)}", picture=path.read_bytes()))
    return previews


def _labels(exported: Output | None, neighbors: list[PageNeighbor]) -> list[str]:
    if exported is None:
        return []
    count = exported.result["num_particles"]
    own = [f"result {number + 1}" for number in range(count)] if count > 1 else ["result"]
    return [*own, *(neighbor.caption or neighbor.asset_id for neighbor in neighbors)]


def found_neighbors(outputs: Mapping[str, Output]) -> list[dict[str, Any]]:
    """Return the assets that a run starts from with their scores and, once known, where their fronts were found."""
    retrieval = outputs.get("retrieve") or outputs.get("take_assets")
    if retrieval is None:
        return []
    if (orientation := outputs.get("align")) is None:
        return [
            {**asdict(each), "margin": 0.0, "has_clear_front": True} for each in load_retrieval(retrieval).neighbors
        ]
    found = zip(load_aligned(retrieval, orientation).neighbors, orientation.result["orientations"], strict=True)
    return [{**asdict(n), "margin": entry["margin"], "has_clear_front": entry["has_clear_front"]} for n, entry in found]


def _neighbors(outputs: Mapping[str, Output]) -> list[PageNeighbor]:
    from redream.pages.page import PageNeighbor

    exported, render = outputs.get("export"), outputs.get("render")
    neighbors = []
    for number, entry in enumerate(found_neighbors(outputs)):
        kept = {name: entry["asset"][name] for name in ("asset_id", "caption", "license", "author", "source")}
        picture = b""
        if exported is not None:
            picture = _bytes(exported.path(thumbnail(number)))
        elif render is not None:
            picture = _bytes(render.path(f"asset_{number}/contact.png"))
        neighbors.append(
            PageNeighbor(
                **kept,
                thumbnail=picture,
                score=entry["score"],
                text_score=entry["text_score"],
                azimuth_deg=entry["azimuth_offset_deg"],
                margin=entry["margin"],
                has_clear_front=entry["has_clear_front"],
            )
        )
    return neighbors


def _metrics(outputs: Mapping[str, Output]) -> list[PageMetric]:
    from redream.pages.page import PageMetric

    if "evaluate" not in outputs:
        return []
    metrics = []
    reports = load_reports(outputs["evaluate"])
    for number, report in enumerate(reports):
        particle = f", particle {number}" if len(reports) > 1 else ""
        for model, value in report["clip_score"].items():
            metrics.append(
                PageMetric(
                    name=f"CLIP score{particle}",
                    model=model,
                    value=value,
                    is_higher_better=True,
                    caveat=CLIP_SCORE.caveat,
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
                    caveat=A_LPIPS.caveat,
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
                    note="Share of the views from behind.",
                    caveat=WRONG_FRONTS.caveat,
                )
            )
    return metrics


def steps_of(out: Path, record: Mapping[str, Any], stage: str, outputs: Mapping[str, Output]) -> list[dict[str, Any]]:
    """Return the steps that a stage has recorded so far; one that is being written does not count."""
    path = place_of(out, record, stage, outputs) / STEPS_FILE
    steps = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return steps


def place_of(out: Path, record: Mapping[str, Any], stage: str, outputs: Mapping[str, Output]) -> Path:
    """Return the folder of a stage's output or, while that is not complete, of its checkpoint."""
    if stage in outputs:
        return Path(outputs[stage].folder)
    return out / "store" / "partial" / stage / record["stages"][stage]["key"] / "checkpoint"


def _curves(out: Path, record: Mapping[str, Any], outputs: Mapping[str, Output]) -> list[PageCurve]:
    """Return every loss that a loop recorded, over its steps."""
    from redream.pages.page import PageCurve

    curves = []
    for stage in record["stages"]:
        entries = steps_of(out, record, stage, outputs)
        for name in dict.fromkeys(name for entry in entries for name in entry if name not in NO_CURVES):
            found = [entry for entry in entries if name in entry]
            steps, values = tuple(entry["step"] for entry in found), tuple(float(entry[name]) for entry in found)
            curves.append(PageCurve(name=f"{stage}: {name}", steps=steps, values=values))
    return curves


def _samples(out: Path, record: Mapping[str, Any], outputs: Mapping[str, Output]) -> list[PageSamples]:
    from redream.pages.page import PageSamples

    if "adapt" not in record["stages"]:
        return []
    place = place_of(out, record, "adapt", outputs)
    folder = place / "samples" if "adapt" in outputs else place.parent / "output" / "samples"
    return [
        PageSamples(
            view_name=path.name.removesuffix("_before.png"),
            before=_bytes(path),
            after=_bytes(path.with_name(path.name.replace("_before", "_after"))),
        )
        for path in sorted(folder.glob("*_before.png"))
    ]


def _bytes(path: Path) -> bytes:
    """Return what a file holds; nothing where it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
