"""An index built from real meshes, and what a build that ends early leaves behind."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from index_build.build import IndexStep, build_index
from redream.assets import Asset, AssetError
from redream.clip import Clip
from redream.config import RetrievalConfig
from redream.retrieval import AssetIndex

CONFIG = RetrievalConfig(num_index_views=2, num_recall=3, num_assets=1)


def build(assets: list[Asset], clip: Clip, out_dir: Path) -> list[IndexStep]:
    return list(build_index(assets, clip, CONFIG, out_dir))


def test_a_built_index_opens_and_finds_every_asset_by_its_caption(assets: list[Asset], clip: Clip, tmp_path: Path):
    steps = build(assets, clip, tmp_path / "index")
    assert [(step.done, step.total, step.asset_id) for step in steps] == [(1, 3, "box"), (2, 3, "ball"), (3, 3, "pipe")]
    index = AssetIndex.open(tmp_path / "index", clip)
    assert index.manifest == steps[-1].manifest
    assert [step.manifest for step in steps[:-1]] == [None, None]
    assert index.assets == assets
    for asset in assets:
        neighbor = index.search(asset.caption, 1, 1).neighbors[0]
        assert neighbor.asset == asset and neighbor.text_score == pytest.approx(1, abs=1e-5)


def test_the_same_assets_give_the_same_content_wherever_they_are_built(assets: list[Asset], clip: Clip, tmp_path: Path):
    first = build(assets, clip, tmp_path / "one")[-1].manifest
    (tmp_path / "catalog").rename(tmp_path / "moved")
    moved = [replace(asset, mesh_path=asset.mesh_path.replace("/catalog/", "/moved/")) for asset in assets]
    second = build(moved, clip, tmp_path / "deeper" / "two")[-1].manifest
    assert first is not None and second is not None
    assert first.content_hash == second.content_hash
    other = build([replace(moved[0], caption="something else"), *moved[1:]], clip, tmp_path / "three")[-1].manifest
    assert other is not None and other.content_hash != first.content_hash


def test_a_build_that_is_stopped_leaves_nothing(assets: list[Asset], clip: Clip, tmp_path: Path):
    before = sorted(tmp_path.iterdir())
    steps = build_index(assets, clip, CONFIG, tmp_path / "index")
    next(steps)
    next(steps)
    assert isinstance(steps, Generator)
    steps.close()
    assert sorted(tmp_path.iterdir()) == before


def test_a_mesh_that_cannot_be_read_stops_the_build_by_its_name(assets: list[Asset], clip: Clip, tmp_path: Path):
    Path(assets[2].mesh_path).write_bytes(b"no mesh")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AssetError, match=r"pipe\.glb"):
        build(assets, clip, tmp_path / "index")
    assert sorted(tmp_path.iterdir()) == before


def test_an_index_is_never_written_over_something_else(assets: list[Asset], clip: Clip, tmp_path: Path):
    (tmp_path / "index").mkdir()
    build(assets, clip, tmp_path / "index")  # an empty folder is as good as none
    with pytest.raises(ValueError, match="not empty"):
        build(assets, clip, tmp_path / "index")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        build(assets, clip, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_no_assets_and_assets_with_one_name_are_refused(assets: list[Asset], clip: Clip, tmp_path: Path):
    with pytest.raises(ValueError, match="at least one"):
        build([], clip, tmp_path / "index")
    with pytest.raises(ValueError, match="asset_id"):
        build([assets[0], assets[0]], clip, tmp_path / "index")
