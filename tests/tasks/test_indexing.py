"""The tasks of an index, called one by one: planned, embedded, assembled, tracked; one build at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import trimesh
from mlflow.tracking import MlflowClient

from redream.retrieval.index_files import read_manifest, write_manifest
from redream.settings import DownloadConfig, MeshLimits, RetrievalConfig
from tasks import indexing
from tasks.indexing import CatalogRequest, IndexPlace, build_lock, check, given_index
from tasks.retrieval import search
from tasks.runs.run import Run
from tasks.tracking.tracker import experiment_id
from tests.redream.conftest import save_tiny_clip


@pytest.fixture
def request_for(tmp_path: Path) -> CatalogRequest:
    (tmp_path / "meshes").mkdir()
    for name, mesh in {"red box": trimesh.creation.box(), "ball": trimesh.creation.icosphere(1)}.items():
        mesh.export(tmp_path / "meshes" / f"{name}.glb")
    config = RetrievalConfig(
        clip_model=str(save_tiny_clip(tmp_path / "clip", 0)),
        num_index_views=2,
        num_recall=2,
        num_assets=2,
        assets_per_shard=1,
    )
    return CatalogRequest(
        catalog=str(tmp_path / "meshes"),
        captions=None,
        licenses=(),
        renders="",
        has_pictures=True,
        index_dir=str(tmp_path / "indexes" / "mine"),
        cache_dir=str(tmp_path / "cache"),
        retrieval=config,
        download=DownloadConfig(),
        mesh=MeshLimits(),
    )


def build(run: Run, request: CatalogRequest) -> IndexPlace:
    plan = indexing.plan_index.fn(run, request)
    for number in range(plan.num_shards):
        assert indexing.embed_shard.fn(request, plan, number) == 1
    return indexing.assemble_index.fn(run, request, plan, 1.0)


def test_a_folder_becomes_an_index_that_is_searched_checked_and_tracked(run: Run, request_for: CatalogRequest) -> None:
    place = build(run, request_for)
    assert (place.index_dir, place.num_assets) == (request_for.index_dir, 2)
    found = search(place, "ball", request_for.retrieval)
    assert {neighbor.asset.caption for neighbor in found.neighbors} == {"ball"}
    assert check(place.index_dir, request_for.retrieval.clip_model, 10).text_recall == 1.0
    client = MlflowClient(run.tracking.uri)
    tracked = next(r for r in client.search_runs([experiment_id(run.tracking)]) if r.info.run_name == "index")
    assert tracked.data.metrics["index/num_embedded"] == 2 and tracked.data.metrics["index/cross_recall"] == 1.0
    report = json.loads(Path(client.download_artifacts(tracked.info.run_id, "index_check.json")).read_text())
    assert report["num_missing"] == report["num_orphaned"] == 0


def test_an_index_of_a_changed_folder_is_brought_up_to_date(run: Run, request_for: CatalogRequest) -> None:
    build(run, request_for)
    trimesh.creation.cone(1.0, 2.0).export(Path(request_for.catalog) / "cone.glb")
    plan = indexing.plan_index.fn(run, request_for)
    assert (plan.num_assets, plan.num_pending, plan.num_shards) == (3, 1, 1)
    assert build(run, request_for).num_assets == 3
    assert read_manifest(request_for.index_dir).num_refused == 0


def test_mesh_limits_reach_the_build_and_raised_ones_open_what_was_refused(
    run: Run, request_for: CatalogRequest
) -> None:
    build(run, replace(request_for, mesh=MeshLimits(triangles=12)))
    assert read_manifest(request_for.index_dir).num_refused == 1  # the ball has 80
    plan = indexing.plan_index.fn(run, request_for)
    assert (plan.num_assets, plan.num_pending) == (2, 1)
    build(run, request_for)
    assert read_manifest(request_for.index_dir).num_refused == 0


def test_an_index_with_a_relative_asset_root_moves_with_its_assets(
    run: Run, request_for: CatalogRequest, tmp_path: Path
) -> None:
    place = build(run, request_for)
    write_manifest(replace(read_manifest(place.index_dir), asset_root="../../meshes"))
    for name in ("meshes", "indexes"):
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = given_index(str(tmp_path / "moved" / "indexes" / "mine"))
    assert (moved.asset_root, moved.content_hash) == (str(tmp_path / "moved" / "meshes"), place.content_hash)
    found = search(moved, "ball", request_for.retrieval)
    assert all(Path(neighbor.asset.mesh_path).is_file() for neighbor in found.neighbors)
    assert check(moved.index_dir, request_for.retrieval.clip_model, 10).num_missing == 0


def test_the_miniature_s_own_index_can_be_named_like_any_other_and_its_store_moved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "VARIANTS_PER_PAIR", 1)
    config = RetrievalConfig(clip_model="mini:clip-retrieval", num_index_views=1)
    made = indexing.built_index(indexing.index_miniature.fn(run, config))
    assert given_index(made.index_dir) == made
    client = MlflowClient(run.tracking.uri)
    tracked = next(r for r in client.search_runs([experiment_id(run.tracking)]) if r.info.run_name == "index")
    assert tracked.data.metrics["index/text_recall"] == tracked.data.metrics["index/cross_recall"] == 1.0
    assert "index_check.json" in {entry.path for entry in client.list_artifacts(tracked.info.run_id)}
    moved = (tmp_path / "moved").resolve()
    Path(run.out, "store").rename(moved)
    named = given_index(str(moved / Path(made.index_dir).relative_to(Path(run.out, "store"))))
    assert named.content_hash == made.content_hash
    for neighbor in search(named, "a turquoise robot", config).neighbors:
        assert Path(neighbor.asset.mesh_path).is_file()
        assert Path(neighbor.asset.mesh_path).is_relative_to(moved)


def test_a_licence_filter_that_leaves_nothing_says_so(run: Run, request_for: CatalogRequest) -> None:
    place = build(run, request_for)
    with pytest.raises(ValueError, match="licensed under cc0"):
        search(place, "ball", replace(request_for.retrieval, licenses=("cc0",)))
    with pytest.raises(ValueError, match="unknown licence"):
        search(place, "ball", replace(request_for.retrieval, licenses=("free",)))


def test_one_index_is_built_by_one_build_at_a_time(tmp_path: Path) -> None:
    index_dir = str(tmp_path / "deep" / "index")
    with build_lock(index_dir), pytest.raises(ValueError, match="another build"), build_lock(index_dir):
        pass
    with build_lock(index_dir):
        pass
