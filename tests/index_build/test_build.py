"""An index built from real meshes: what is made again and what is not, and what a build that ends early leaves."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from index_build import build as build_module
from index_build.build import IndexStep, assemble, build_index, embed_shard, plan_build
from index_build.download import DownloadError
from index_build.views import RenderedViews
from redream.clip import Clip
from redream.records import Asset
from redream.retrieval.index import AssetIndex
from redream.retrieval.index_files import REFUSED_SCHEMA, IndexManifest, read_manifest, read_table
from redream.settings import RetrievalConfig
from tests.index_build.conftest import catalog_of

CONFIG = RetrievalConfig(num_index_views=2, num_recall=3, num_assets=1, assets_per_shard=2)


class CountedViews(RenderedViews):
    """Own renders that remember whose they were."""

    def __init__(self) -> None:
        super().__init__(CONFIG.num_index_views, 16, self.count)
        self.rendered: list[str] = []

    def count(self, mesh_path: str) -> Path:
        self.rendered.append(Path(mesh_path).stem)
        return Path(mesh_path)


def build(assets: list[Asset], clip: Clip, index_dir: Path) -> tuple[list[IndexStep], list[str]]:
    """Build an index and return its steps and the assets that were rendered for it."""
    views = CountedViews()
    return list(build_index(catalog_of(assets), clip, CONFIG, views, index_dir)), views.rendered


def listed(index: AssetIndex) -> list[Asset]:
    """Return an index's assets as a catalog has them; where their pictures may be follows from the index."""
    return [replace(asset, border="") for asset in index.assets]


def manifest_of(steps: list[IndexStep]) -> IndexManifest:
    manifest = steps[-1].manifest
    assert manifest is not None
    return manifest


def test_a_built_index_opens_and_finds_every_asset_by_its_caption(assets: list[Asset], clip: Clip, tmp_path: Path):
    steps, _ = build(assets, clip, tmp_path / "index")
    assert [(step.done, step.total, step.asset_id) for step in steps] == [(1, 3, "box"), (2, 3, "ball"), (3, 3, "pipe")]
    index = AssetIndex.open(tmp_path / "index", clip)
    assert index.manifest == steps[-1].manifest
    assert [step.manifest for step in steps[:-1]] == [None, None]
    assert listed(index) == assets
    for asset in assets:
        neighbor = index.search(asset.caption, 1, 1).neighbors[0]
        assert replace(neighbor.asset, border="") == asset and neighbor.text_score == pytest.approx(1, abs=2e-3)


def test_the_same_assets_give_the_same_content_wherever_they_are_built(assets: list[Asset], clip: Clip, tmp_path: Path):
    first = manifest_of(build(assets, clip, tmp_path / "one")[0])
    (tmp_path / "catalog").rename(tmp_path / "moved")
    moved = [replace(asset, mesh_path=asset.mesh_path.replace("/catalog/", "/moved/")) for asset in assets]
    second = manifest_of(build(moved, clip, tmp_path / "deeper" / "two")[0])
    assert first.content_hash == second.content_hash
    other = manifest_of(build([replace(moved[0], caption="something else"), *moved[1:]], clip, tmp_path / "three")[0])
    assert other.content_hash != first.content_hash


def test_a_changed_folder_renders_only_what_changed(assets: list[Asset], clip: Clip, tmp_path: Path):
    steps, rendered = build(assets, clip, tmp_path / "index")
    assert rendered == ["box", "ball", "pipe"]
    before = AssetIndex.open(tmp_path / "index", clip)
    trimesh.creation.icosphere(2).export(assets[1].mesh_path)
    cone = tmp_path / "catalog" / "assets" / "cone.glb"
    trimesh.creation.cone(1.0, 2.0).export(cone)
    changed = [*assets[:2], replace(assets[0], asset_id="cone", mesh_path=str(cone), caption="a grey cone")]
    _, rendered = build(changed, clip, tmp_path / "index")
    assert sorted(rendered) == ["ball", "cone"]
    index = AssetIndex.open(tmp_path / "index", clip)
    assert listed(index) == changed
    np.testing.assert_array_equal(index.pictures.of([0]), before.pictures.of([0]))
    fresh = AssetIndex.open(manifest_of(build(changed, clip, tmp_path / "fresh")[0]).index_dir, clip)
    assert index.manifest.content_hash == fresh.manifest.content_hash
    assert build(changed, clip, tmp_path / "index")[1] == []


