"""What a check of an index finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_build.build import build_index
from index_build.check import check_index, exact_neighbors
from index_build.views import RenderedViews
from redream.clip import Clip
from redream.records import Asset
from redream.retrieval import text_recall
from redream.retrieval.index import AssetIndex
from redream.retrieval.index_files import IndexMismatch
from redream.settings import RetrievalConfig
from tests.index_build.conftest import catalog_of
from tests.redream.conftest import some_assets, unit_rows, write_index


@pytest.fixture
def index(assets: list[Asset], clip: Clip, tmp_path: Path) -> AssetIndex:
    list(build_index(catalog_of(assets), clip, RetrievalConfig(), RenderedViews(2, 16), tmp_path / "index"))
    return AssetIndex.open(tmp_path / "index", clip)


def test_a_whole_index_finds_everything(index: AssetIndex):
    report = check_index(index)
    assert (report.num_assets, report.num_queries, report.num_neighbors) == (3, 3, 3)
    assert (report.text_recall, report.cross_recall, report.image_recall) == (1.0, 1.0, 1.0)
    assert (report.num_missing, report.num_orphaned) == (0, 0)


def test_meshes_without_assets_and_assets_without_meshes_are_named(index: AssetIndex, assets: list[Asset]):
    folder = Path(assets[0].mesh_path).parent
    (folder / "new.GLB").write_bytes(Path(assets[0].mesh_path).read_bytes())
    Path(assets[2].mesh_path).unlink()
    report = check_index(index)
    assert (report.missing, report.orphaned) == (("pipe.glb",), ("new.GLB",))


def test_one_wrong_byte_is_found(index: AssetIndex):
    path = index.manifest.folder / "image.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexMismatch, match=r"image\.npy"):
        check_index(index)


def test_recall_is_that_of_the_search(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("scann", reason="ScaNN has no wheel for this machine")
    monkeypatch.setattr(text_recall, "EXACT_UP_TO", 1000)
    rows, image = unit_rows(1, num=3000), unit_rows(2, num=3000)
    index = AssetIndex.open(write_index(tmp_path / "index", rows, image, clip, some_assets(3000)), clip)
    report = check_index(index, num_queries=20)
    assert index.backend == text_recall.SCANN
    assert 0.95 <= report.text_recall <= 1 and 0.95 <= report.cross_recall <= 1 and report.image_recall == 1
    monkeypatch.setattr(index, "_recall", lambda query, num: (np.arange(num), np.zeros(num)))
    assert check_index(index, num_queries=20).text_recall < 0.2


@pytest.mark.parametrize("num", [1, 7, 50])
def test_exact_neighbors_are_the_nearest(num: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_recall, "ROWS_PER_BLOCK", 16)
    rows, queries = unit_rows(1, num=50), unit_rows(3, num=4)
    found = exact_neighbors(rows, queries, num)
    for query, neighbors in zip(queries, found, strict=True):
        assert set(neighbors) == set(np.argsort(-(rows @ query))[:num])
