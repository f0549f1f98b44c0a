"""The distillation stage resumes: however it was stopped, it ends with the very weights of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redream.overrides import with_overrides
from redream.presets import smoke
from redream.settings import RunConfig
from tasks import distillation
from tasks.distillation import distill
from tasks.machinery.progress import Stopped, stop_requested
from tasks.runs.run import Run
from tests.redream.conftest import save_tiny_prior
from tests.redream.prior.test_multi_view import save_ours, tiny_unet


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    prior = save_tiny_prior(tmp_path_factory.mktemp("prior") / "tiny", "epsilon")
    return with_overrides(smoke(), {"distill.method": "vsd", "prior.model": str(prior)})


@pytest.fixture
def checkpoint_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "CHECKPOINT_EVERY_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def no_stop_is_left_behind() -> Iterator[None]:
    yield
    stop_requested.clear()


def particles_and_curve(run: Run, config: RunConfig) -> tuple[bytes, str]:
    output = distill.fn(run, None, None, None, config)
    return output.path("particle_0.safetensors").read_bytes(), output.path("steps.jsonl").read_text()


def elsewhere(run: Run, tmp_path: Path) -> Run:
    """Return the same run with an empty store."""
    out = tmp_path / "elsewhere"
    (out / "runs").mkdir(parents=True)
    (out / "runs" / run.run_id).symlink_to(run.folder)
    return replace(run, out=str(out))


def act_at_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Any) -> None:
    figures = distillation._figures

    def acting(step: Any) -> dict[str, float]:
        if step.step == number:
            action()
        return figures(step)

    monkeypatch.setattr(distillation, "_figures", acting)


def test_failed_stage_continues_from_its_checkpoint_to_the_same_weights(
    run: Run, config: RunConfig, tmp_path: Path, checkpoint_every_step: None
) -> None:
    undisturbed = particles_and_curve(elsewhere(run, tmp_path), config)

    def lose_power() -> None:
        raise OSError("no power")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no power"):
        act_at_step(patch, 4, lose_power)
        distill.fn(run, None, None, None, config)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        act_at_step(patch, 4, lambda: seen.append(4))
        act_at_step(patch, 2, lambda: seen.append(2))
        resumed = particles_and_curve(run, config)
    assert seen == [4]  # steps before the checkpoint are not computed again
    assert resumed == undisturbed


def test_stopped_stage_leaves_a_checkpoint_of_its_last_step(run: Run, config: RunConfig, tmp_path: Path) -> None:
    undisturbed = particles_and_curve(elsewhere(run, tmp_path), config)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        act_at_step(patch, 3, stop_requested.set)
        distill.fn(run, None, None, None, config)
    stop_requested.clear()
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        act_at_step(patch, 3, lambda: seen.append(3))
        resumed = particles_and_curve(run, config)
    assert seen == []
    assert resumed == undisturbed


def test_mvdream_goes_through_the_stage_with_a_multi_view_model_of_a_folder(run: Run, tmp_path: Path) -> None:
    prior = save_tiny_prior(tmp_path / "prior", "epsilon")
    model = save_ours(tiny_unet(), tmp_path / "views", prior)
    settings = {"distill.method": "mvdream", "mvdream.model": model, "distill.num_steps": 2, "distill.warm_up_steps": 0}
    output = distill.fn(run, None, None, None, with_overrides(smoke(), settings))
    assert output.result["num_steps"] == 2 and output.path("particle_0.safetensors").is_file()