def test_other_settings_render_everything_again(assets: list[Asset], clip: Clip, tmp_path: Path):
    build(assets, clip, tmp_path / "index")
    views = RenderedViews(3, 16)
    plan = plan_build(catalog_of(assets), clip, CONFIG, views, tmp_path / "index")
    assert plan.num_pending == 3
    kept = replace(CONFIG, views="each")
    steps = list(build_index(catalog_of(assets), clip, kept, views, tmp_path / "index"))
    assert manifest_of(steps).num_views == 3
    assert AssetIndex.open(tmp_path / "index", clip).pictures.of([0, 1, 2]).shape == (3, 3, 8)


def test_a_build_that_is_stopped_goes_on_from_its_finished_shards(assets: list[Asset], clip: Clip, tmp_path: Path):
    single = replace(CONFIG, assets_per_shard=1)
    steps = build_index(catalog_of(assets), clip, single, CountedViews(), tmp_path / "index")
    next(steps)
    next(steps)  # the first shard is written, the second is not
    assert isinstance(steps, Generator)
    steps.close()
    assert not (tmp_path / "index" / "manifest.json").exists()
    _, rendered = build(assets, clip, tmp_path / "index")
    assert rendered == ["ball", "pipe"]
    assert not (tmp_path / "index" / "building").exists()


def test_a_shard_that_was_damaged_is_made_again_and_no_other(assets: list[Asset], clip: Clip, tmp_path: Path):
    views = CountedViews()
    plan = plan_build(catalog_of(assets), clip, CONFIG, views, tmp_path / "index")
    for number in range(plan.num_shards):
        list(embed_shard(plan, number, clip, views))
    damaged = plan.shard_path(plan.shard(1)[1])
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no finished shard"):
        assemble(plan)
    _, rendered = build(assets, clip, tmp_path / "index")
    assert rendered == ["pipe"]


def test_finished_shards_count_after_the_catalog_changed(assets: list[Asset], clip: Clip, tmp_path: Path):
    views = CountedViews()
    plan = plan_build(catalog_of(assets), clip, CONFIG, views, tmp_path / "index")
    list(embed_shard(plan, 0, clip, views))
    _, rendered = build(assets[::-1], clip, tmp_path / "index")
    assert rendered == ["pipe"]


def test_a_shard_that_is_there_is_not_made_again(assets: list[Asset], clip: Clip, tmp_path: Path):
    views = CountedViews()
    plan = plan_build(catalog_of(assets), clip, CONFIG, views, tmp_path / "index")
    for _ in range(2):
        assert list(embed_shard(plan, 0, clip, views)) == ["box", "ball"]
    assert views.rendered == ["box", "ball"]


def test_a_mesh_that_cannot_be_read_is_left_out_with_the_reason(assets: list[Asset], clip: Clip, tmp_path: Path):
    Path(assets[2].mesh_path).write_bytes(b"no mesh")
    manifest = manifest_of(build(assets, clip, tmp_path / "index")[0])
    assert (manifest.num_assets, manifest.num_refused) == (2, 1)
    (refused,) = read_table(manifest.folder / "refused.arrow", REFUSED_SCHEMA).to_pylist()
    assert refused["asset_id"] == "pipe" and "pipe.glb" in refused["reason"]
    assert build(assets, clip, tmp_path / "index")[1] == []  # nor is it tried again until it changes
    trimesh.creation.box().export(assets[2].mesh_path)
    assert build(assets, clip, tmp_path / "index")[1] == ["pipe"]


