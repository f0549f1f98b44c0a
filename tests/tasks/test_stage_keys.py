"""A table of changes against the stages that must run again: each key holds what can change its result, and no more.

Stages find, lock, salt and publish as always; only their work is replaced by writing down their key, so that content
follows keys and a change is seen to reach whatever depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from flows.requests.plan import NEEDS, dependents
from redream.limits import Linear
from redream.overrides import with_overrides
from redream.presets import smoke
from redream.settings import RunConfig
from tasks import adaptation, distillation, evaluation, exporting, indexing, orientation, rendering, retrieval
from tasks.indexing import IndexPlace, built_index
from tasks.machinery.store import Output, StageKey
from tasks.runs import stage
from tasks.runs.run import Run

DISTILLED = ["distill", "evaluate", "export"]
TRAINED = ["warm_up", "adapt", *DISTILLED]
RENDERED = ["render", *TRAINED]
FOUND = ["retrieve", "align", *RENDERED]
MODULES = {
    "index": indexing, "retrieve": retrieval, "take_assets": retrieval, "align": orientation, "render": rendering,
    "warm_up": distillation, "adapt": adaptation, "distill": distillation, "evaluate": evaluation, "export": exporting,
}  # fmt: skip


@pytest.fixture(autouse=True)
def content_follows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_key(run: Run, key: StageKey, settings: Any, produce: Any, device: str) -> Output:
        json.dumps(dict(settings))  # parameters of the nested MLflow run
        folder, _ = run.store.begin(key)
        (folder / "key.txt").write_text(key.digest)
        return run.store.publish(key, {"content_hash": key.digest, "asset_root": "", "num_assets": 1}, {}, 0.0, "", {})

    monkeypatch.setattr(stage, "_compute", write_key)
    monkeypatch.setattr(stage, "_track_cached", lambda run, key, output: None)


def keys(
    run: Run,
    settings: Mapping[str, Any] | None = None,
    *,
    prompt: str = "a red cube",
    seed: int = 7,
    method: str = "redream",
    index: str = "",
    meshes: list[str] | None = None,
    salts: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Take a request through all stages, as `flows.generate.make` does, and return the key of each."""
    config: RunConfig = with_overrides(smoke(), {"distill.method": method, **(settings or {})})
    asked = Run(
        run_id=run.run_id, out=run.out, prompt=prompt, seed=seed, tracking=run.tracking,
        mlflow_run_id=run.mlflow_run_id, prefect_tags={}, salts=dict(salts or {}),
    )  # fmt: skip
    outputs: dict[str, Output] = {}

    def done(output: Any) -> Output:
        found = output.result() if isinstance(output, State) else output
        outputs[found.stage] = found
        return found

    found = fronts = views = warm = adapter = None
    if method == "redream":
        if meshes:
            found = done(retrieval.take_assets.fn(asked, meshes, config.mesh, config.retrieval.up_axis))
        else:
            place = IndexPlace(index_dir="", asset_root="", content_hash=index, num_assets=1)
            place = place if index else built_index(done(indexing.index_miniature.fn(asked, config.retrieval)))
            found = done(retrieval.retrieve.fn(asked, place, config.retrieval, config.download, config.mesh))
        fronts = done(orientation.align.fn(asked, found, config.retrieval.clip_model, config.orientation, config.mesh))
        views = done(rendering.render.fn(asked, found, fronts, config.render, config.camera, config.mesh))
        warm = done(distillation.warm_up.fn(asked, views, config, 1))
        adapter = done(adaptation.adapt.fn(asked, views, config, 1)) if config.distill.use_adapter else None
    particles = done(distillation.distill.fn(asked, views, warm, adapter, config))
    done(evaluation.evaluate.fn(asked, particles, config))
    done(exporting.export.fn(asked, particles, found, fronts, config))
    return {name: output.key for name, output in outputs.items()}


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [name for name in NEEDS if name in after and after[name] != before.get(name)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"prompt": "a blue cube"}, FOUND),
        ({"seed": 8}, RENDERED),
        ({"settings": {"retrieval.num_recall": 9}}, FOUND),
        ({"settings": {"retrieval.up_axis": "+Z"}}, []),  # an index has its own
        ({"settings": {"retrieval.num_index_views": 5}}, ["index", *FOUND]),
        ({"settings": {"orientation.min_margin": 0.5}}, ["align", *RENDERED]),
        ({"settings": {"render.num_views": 11}}, RENDERED),
        ({"settings": {"camera.elevation_deg": (0.0, 20.0)}}, RENDERED),
        ({"settings": {"camera.front_within_deg": 40.0}}, TRAINED),  # the cameras stay, their names do not
        ({"settings": {"field.hidden_dim": 16}}, ["warm_up", *DISTILLED]),
        ({"settings": {"prior.dtype": "bfloat16"}}, TRAINED),
        ({"settings": {"adaptation.rank": 2}}, ["adapt", *DISTILLED]),
        ({"settings": {"distill.guidance_scale": 5.0}}, ["warm_up", *DISTILLED]),
        ({"settings": {"adaptation.sample_guidance_scale": 5.0}}, ["adapt", *DISTILLED]),
        ({"settings": {"distill.warm_up_steps": 3}}, ["warm_up", *DISTILLED]),
        ({"settings": {"distill.lambda_ret_rgb": 5.0}}, ["warm_up", *DISTILLED]),
        ({"settings": {"distill.low_resolution": 8}}, ["warm_up", *DISTILLED]),
        # What only reaches steps behind the warm-up leaves it alone.
        ({"settings": {"distill.num_steps": 8}}, DISTILLED),
        ({"settings": {"distill.high_resolution": 24}}, DISTILLED),
        ({"settings": {"distill.high_resolution_from_step": 5}}, DISTILLED),
        ({"settings": {"distill.high_resolution_from_step": 1}}, ["warm_up", *DISTILLED]),
        ({"settings": {"distill.annealed_max_t": 0.4}}, DISTILLED),
        ({"settings": {"distill.anneal_from_step": 1}}, ["warm_up", *DISTILLED]),
        ({"settings": {"distill.occupancy_every": 3}}, ["warm_up", *DISTILLED]),
        ({"settings": {"distill.lambda_opacity_entropy": Linear(start=0.0, end=9.0, begin_step=4, end_step=4)}},
         DISTILLED),
        ({"settings": {"distill.lambda_opacity_entropy": Linear(start=9.0, end=0.0, begin_step=1, end_step=1)}},
         ["warm_up", *DISTILLED]),
        ({"settings": {"distill.use_adapter": False}}, DISTILLED),
        # What reaches no step at all is only listed on the page, which every run writes for itself.
        ({"settings": {"distill.sds_guidance_scale": 5.0}}, []),
        ({"settings": {"distill.lr_background": 5.0}}, []),
        ({"settings": {"evaluation.num_views": 4}}, ["evaluate", "export"]),
        ({"settings": {"evaluation.image_size": 24}}, ["evaluate"]),
        ({"settings": {"export.turntable_fps": 24}}, ["export"]),
        ({"settings": {"evaluation.clip_models": ("mini:clip-eval-b",), "retrieval.clip_model": "mini:clip-eval-a"}},
         ["index", *FOUND]),
    ],
    ids=str,
)  # fmt: skip
def test_change_runs_exactly_what_depends_on_it(run: Run, change: dict[str, Any], expected: list[str]) -> None:
    assert changed(keys(run), keys(run, **change)) == expected


