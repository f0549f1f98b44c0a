"""The index of a folder through the flow and the command: built, brought up to date, examined, searched, tracked."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import trimesh
from mlflow.tracking import MlflowClient
from prefect.task_runners import TaskRunner

from flows.build_index import build_index, default_index, task_runner
from flows.command.app import app
from redream.retrieval.index_files import read_manifest
from tasks.indexing import IndexPlace
from tests.flows.command.test_app import redream
from tests.flows.conftest import save_meshes
from tests.redream.conftest import save_tiny_clip

pytestmark = pytest.mark.usefixtures("tracking_uri")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", 0)


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    save_meshes(tmp_path / "meshes")
    (tmp_path / "captions.csv").write_text("uid,caption\nbox,a grey box\nball,a round ball\npipe,a long pipe\n")
    return tmp_path / "meshes"


def settings(clip_folder: Path) -> dict[str, object]:
    return {"retrieval.clip_model": str(clip_folder), "retrieval.num_index_views": 2, "retrieval.assets_per_shard": 2}


def build(meshes: Path, clip_folder: Path) -> IndexPlace:
    out = meshes.parent / "out"
    return build_index(catalog=str(meshes), preset="smoke", settings=settings(clip_folder), out=str(out))


def test_a_folder_is_indexed_below_the_output_folder_and_kept_up_to_date(meshes: Path, clip_folder: Path) -> None:
    place = build(meshes, clip_folder)
    assert place.index_dir == str(default_index(meshes.parent / "out", str(meshes)))
    assert (place.num_assets, place.asset_root) == (3, str(meshes))
    trimesh.creation.cone(1.0, 2.0).export(meshes / "cone.glb")
    again = build(meshes, clip_folder)
    assert (again.num_assets, again.index_dir) == (4, place.index_dir)
    assert again.content_hash != place.content_hash
    assert not Path(place.index_dir, "building").exists()


def test_figures_of_the_build_and_the_recall_report_are_in_mlflow(
    meshes: Path, clip_folder: Path, tracking_uri: str
) -> None:
    build(meshes, clip_folder)
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("redream")
    assert experiment is not None
    run = next(run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == "index")
    assert run.data.metrics["index/num_assets"] == run.data.metrics["index/num_embedded"] == 3
    assert run.data.metrics["index/text_recall"] == 1.0
    assert run.data.metrics["index/assets_per_second"] > 0
    assert run.data.params["catalog"] == str(meshes)
    assert "index_check.json" in [file.path for file in client.list_artifacts(run.info.run_id)]


def test_the_command_examines_and_searches_what_it_built(
    meshes: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build(meshes, clip_folder).index_dir
    common = ["--preset", "smoke", "--set", f"retrieval.clip_model={clip_folder}", "--json"]
    code, out, _ = redream(["index", "info", index, "--json"], capsys, monkeypatch)
    assert code == 0 and json.loads(out)["num_assets"] == 3
    assert redream(["index", "info", index], capsys, monkeypatch)[0] == 0
    code, out, _ = redream(["index", "check", index, *common], capsys, monkeypatch)
    assert code == 0 and json.loads(out)["text_recall"] == 1.0
    found = ["search", "ball", "--index", index, "--top-k", "3", "--out", str(meshes.parent / "out"), *common]
    neighbors = json.loads(redream(found, capsys, monkeypatch)[1])["neighbors"]
    assert [neighbor["asset"]["asset_id"] for neighbor in neighbors] == ["ball.glb"]  # the others share no word
    code, out, err = redream([*found, "--license", "cc0"], capsys, monkeypatch)
    assert (code, out) == (2, "") and "licensed under cc0" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "--catalog", "absent"], "folder of meshes"),
        (["build", "--license", "free"], "unknown licence"),
        (["build", "--renders", "x"], "leave the options"),
        (["build", "--catalog", ".", "--runner", "spark"], "unknown runner"),
        (["info", "."], "no manifest"),
        (["check", "."], "no index there"),
    ],
)
def test_mistakes_cost_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = redream(["index", *arguments], capsys, monkeypatch)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]


def test_a_runner_whose_packages_are_missing_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(ValueError, match=r"redream\[dask\]"):
        task_runner("dask")


@pytest.mark.timeout(900)
def test_a_build_on_dask_outlives_a_worker_that_is_killed_in_minutes(meshes: Path, clip_folder: Path) -> None:
    pytest.importorskip("prefect_dask", reason="the extra `dask` is not installed")
    import distributed  # pyright: ignore[reportMissingImports]  # an extra

    add_boxes(meshes)
    local_cluster: Any = distributed.LocalCluster  # its types know no `dashboard_address=None`
    with local_cluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        victim = next(iter(cluster.workers.values()))
        place = build_and_kill(meshes, clip_folder, task_runner("dask", cluster.scheduler_address), lambda: victim.pid)
    assert place.num_assets == 23
    assert read_manifest(place.index_dir).num_refused == 0


@pytest.mark.timeout(900)
def test_a_build_on_ray_outlives_a_worker_that_is_killed_in_minutes(
    meshes: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prefect_ray", reason="the extra `ray` is not installed")
    import ray  # pyright: ignore[reportMissingImports]  # an extra

    add_boxes(meshes)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level=logging.ERROR)
    try:
        place = build_and_kill(meshes, clip_folder, task_runner("ray"), busy_ray_worker)
    finally:
        ray.shutdown()
    assert place.num_assets == 23
    assert read_manifest(place.index_dir).num_refused == 0


def add_boxes(meshes: Path) -> None:
    for number in range(20):
        trimesh.creation.box((1, 1, 1 + number)).export(meshes / f"box {number}.glb")


def build_and_kill(
    meshes: Path, clip_folder: Path, runner: TaskRunner[Any], find_victim: Callable[[], int]
) -> IndexPlace:
    """Build with a runner and kill one of its workers half-way; the build must not be over before that."""
    out = meshes.parent / "out"
    shards = default_index(out, str(meshes)) / "building" / "shards"
    killed = threading.Event()

    def kill_half_way() -> None:
        while len(list(shards.glob("*.safetensors"))) < 4:
            time.sleep(0.05)
        os.kill(find_victim(), signal.SIGKILL)
        assert len(list(shards.glob("*.safetensors"))) < 12
        killed.set()

    killer = threading.Thread(target=kill_half_way, daemon=True)
    killer.start()
    flow = build_index.with_options(task_runner=runner)
    place = flow(catalog=str(meshes), preset="smoke", settings=settings(clip_folder), out=str(out))
    killer.join(timeout=10)
    assert killed.is_set()
    return place


def busy_ray_worker() -> int:
    """Return a worker of this process's own Ray cluster that has a shard in hand; Ray names processes by their task."""
    while True:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.cmdline()[0].startswith("ray::embed_shard"):
                    return process.pid
        time.sleep(0.01)


def test_help_of_the_index_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert app is not None
    _, out, _ = redream(["index", "--help"], capsys, monkeypatch)
    for command in ("build", "info", "check"):
        assert command in out
