"""What a run that was stopped leaves: a page of what there is, and files of the field that it had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from redream.distill.particle import Particle
from redream.overrides import with_overrides
from redream.presets import smoke
from redream.settings import RunConfig
from tasks.machinery.progress import Stopped, stop_requested
from tasks.machinery.store import stage_key
from tasks.results.live_page import growing_page
from tasks.results.model_files import file_name, latest_field, write_object
from tasks.runs.records import read_run
from tasks.runs.run import Run
from tasks.runs.stage import Work, run_stage


def stop_in_the_middle(run: Run, config: RunConfig) -> None:
    """Stop a run whose distillation has saved a field."""

    def produce(work: Work) -> dict[str, object]:
        (work.checkpoint / "state").mkdir()
        particle = Particle(config.field, -1, torch.Generator().manual_seed(0))
        torch.save({"particles": [particle.state_dict()]}, work.checkpoint / "state" / "state.pt")
        (work.checkpoint / "steps.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
        raise Stopped("Ctrl-C")

    try:
        with growing_page(run, config, ["distill", "evaluate"]):
            run_stage(run, stage_key("distill", 1, {}, {}), {}, produce)
    finally:
        stop_requested.clear()


@pytest.fixture
def config() -> RunConfig:
    return with_overrides(smoke(), {"export.density_threshold": 0.5, "distill.method": "vsd"})


def test_stopped_run_leaves_a_word_a_page_and_a_mesh(run: Run, config: RunConfig, tmp_path: Path) -> None:
    ask(run)
    with pytest.raises(Stopped) as stopped:
        stop_in_the_middle(run, config)
    (word,) = stopped.value.__notes__
    assert f"`redream rerun {run.run_id} --out" in word and f"`redream export {run.run_id} --out" in word
    page = (run.folder / "page.html").read_text()
    assert "distill: loss" in page and "Stopped; `redream rerun" in page and 'http-equiv="refresh"' not in page
    assert (run.folder / "mesh.glb").read_bytes()[:4] == b"glTF"


def test_stopped_run_is_exported_in_every_format_under_its_prompts_name(
    run: Run, config: RunConfig, tmp_path: Path
) -> None:
    ask(run)
    with pytest.raises(Stopped):
        stop_in_the_middle(run, config)
    sized = with_overrides(config, {"export.origin": "bottom", "export.height": 30.0, "export.unit": "cm"})
    record = read_run(tmp_path, run.run_id)
    written = write_object(tmp_path, record, sized, ["glb", "obj", "stl"], tmp_path / "files")
    assert [path.name for path in written] == ["a-red-cube.glb", "a-red-cube.obj", "a-red-cube.stl", "ATTRIBUTION.txt"]
    heights = [trimesh.load_mesh(path).bounds[1][1] for path in written[:3]]
    assert heights == pytest.approx([0.3, 30.0, 30.0], rel=1e-4)  # glTF is in metres, the others in what was asked


def test_run_without_a_field_has_nothing_to_export(run: Run, tmp_path: Path) -> None:
    record = read_run(tmp_path, run.run_id)
    assert latest_field(tmp_path, record) is None
    with pytest.raises(ValueError, match="has no field yet"):
        write_object(tmp_path, record, smoke(), ["glb"], tmp_path / "files")


def test_files_are_named_after_the_prompt_whatever_it_holds() -> None:
    assert file_name("A blue pickup-truck!") == "a-blue-pickup-truck"
    assert file_name("../../etc/passwd") == "etc-passwd"
    assert file_name("ロボット 🤖") == "ロボット"
    assert file_name("🤖") == "object"


def ask(run: Run) -> None:
    """Let the run be one of the flow `generate`."""
    path = run.folder / "run.json"
    record: dict[str, Any] = json.loads(path.read_text())
    request = {"prompt": run.prompt, "preset": "smoke", "method": "vsd", "seed": 7, "index": "", "assets": []}
    path.write_text(json.dumps({**record, "flow": "generate", "request": {**request, "settings": {}}}))
