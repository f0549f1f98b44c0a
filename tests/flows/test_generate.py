"""The whole method on a tiny world: every stage really runs, is tracked, and is reused."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote
from uuid import UUID

import pytest
import trimesh
from mlflow.tracking import MlflowClient
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows.evaluate import evaluate_runs
from flows.generate import generate
from flows.requests.plan import first_unfinished
from flows.rerun import rerun
from redream import pipeline
from redream.overrides import with_overrides
from redream.presets import smoke
from tasks.results.delivery import Made
from tasks.runs.records import finished_stage, list_runs, read_run
from tests.flows.conftest import World

STAGES = ["retrieve", "align", "render", "warm_up", "adapt", "distill", "evaluate", "export"]
PROMPT = "a grey <b>box</b>"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out with spaces")


pytestmark = pytest.mark.usefixtures("tracking_uri")


@pytest.fixture(scope="module")
def made(world: World, out: Path) -> Made:
    return generate(PROMPT, preset="smoke", seed=3, index=world.index, settings=world.settings, out=str(out))


def test_every_stage_of_a_first_run_is_computed(made: Made, out: Path) -> None:
    assert made.stages == dict.fromkeys(STAGES, "computed")
    record = read_run(out, made.run_id)
    assert record["state"] == "finished"
    assert record["metrics"] == made.metrics
    assert len([name for name in made.metrics if name.startswith("clip_")]) == 2
    assert len([name for name in made.metrics if name.startswith("lpips_")]) == 2
    assert record["prefect"]["prefect.flow_run_id"]


def test_run_leaves_a_mesh_a_turntable_and_a_page_that_needs_nothing_else(made: Made) -> None:
    mesh = trimesh.load_mesh(made.mesh)
    assert len(mesh.faces) > 0
    assert Path(made.turntable).read_bytes()[4:8] == b"ftyp"
    page = Path(made.page).read_text()
    assert "CC-BY-4.0" in page
    assert PROMPT not in page  # escaped
    assert not re.search(r"""(src|href)=["']?(https?:|//|/)""", page)


def test_the_flow_and_the_plain_pipeline_make_the_same_object_bit_for_bit(
    made: Made, out: Path, world: World, tmp_path: Path
) -> None:
    config = with_overrides(smoke(), world.settings)
    report = pipeline.generate(PROMPT, config, world.index, tmp_path, seed=3)
    particles = finished_stage(out, read_run(out, made.run_id), "distill")
    assert (tmp_path / "particle.safetensors").read_bytes() == particles.path("particle_0.safetensors").read_bytes()
    assert (tmp_path / "mesh.glb").read_bytes() == Path(made.mesh).read_bytes()
    assert report.summary() == made.metrics


def test_mlflow_has_a_parent_and_one_nested_run_per_stage(made: Made, tracking_uri: str) -> None:
    client = MlflowClient(tracking_uri)
    parent = client.get_run(made.mlflow_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["prefect.flow_run_id"]
    artifacts = {entry.path for entry in client.list_artifacts(made.mlflow_run_id)}
    assert {"config.json", "run.json", "page.html", "orbit.png", "mesh.glb", "turntable.mp4"} <= artifacts
    picture = f"![orbit.png](get-artifact?run_uuid={made.mlflow_run_id}&path=orbit.png)"
    assert picture in parent.data.tags["mlflow.note.content"]
    nested = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{made.mlflow_run_id}'")
    by_name = {run.info.run_name or "": run for run in nested}
    assert sorted(by_name) == sorted(STAGES)
    steps = client.get_metric_history(by_name["distill"].info.run_id, "distill/score")
    assert [metric.step for metric in steps] == [3, 4, 5, 6]  # the first two belong to the warm-up
    names = {entry.path for entry in client.list_artifacts(by_name["adapt"].info.run_id, "adapter")}
    assert "adapter/pytorch_lora_weights.safetensors" in names


def test_each_view_has_a_line_of_figures(made: Made, out: Path) -> None:
    path = finished_stage(out, read_run(out, made.run_id), "evaluate").path("views.csv")
    rows = list(csv.DictReader(path.open(newline="")))
    assert [row["view"] for row in rows] == [str(view) for view in range(len(rows))]
    for name in made.metrics.keys() - {"wrong_front_share"}:
        values = [float(row[name]) for row in rows if row[name]]
        assert len(values) in (len(rows), len(rows) - 1)  # pairs of views are one less
        assert sum(values) / len(values) == pytest.approx(made.metrics[name], abs=1e-4)


def test_prefect_has_the_picture_and_the_figures(made: Made, out: Path) -> None:
    flow_run_id = read_run(out, made.run_id)["prefect"]["prefect.flow_run_id"]
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=of_run)
    shown = {artifact.key: str(artifact.data) for artifact in found}
    kind, _, content = shown["orbit"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).width > 0
    assert PROMPT not in shown["result"] + "".join(str(artifact.description) for artifact in found)  # escaped
    assert all(name in shown["result"] for name in made.metrics)
    assert f"redream rerun {made.run_id} --from" in shown["result"]