def test_where_no_mesh_can_be_read_there_is_no_index(assets: list[Asset], clip: Clip, tmp_path: Path):
    for asset in assets:
        Path(asset.mesh_path).write_bytes(b"no mesh")
    with pytest.raises(ValueError, match=r"none of the 3.*box\.glb"):
        build(assets, clip, tmp_path / "index")
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_an_update_that_fails_leaves_the_index_as_it_was(
    assets: list[Asset], clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = manifest_of(build(assets, clip, tmp_path / "index")[0])

    def fail(*arguments: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(build_module, "train_recall", fail)
    with pytest.raises(OSError, match="disk full"):
        build(assets[:2], clip, tmp_path / "index")
    assert read_manifest(tmp_path / "index") == before
    assert listed(AssetIndex.open(tmp_path / "index", clip)) == assets


def test_a_damaged_index_is_built_anew(assets: list[Asset], clip: Clip, tmp_path: Path):
    manifest = manifest_of(build(assets, clip, tmp_path / "index")[0])
    (manifest.folder / "text.npy").write_bytes(b"")
    assert build(assets, clip, tmp_path / "index")[1] == ["box", "ball", "pipe"]
    assert len(AssetIndex.open(tmp_path / "index", clip).assets) == 3


def test_assets_that_share_mesh_and_caption_are_embedded_once(assets: list[Asset], clip: Clip, tmp_path: Path):
    twins = [assets[0], replace(assets[0], asset_id="twin")]
    _, rendered = build(twins, clip, tmp_path / "index")
    index = AssetIndex.open(tmp_path / "index", clip)
    assert rendered == ["box"] and listed(index) == twins
    np.testing.assert_array_equal(index.text_vectors[0], index.text_vectors[1])


def test_an_index_is_never_written_over_something_else(assets: list[Asset], clip: Clip, tmp_path: Path):
    (tmp_path / "index").mkdir()
    build(assets, clip, tmp_path / "index")  # an empty folder is as good as none
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        build(assets, clip, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ValueError, match="not empty"):
        build(assets, clip, tmp_path / "catalog")


def test_no_assets_and_assets_with_one_name_are_refused(assets: list[Asset], clip: Clip, tmp_path: Path):
    with pytest.raises(ValueError, match="at least one"):
        build([], clip, tmp_path / "index")
    with pytest.raises(ValueError, match="asset_id"):
        build([assets[0], assets[0]], clip, tmp_path / "index")


def test_an_index_and_its_folder_may_be_removed_together(assets: list[Asset], clip: Clip, tmp_path: Path):
    build(assets, clip, tmp_path / "index")
    shutil.rmtree(tmp_path / "index")
    assert build(assets, clip, tmp_path / "index")[1] == ["box", "ball", "pipe"]


class UnsteadyViews(CountedViews):
    """Own renders behind a network that fails for one object, as long as it is down."""

    is_down = True

    def count(self, mesh_path: str) -> Path:
        if self.is_down and mesh_path.endswith("ball.glb"):
            raise DownloadError("ball.glb: no answer")
        return super().count(mesh_path)


def test_an_object_that_could_not_be_downloaded_is_tried_again(assets: list[Asset], clip: Clip, tmp_path: Path):
    views = UnsteadyViews()
    steps = list(build_index(catalog_of(assets), clip, CONFIG, views, tmp_path / "index"))
    assert (manifest_of(steps).num_assets, manifest_of(steps).num_refused) == (2, 1)
    views.is_down = False
    views.rendered.clear()
    steps = list(build_index(catalog_of(assets), clip, CONFIG, views, tmp_path / "index"))
    assert (manifest_of(steps).num_assets, manifest_of(steps).num_refused) == (3, 0)
    assert views.rendered == ["ball"]  # and nothing else is made again


def test_an_object_that_was_refused_for_what_it_is_stays_refused(assets: list[Asset], clip: Clip, tmp_path: Path):
    Path(assets[1].mesh_path).write_bytes(b"no mesh")
    steps, _ = build(assets, clip, tmp_path / "index")
    assert manifest_of(steps).num_refused == 1
    assert build(assets, clip, tmp_path / "index")[1] == []


def test_what_an_embedding_depends_on_is_in_its_key(assets: list[Asset], clip: Clip, tmp_path: Path):
    def keys(name: str, config: RetrievalConfig = CONFIG, num_views: int = 2, size: int = 16) -> list[str]:
        plan = plan_build(catalog_of(assets), clip, config, RenderedViews(num_views, size), tmp_path / name)
        return [key for number in range(plan.num_shards) for key in plan.shard(number)[1]]

    first = keys("one")
    assert keys("again") == first and len(set(first)) == 3
    others = [keys("each", replace(CONFIG, views="each")), keys("views", num_views=3), keys("size", size=24)]
    for other in others:
        assert not set(other) & set(first)
    assert keys("shards", replace(CONFIG, assets_per_shard=3)) == first
