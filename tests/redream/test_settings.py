import json
from dataclasses import asdict, replace

import pytest

from redream.limits import Linear
from redream.overrides import flatten, with_overrides
from redream.presets import PRESETS, mini
from redream.settings import DistillConfig, RunConfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_json(name) -> None:
    config = PRESETS[name]()
    assert json.loads(json.dumps(asdict(config)))["distill"]["method"] == "redream"
    assert all("." in key for key in flatten(config))


def test_linear_rests_outside_its_steps_and_moves_evenly_between() -> None:
    value = Linear(start=0.0, end=10.0, begin_step=100, end_step=200)
    assert [value(step) for step in (0, 100, 150, 200, 999)] == [0.0, 0.0, 5.0, 10.0, 10.0]
    jump = Linear(start=1.0, end=2.0, begin_step=5, end_step=5)
    assert [jump(4), jump(5)] == [1.0, 2.0]


def test_overrides_change_one_setting_and_nothing_else() -> None:
    changed = flatten(with_overrides(mini(), {"distill.guidance_scale": 50}))
    differences = {key for key, value in flatten(mini()).items() if changed[key] != value}
    assert differences == {"distill.guidance_scale"} and changed["distill.guidance_scale"] == 50.0


def test_overrides_reach_tuples_and_linears() -> None:
    entropy = {"start": 0, "end": 1, "begin_step": 1, "end_step": 2}
    config = with_overrides(mini(), {"camera.fovy_deg": [40, 50], "distill.lambda_opacity_entropy": entropy})
    assert config.camera.fovy_deg == (40.0, 50.0)
    assert config.distill.lambda_opacity_entropy == Linear(start=0.0, end=1.0, begin_step=1, end_step=2)


def test_overrides_count_together() -> None:
    config = with_overrides(mini(), {"distill.num_steps": 10, "distill.warm_up_steps": 5})
    assert (config.distill.num_steps, config.distill.warm_up_steps) == (10, 5)
    with pytest.raises(ValueError, match=r"distill\.warm_up_steps is 250; it must be at most distill\.num_steps, 10"):
        with_overrides(mini(), {"distill.num_steps": 10})


@pytest.mark.parametrize(
    "overrides",
    [
        {"distill.guidance": 1.0},
        {"nothing.at_all": 1},
        {"distill": 1},
        {"distill.method": "magic"},
        {"distill.num_steps": 1.5},
        {"distill.num_steps": 0},
        {"distill.num_steps": True},
        {"distill.use_adapter": 1},
        {"distill.guidance_scale": float("nan")},
        {"distill.lr_mlp": float("inf")},
        {"distill.max_t": 1.1},
        {"export.mesh_resolution": 10**6},
        {"evaluation.fovy_deg": 180},
        {"camera.fovy_deg": [50]},
        {"camera.fovy_deg": [60, 50]},
        {"prior.model": 3},
        {"field.features_per_level": 3},
    ],
)
def test_what_a_setting_cannot_be_is_refused_by_name(overrides) -> None:
    with pytest.raises(ValueError, match=next(iter(overrides)).split(".")[-1]):
        with_overrides(mini(), overrides)


def test_an_unknown_setting_is_answered_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"distill\.guidance_scale"):
        with_overrides(mini(), {"distill.guidance_scal": 1.0})


def test_the_retrieval_clip_cannot_also_evaluate() -> None:
    config = mini()
    models = (config.retrieval.clip_model, "mini:clip-eval-a")
    with pytest.raises(ValueError, match="clip_models"):
        replace(config, evaluation=replace(config.evaluation, clip_models=models))


def test_paper_constants_are_the_papers() -> None:
    config = RunConfig()
    assert (config.retrieval.num_assets, config.render.num_views, config.evaluation.num_views) == (3, 100, 120)
    assert (config.distill.num_steps, config.distill.delta_every) == (20_000, 3)


def test_warm_up_cannot_outlast_the_run() -> None:
    with pytest.raises(ValueError, match="warm_up_steps"):
        DistillConfig(num_steps=10, warm_up_steps=11)
