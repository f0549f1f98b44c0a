"""Which stages read each setting, as a table: changing one changes exactly the keys of the stages that read it.

Content does not follow the keys here, so that a key which forgets a setting is not covered by its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from redream.limits import Linear
from redream.overrides import flatten, with_overrides
from redream.presets import smoke
from redream.settings import RunConfig
from redream.weights import weights_digest
from tasks import adaptation, distillation, evaluation, exporting, indexing, orientation, rendering, retrieval
from tasks.indexing import IndexPlace
from tasks.machinery.store import Output, StageKey
from tasks.runs.run import Run
from tasks.tracking.tracker import Tracking

# So that every setting reaches some step of smoke's six.
BASE = {"distill.lambda_opacity_entropy": Linear(start=0.0, end=20.0, begin_step=0, end_step=4)}
WITHOUT_RETRIEVAL = {**BASE, "distill.method": "sds", "distill.background": "learned"}

FIELD = (
    "num_levels features_per_level log2_hashmap_size base_resolution per_level_scale hidden_dim num_hidden_layers "
    "radius density_gain density_blob_scale density_blob_radius num_samples_per_ray occupancy_resolution implementation"
)
MESH = "file_bytes triangles parts texture_pixels seconds memory_bytes"

# By section: the stages, then the settings that they read and no others do. What is not named is read by none.
READ = {
    "retrieval": {
        "index retrieve align": "clip_model",
        "index": "num_index_views views",
        "retrieve": "num_recall num_assets licenses use leave_out take_weak max_likeness where table age_restricted "
        "fetch_objects fetch_bytes fetch_seconds",
    },
    "orientation": {"align": "num_poses elevation_deg min_margin front_axis"},
    "camera": {
        "render warm_up distill": "camera_distance fovy_deg elevation_deg",
        "warm_up adapt distill": "front_within_deg back_within_deg overhead_above_deg",
    },
    "render": {"render": "num_views image_size", "render export": "object_radius"},
    "field": {"warm_up distill evaluate export": FIELD},
    "prior": {"warm_up adapt distill": "model dtype"},
    "adaptation": {
        "adapt": "rank lr_lora lr_tokens num_steps batch_size held_out_share validate_every patience "
        "num_samples_per_view sample_guidance_scale sample_steps",
    },
    "distill": {
        "index retrieve align render warm_up adapt distill export": "method",
        "warm_up": "warm_up_steps use_initialisation lambda_ret_rgb lambda_ret_opacity variational_sees_assets",
        "warm_up adapt distill": "background_grey",  # the adaptation draws greys too
        "adapt distill": "use_adapter",
        "warm_up distill": "guidance_scale negative_prompt weighting "
        "num_particles views_per_step delta_every delta_weight min_t max_t "
        "low_resolution lr_encoding lr_mlp lr_variational variational_rank camera_dropout lambda_sparsity "
        "lambda_opacity_entropy background occupancy_every",
        # Behind the warm-up's two steps.
        "distill": "num_steps annealed_max_t anneal_from_step high_resolution high_resolution_from_step",
    },
    "perp_neg": {"warm_up distill": "enabled"},  # the others once it is
    "debias": {"warm_up distill": "score"},
    "evaluation": {
        "evaluate export": "num_views elevation_deg camera_distance fovy_deg background",
        "evaluate": "image_size clip_models lpips_backbones judge close_loop",
    },
    "export": {
        "export": "mesh_resolution density_threshold turntable_size turntable_fps origin height unit largest_part"
    },
    "mesh": {"export": MESH},
}
READ_BY_SDS = {  # before a learned background
    "camera": {
        "distill": "camera_distance fovy_deg elevation_deg front_within_deg back_within_deg overhead_above_deg",
    },
    "render": {"export": "object_radius"},
    "field": {"distill evaluate export": FIELD},
    "prior": {"distill": "model dtype"},
    "distill": {
        "distill": "method num_steps num_particles views_per_step sds_guidance_scale negative_prompt weighting "
        "min_t max_t annealed_max_t anneal_from_step low_resolution high_resolution high_resolution_from_step "
        "lr_encoding lr_mlp lr_background lambda_sparsity "
        "lambda_opacity_entropy background random_background_probability occupancy_every",
    },
    "perp_neg": {"distill": "enabled"},
    "debias": {"distill": "score"},
    "evaluation": READ["evaluation"],
    "export": READ["export"],
    "mesh": READ["mesh"],
}
SJC = {**WITHOUT_RETRIEVAL, "distill.method": "sjc", "perp_neg.enabled": True, "debias.score": True}
READ_BY_SJC = {
    **READ_BY_SDS,
    "distill": {
        "distill": READ_BY_SDS["distill"]["distill"].replace("sds_guidance_scale ", "").replace("weighting ", ""),
    },
    "sjc": {"distill": "guidance_scale form lambda_emptiness emptiness_scale emptiness_growth emptiness_grows_from"},
    "perp_neg": {"distill": "enabled rule"},
    "debias": {"distill": "score first_clamp last_clamp"},
}


DIGEST = cache(weights_digest)


def keyed(run: Run, key: StageKey, settings: Mapping[str, Any], produce: Any, needs: str = "cores") -> Output:
    """Stand in for `run_stage`: the key is all, and the content always the same."""
    return Output(
        stage=key.stage, key=key.digest, folder="", digest="", result={}, metrics={}, mlflow_run_id="", seconds=0.0
    )


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (adaptation, distillation, evaluation, exporting, indexing, orientation, rendering, retrieval):
        monkeypatch.setattr(module, "run_stage", keyed)
        if hasattr(module, "weights_digest"):
            monkeypatch.setattr(module, "weights_digest", DIGEST)


def keys(config: RunConfig, prompt: str = "a red cube", seed: int = 7) -> dict[str, str]:
    run = Run(
        run_id="", out="", prompt=prompt, seed=seed, mlflow_run_id="", prefect_tags={}, salts={},
        tracking=Tracking(uri="", artifacts="", spool=""),
    )  # fmt: skip
    found = fronts = views = warm = adapter = None
    outputs = []
    if config.distill.method == "redream":
        place = IndexPlace(index_dir="", asset_root="", content_hash="", num_assets=1)
        outputs.append(indexing.index_miniature.fn(run, config.retrieval))
        found = retrieval.retrieve.fn(run, place, config.retrieval, config.download, config.mesh)
        fronts = orientation.align.fn(run, found, config.retrieval.clip_model, config.orientation, config.mesh)
        views = rendering.render.fn(run, found, fronts, config.render, config.camera, config.mesh)
        warm = distillation.warm_up.fn(run, views, config, 1)
        adapter = adaptation.adapt.fn(run, views, config, 1) if config.distill.use_adapter else None
    particles = distillation.distill.fn(run, views, warm, adapter, config)
    outputs += [found, fronts, views, warm, adapter, particles, evaluation.evaluate.fn(run, particles, config)]
    outputs.append(exporting.export.fn(run, particles, found, fronts, config))
    return {output.stage: output.key for output in outputs if output is not None}


def another(name: str, value: Any) -> Any:
    """Return another value of a setting that is allowed as well."""
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.9 if value else 0.1
    return (value[0] * 0.9, *value[1:])  # a range


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {stage for stage in before if before[stage] != after.get(stage)}


STILL_OTHER = {"distill.background": "grey"}
OTHER = {
    "retrieval.clip_model": "mini:judge", "retrieval.views": "each", "retrieval.up_axis": "+Z",
    "retrieval.licenses": ("cc0",), "retrieval.use": ("a",), "orientation.front_axis": "-X",
    "retrieval.leave_out": ("a",), "retrieval.where": "quality > 1", "retrieval.age_restricted": True,
    "retrieval.table": __file__,
    "download.base_url": "https://example.org",
    "export.origin": "bottom", "export.unit": "cm",
    "download.redirect_hosts": ("example.org",), "field.features_per_level": 4, "field.implementation": "torch",
    "prior.model": "mini:judge", "prior.dtype": "bfloat16", "prior.config": "x",
    "distill.method": "vsd", "distill.background": "learned",
    "distill.lambda_opacity_entropy": Linear(start=0.0, end=21.0, begin_step=0, end_step=4),
    "evaluation.clip_models": ("mini:clip-eval-b",), "evaluation.lpips_backbones": ("mini:perceptual-b",),
    "distill.negative_prompt": "ugly", "distill.weighting": "uniform", "perp_neg.rule": "paper", "sjc.form": "plain",
    "mvdream.model": "mini:judge", "mvdream.negative_prompt": "ugly", "mvdream.elevation_deg": (1.0, 20.0),
    "evaluation.judge": "", "camera.elevation_deg": (1.0, 20.0), "camera.camera_distance": (1.3, 1.6),
}  # fmt: skip


@pytest.mark.parametrize(
    ("base", "table"),
    [(BASE, READ), (WITHOUT_RETRIEVAL, READ_BY_SDS), (SJC, READ_BY_SJC)],
    ids=["redream", "sds", "sjc"],
)
def test_every_setting_is_in_the_keys_of_the_stages_that_read_it_and_in_no_others(
    base: Mapping[str, Any], table: Mapping[str, Mapping[str, str]]
) -> None:
    config = with_overrides(smoke(), base)
    before = keys(config)
    expected = {
        f"{section}.{name}": set(stages.split())
        for section, readers in table.items()
        for stages, names in readers.items()
        for name in names.split()
    }
    assert expected.keys() <= flatten(config).keys()
    for setting in flatten(config):
        section, _, name = setting.partition(".")
        value = another(setting, getattr(getattr(config, section), name))
        if value == getattr(getattr(config, section), name):
            value = STILL_OTHER[setting]
        found = changed(before, keys(with_overrides(config, {setting: value})))
        assert found == expected.get(setting, set()), setting


def test_a_clamp_that_grows_over_the_run_ties_the_warm_up_to_the_number_of_steps() -> None:
    config = with_overrides(smoke(), {**BASE, "debias.score": True})
    after = keys(with_overrides(config, {"distill.num_steps": 7}))
    assert changed(keys(config), after) == {"warm_up", "distill"}


def test_prompt_and_seed_are_in_the_keys_of_the_stages_that_read_them() -> None:
    config = with_overrides(smoke(), BASE)
    before = keys(config)
    shown = {"retrieve", "adapt", "warm_up", "distill", "evaluate", "export"}
    assert changed(before, keys(config, prompt="a blue cube")) == shown
    assert changed(before, keys(config, seed=8)) == {"render", "adapt", "warm_up", "distill"}


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("prior.model", {"adapt", "warm_up", "distill"}),
        ("retrieval.clip_model", {"index", "retrieve", "align"}),
        ("evaluation.judge", {"evaluate"}),
        ("evaluation.clip_models", {"evaluate"}),
        ("evaluation.lpips_backbones", {"evaluate"}),
    ],
)
def test_another_byte_in_a_models_folder_changes_the_keys_of_the_stages_that_load_it(
    setting: str, stages: set[str], tmp_path: Path
) -> None:
    DIGEST.cache_clear()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights.safetensors").write_bytes(b"one")
    value = (str(tmp_path),) if setting.endswith("s") else str(tmp_path)
    config = with_overrides(smoke(), {**BASE, setting: value})
    before = keys(config)
    DIGEST.cache_clear()
    assert keys(config) == before
    (tmp_path / "unet" / "weights.safetensors").write_bytes(b"two")
    DIGEST.cache_clear()
    assert changed(before, keys(config)) == stages