def test_content_of_an_index_decides_and_not_its_place(run: Run) -> None:
    assert changed(keys(run, index="1" * 16), keys(run, index="2" * 16)) == FOUND


def test_bytes_of_a_mesh_decide_and_not_its_place(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mesh.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    before = keys(run, meshes=[str(tmp_path / "mesh.obj")])
    (tmp_path / "moved").mkdir()
    (tmp_path / "mesh.obj").rename(tmp_path / "moved" / "mesh.obj")
    assert changed(before, keys(run, meshes=[str(tmp_path / "moved" / "mesh.obj")])) == []
    (tmp_path / "mesh.obj").write_text("v 0 0 1\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    after = keys(run, meshes=[str(tmp_path / "mesh.obj")])
    assert changed(before, after) == ["take_assets", "align", *RENDERED]
    upright = keys(run, {"retrieval.up_axis": "+Z"}, meshes=[str(tmp_path / "moved" / "mesh.obj")])
    assert changed(after, upright) == ["take_assets", "align", *RENDERED]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"distill.sds_guidance_scale": 5.0}, DISTILLED),
        ({"distill.guidance_scale": 5.0}, []),
        ({"distill.lr_variational": 5.0}, []),
        ({"distill.warm_up_steps": 1}, []),
        ({"render.num_views": 11}, []),
        ({"sjc.form": "plain"}, []),
        ({"perp_neg.rule": "paper"}, []),
        ({"perp_neg.enabled": True}, DISTILLED),
    ],
)
def test_other_method_depends_on_other_settings(run: Run, change: dict[str, Any], expected: list[str]) -> None:
    assert changed(keys(run, method="sds"), keys(run, change, method="sds")) == expected


@pytest.mark.parametrize("setting", ["sjc.guidance_scale", "sjc.lambda_emptiness", "mvdream.guidance_scale"])
def test_settings_of_a_method_rerun_that_method_alone(run: Run, setting: str) -> None:
    method, weights = setting.partition(".")[0], {"mvdream.model": "mini:judge"}
    assert changed(keys(run, weights, method=method), keys(run, {**weights, setting: 5.0}, method=method)) == DISTILLED
    for other in ("redream", "vsd"):
        assert changed(keys(run, method=other), keys(run, {setting: 5.0}, method=other)) == []


@pytest.mark.parametrize("name", [name for name in NEEDS if name != "take_assets"])
def test_new_version_of_a_stage_runs_it_and_what_depends_on_it(
    run: Run, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(run)
    monkeypatch.setattr(MODULES[name], "STAGE_VERSION", 99)
    shared = [other for other in NEEDS if MODULES[other] is MODULES[name]]  # stages of one file share its version
    expected = {found for stage_name in shared for found in dependents(stage_name)} & before.keys()
    assert set(changed(before, keys(run))) == expected


@pytest.mark.parametrize("name", [name for name in NEEDS if name != "take_assets"])
def test_salt_of_a_stage_reaches_exactly_its_dependents(run: Run, name: str) -> None:
    """So the table of dependences, by which `rerun --from` salts, says what the keys say."""
    assert changed(keys(run), keys(run, salts={name: "again"})) == [n for n in dependents(name) if n != "take_assets"]


def test_salted_stage_is_another_once_and_then_found(run: Run) -> None:
    first, second = keys(run, salts={"distill": "a"}), keys(run, salts={"distill": "a"})
    assert first == second
    assert keys(run, salts={"distill": "b"})["distill"] != first["distill"]