def test_second_identical_run_computes_nothing(made: Made, world: World, out: Path, tracking_uri: str) -> None:
    again = generate(PROMPT, preset="smoke", seed=3, index=world.index, settings=world.settings, out=str(out))
    assert again.stages == dict.fromkeys(STAGES, "cached")
    assert again.metrics == made.metrics
    assert again.run_id != made.run_id
    assert Path(again.mesh).read_bytes() == Path(made.mesh).read_bytes()
    note = MlflowClient(tracking_uri).get_run(again.mlflow_run_id).data.tags["mlflow.note.content"]
    (compared,) = re.findall(r"\[Compare with another run of this prompt\]\(#/compare-runs\?runs=(\S+)&", note)
    assert json.loads(unquote(compared)) == [made.mlflow_run_id, again.mlflow_run_id]


def test_changed_setting_computes_only_what_depends_on_it(made: Made, world: World, out: Path) -> None:
    settings = {**world.settings, "evaluation.elevation_deg": 20.0}
    changed = generate(PROMPT, preset="smoke", seed=3, index=world.index, settings=settings, out=str(out))
    computed = {name for name, state in changed.stages.items() if state == "computed"}
    assert computed == {"evaluate", "export"}


def test_a_prompt_that_no_asset_fits_goes_on_as_vsd(world: World, out: Path) -> None:
    settings = {**world.settings, "retrieval.take_weak": False}
    alone = generate("a grand piano", preset="smoke", index=world.index, settings=settings, out=str(out))
    assert set(alone.stages) == {"retrieve", "distill", "evaluate", "export"}
    assert alone.neighbors == []
    vsd = generate("a grand piano", preset="smoke", method="vsd", settings=settings, out=str(out))
    assert Path(vsd.mesh).read_bytes() == Path(alone.mesh).read_bytes()
    assert vsd.stages["distill"] == "cached"


def test_only_what_fits_is_taken_and_what_was_chosen_always(world: World, out: Path) -> None:
    settings = {**world.settings, "retrieval.take_weak": False}
    fitting = generate("a red box", preset="smoke", index=world.index, settings=settings, out=str(out))
    assert [neighbor["asset"]["asset_id"] for neighbor in fitting.neighbors] == ["box"]
    settings |= {"retrieval.use": ["pipe", "ball"]}
    chosen = generate("a red box", preset="smoke", index=world.index, settings=settings, out=str(out))
    assert [neighbor["asset"]["asset_id"] for neighbor in chosen.neighbors] == ["pipe", "ball"]


def test_methods_without_retrieval_skip_its_stages(made: Made, world: World, out: Path) -> None:
    sds = generate(PROMPT, preset="smoke", method="sds", settings=world.settings, out=str(out))
    assert set(sds.stages) == {"distill", "evaluate", "export"}
    assert sds.neighbors == []


def test_own_mesh_takes_the_place_of_retrieval(made: Made, world: World, out: Path) -> None:
    own = generate(PROMPT, preset="smoke", assets=[world.meshes["pipe"]], settings=world.settings, out=str(out))
    assert list(own.stages)[0] == "take_assets"
    assert [neighbor["asset"]["license"] for neighbor in own.neighbors] == ["the user's own"]


def test_finished_run_can_be_measured_again(made: Made, world: World, out: Path) -> None:
    measured = evaluate_runs([made.run_id], {"evaluation.num_views": 4}, str(out))
    assert set(measured[made.run_id]["metrics"]) == set(made.metrics)
    assert measured[made.run_id]["reports"][0]["num_views"] == 4


def test_rerun_from_a_stage_makes_it_and_its_dependents_anew(made: Made, out: Path, tracking_uri: str) -> None:
    again = rerun(made.run_id, "evaluate", {}, str(out))
    assert again.stages == {**dict.fromkeys(STAGES, "cached"), "evaluate": "computed"}
    assert again.metrics == made.metrics
    tags = MlflowClient(tracking_uri).get_run(again.mlflow_run_id).data.tags
    assert (tags["redream.rerun_of"], tags["redream.rerun_of_mlflow_run"]) == (made.run_id, made.mlflow_run_id)
    once_more = rerun(made.run_id, "export", {"evaluation.num_views": 5}, str(out))
    assert once_more.stages == {**dict.fromkeys(STAGES, "cached"), "evaluate": "computed", "export": "computed"}
    assert read_run(out, once_more.run_id)["request"]["settings"]["evaluation.num_views"] == 5


def test_rerun_of_a_failed_run_takes_up_where_it_failed(world: World, out: Path) -> None:
    settings = {**world.settings, "export.density_threshold": 1e9}
    with pytest.raises(ValueError, match="the field is empty"):
        generate(PROMPT, preset="smoke", seed=3, index=world.index, settings=settings, out=str(out))
    failed = list_runs(out)[-1]
    assert first_unfinished(failed) == "export"
    mended = rerun(failed["run_id"], "", {"export.density_threshold": 1.0}, str(out))
    assert mended.stages == dict.fromkeys(STAGES, "cached")
    assert read_run(out, mended.run_id)["rerun_of"] == failed["run_id"]


def test_result_is_json(made: Made) -> None:
    assert Made(**json.loads(json.dumps(asdict(made)))) == made


def test_failure_is_recorded_and_raised_as_it_is(world: World, out: Path) -> None:
    settings = {**world.settings, "export.density_threshold": 1e9}
    with pytest.raises(ValueError, match="the field is empty"):
        generate(PROMPT, preset="smoke", seed=3, index=world.index, settings=settings, out=str(out))
    last = list_runs(out)[-1]
    assert last["state"] == "failed"
    assert last["stages"]["export"]["state"] == "failed"
    assert "the field is empty" in last["error"]
