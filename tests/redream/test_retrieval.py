"""Laws of the index: on planted vectors for the search, on a tiny random CLIP for opening and refusing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from redream.assets import Asset
from redream.clip import Clip
from redream.retrieval import (
    AssetIndex,
    IndexManifest,
    IndexMismatch,
    content_hash,
    read_manifest,
    text_recall,
    write_assets,
    write_manifest,
)

NUM_ASSETS = 40


@pytest.fixture(scope="module")
def clip(tiny_clip_folder: Path) -> Clip:
    return Clip(str(tiny_clip_folder))


@pytest.fixture
def numpy_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ScaNN as absent as on a machine that it has no wheel for."""
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)


def unit_rows(seed: int, num: int = NUM_ASSETS, dim: int = 8) -> Float[np.ndarray, "num dim"]:
    rows = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some_assets(num: int = NUM_ASSETS, root: str = "meshes") -> list[Asset]:
    return [
        Asset(asset_id=f"id{i}", mesh_path=f"{root}/{i}.glb", caption=f"thing {i}", source="test", license="CC0")
        for i in range(num)
    ]


def index_of(text: np.ndarray, image: np.ndarray, clip: Clip) -> AssetIndex:
    manifest = IndexManifest(
        index_dir="",
        clip_model=clip.identity,
        embedding_dim=text.shape[1],
        num_assets=len(text),
        content_hash="",
        asset_root="",
    )
    return AssetIndex(manifest, some_assets(len(text)), text, image, clip)


def write_tiny_index(folder: Path, clip: Clip) -> Path:
    (folder / "catalog").mkdir(parents=True)
    index_dir = folder / "index"
    index_dir.mkdir()
    write_assets(index_dir / "assets.jsonl", some_assets(root=str(folder / "catalog")), folder / "catalog")
    save_file({"text": unit_rows(1), "image": unit_rows(2)}, index_dir / "embeddings.safetensors")
    write_manifest(
        index_dir / "manifest.json",
        IndexManifest(
            index_dir=str(index_dir),
            clip_model=clip.identity,
            embedding_dim=8,
            num_assets=NUM_ASSETS,
            content_hash=content_hash(index_dir),
            asset_root=str(folder / "catalog"),
        ),
    )
    return index_dir


def test_an_indexed_vector_is_its_own_nearest_neighbor(clip: Clip):
    rows = unit_rows(0)
    index = index_of(rows, rows, clip)
    for i, row in enumerate(rows):
        neighbor = index.nearest(row, 5, 1)[0]
        assert neighbor.asset.asset_id == f"id{i}"
        assert neighbor.score == pytest.approx(1, abs=1e-5) and neighbor.text_score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("num_recall", [1, 3, 10, NUM_ASSETS, 1000])
def test_image_rerank_orders_what_text_recall_found_by_exact_cosine(clip: Clip, num_recall: int):
    text, image, query = unit_rows(1), unit_rows(2), unit_rows(3, num=1)[0]
    neighbors = index_of(text, image, clip).nearest(query, num_recall, num_recall)
    recalled = np.argsort(-(text @ query), kind="stable")[:num_recall]
    expected = sorted(recalled, key=lambda i: -float(image[i] @ query))
    assert [n.asset.asset_id for n in neighbors] == [f"id{i}" for i in expected]
    np.testing.assert_allclose([n.score for n in neighbors], image[expected] @ query, atol=1e-6)
    np.testing.assert_allclose([n.text_score for n in neighbors], text[expected] @ query, atol=1e-6)


def test_an_asset_that_text_recall_leaves_out_cannot_be_found_by_its_renders(clip: Clip):
    query = unit_rows(3, num=1)[0]
    text, image = unit_rows(1), unit_rows(2)
    last = int(np.argmin(text @ query))
    image[last] = query
    index = index_of(text, image, clip)
    found = [n.asset.asset_id for n in index.nearest(query, NUM_ASSETS - 1, 5)]
    assert f"id{last}" not in found
    assert index.nearest(query, NUM_ASSETS, 1)[0].asset.asset_id == f"id{last}"


def test_fewer_neighbors_are_the_first_of_more(clip: Clip):
    index, query = index_of(unit_rows(1), unit_rows(2), clip), unit_rows(3, num=1)[0]
    assert index.nearest(query, 20, 3) == index.nearest(query, 20, 10)[:3]


@pytest.mark.parametrize("num", [1, 2, 17, 500])
def test_scann_finds_what_exact_search_finds_in_small_sets(num: int, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("scann", reason="ScaNN has no wheel for this machine")
    rows, query = unit_rows(4, num=num, dim=24), unit_rows(5, num=1, dim=24)[0]
    by_scann, name = text_recall(rows)
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    by_numpy, _ = text_recall(rows)
    assert name == "scann-exhaustive"
    for k in {1, min(10, num), num}:
        np.testing.assert_array_equal(by_scann(query, k)[0], by_numpy(query, k)[0])
        np.testing.assert_allclose(by_scann(query, k)[1], by_numpy(query, k)[1], atol=1e-5)


def test_hashed_search_keeps_the_nearest_neighbors_of_large_sets(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("scann", reason="ScaNN has no wheel for this machine")
    monkeypatch.setattr("redream.retrieval.EXHAUSTIVE_UP_TO", 1000)
    rows = unit_rows(6, num=3000, dim=32)
    recall, name = text_recall(rows)
    assert name == "scann-ah"
    for query in unit_rows(7, num=20, dim=32):
        exact = np.argsort(-(rows @ query))[:50]
        assert len(set(recall(query, 50)[0]) & set(exact)) >= 48
        assert recall(query, 50)[0][0] == exact[0]


def test_without_scann_search_is_exact_and_says_so(clip: Clip, numpy_only: None, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        index = index_of(unit_rows(1), unit_rows(2), clip)
    assert index.backend == "numpy-exact"
    assert ["numpy" in record.message for record in caplog.records] == [True]


def test_equal_scores_keep_the_order_of_the_index(clip: Clip):
    rows = np.repeat(unit_rows(0, num=1), 6, axis=0)
    found = [n.asset.asset_id for n in index_of(rows, rows, clip).nearest(rows[0], 6, 6)]
    assert found == [f"id{i}" for i in range(6)]


def test_an_opened_index_answers_a_prompt_by_its_text_embedding(clip: Clip, tmp_path: Path):
    index = AssetIndex.open(write_tiny_index(tmp_path, clip), clip)
    query = clip.embed_text(["a red car"])[0].numpy()
    retrieval = index.search("a red car", 10, 3)
    assert retrieval.prompt == "a red car"
    assert retrieval.neighbors == index.nearest(query, 10, 3)
    best = max(range(NUM_ASSETS), key=lambda i: float(unit_rows(2)[i] @ query))
    assert index.search("a red car", NUM_ASSETS, 1).neighbors[0].asset.asset_id == f"id{best}"


def test_mesh_paths_start_from_the_catalog_or_from_where_it_lies_now(clip: Clip, tmp_path: Path):
    index_dir = write_tiny_index(tmp_path, clip)
    assert AssetIndex.open(index_dir, clip).assets[3].mesh_path == str(tmp_path / "catalog" / "3.glb")
    assert AssetIndex.open(index_dir, clip, asset_root="/other").assets[3].mesh_path == str(Path("/other/3.glb"))
    assert str(tmp_path) not in (index_dir / "assets.jsonl").read_text()


def test_an_index_may_move(clip: Clip, tmp_path: Path):
    index_dir = write_tiny_index(tmp_path, clip)
    shutil.move(index_dir, tmp_path / "moved")
    assert AssetIndex.open(tmp_path / "moved", clip).manifest.index_dir == str(tmp_path / "moved")


def test_an_index_of_another_clip_is_refused_and_both_are_named(clip: Clip, other_clip_folder: Path, tmp_path: Path):
    other = Clip(str(other_clip_folder))
    with pytest.raises(IndexMismatch) as refusal:
        AssetIndex.open(write_tiny_index(tmp_path, clip), other)
    assert clip.identity in str(refusal.value) and other.identity in str(refusal.value)


def edit_manifest(index_dir: Path, **changes: object) -> None:
    path = index_dir / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remove_manifest(index_dir: Path) -> None:
    (index_dir / "manifest.json").unlink()


def garble_manifest(index_dir: Path) -> None:
    (index_dir / "manifest.json").write_bytes(b'{"clip_model": \xff')


def use_other_format(index_dir: Path) -> None:
    edit_manifest(index_dir, format_version=99)


def use_list_as_manifest(index_dir: Path) -> None:
    (index_dir / "manifest.json").write_text("[]")


def drop_manifest_key(index_dir: Path) -> None:
    content = json.loads((index_dir / "manifest.json").read_text())
    del content["num_assets"]
    (index_dir / "manifest.json").write_text(json.dumps(content))


def drop_last_asset(index_dir: Path) -> None:
    lines = (index_dir / "assets.jsonl").read_text().splitlines(keepends=True)
    (index_dir / "assets.jsonl").write_text("".join(lines[:-1]))


def count_wrongly(index_dir: Path) -> None:
    drop_last_asset(index_dir)
    edit_manifest(index_dir, content_hash=content_hash(index_dir))


def lack_image_embeddings(index_dir: Path) -> None:
    path = index_dir / "embeddings.safetensors"
    save_file({"text": load_file(path)["text"]}, path)
    edit_manifest(index_dir, content_hash=content_hash(index_dir))


def cut_embeddings(index_dir: Path) -> None:
    os.truncate(index_dir / "embeddings.safetensors", 500)


def flip_one_bit(index_dir: Path) -> None:
    content = bytearray((index_dir / "embeddings.safetensors").read_bytes())
    content[-1] ^= 1
    (index_dir / "embeddings.safetensors").write_bytes(content)


def remove_embeddings(index_dir: Path) -> None:
    (index_dir / "embeddings.safetensors").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        remove_manifest,
        garble_manifest,
        use_other_format,
        use_list_as_manifest,
        drop_manifest_key,
        drop_last_asset,
        count_wrongly,
        lack_image_embeddings,
        cut_embeddings,
        flip_one_bit,
        remove_embeddings,
    ],
)
def test_a_damaged_index_is_refused_in_one_line_with_the_remedy(damage, clip: Clip, tmp_path: Path):
    index_dir = write_tiny_index(tmp_path, clip)
    AssetIndex.open(index_dir, clip)
    damage(index_dir)
    with pytest.raises(IndexMismatch, match="build") as refusal:
        AssetIndex.open(index_dir, clip)
    assert "\n" not in str(refusal.value) and str(index_dir) in str(refusal.value)


def test_a_manifest_reads_back_as_written(clip: Clip, tmp_path: Path):
    manifest = IndexManifest(
        index_dir=str(tmp_path),
        clip_model="m",
        embedding_dim=3,
        num_assets=2,
        content_hash="h",
        asset_root="r",
        settings={"a": 1.5},
        versions={"torch": "2"},
    )
    write_manifest(tmp_path / "manifest.json", manifest)
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(("prompt", "num_recall", "top_k"), [("  ", 5, 1), ("car", 5, 0), ("car", 2, 3)])
def test_a_search_that_makes_no_sense_is_refused(clip: Clip, prompt: str, num_recall: int, top_k: int):
    with pytest.raises(ValueError):
        index_of(unit_rows(1), unit_rows(2), clip).search(prompt, num_recall, top_k)


def test_exhaustive_search_prints_nothing(clip: Clip, capfd: pytest.CaptureFixture[str]):
    index_of(unit_rows(1), unit_rows(2), clip).nearest(unit_rows(1)[0], 5, 3)
    assert capfd.readouterr() == ("", "")


def test_equal_queries_get_equal_answers_after_reopening(clip: Clip, tmp_path: Path):
    index_dir = write_tiny_index(tmp_path, clip)
    first, second = (AssetIndex.open(index_dir, clip).search("an owl", 10, 5) for _ in range(2))
    assert first == second
    assert all(torch.isfinite(torch.tensor([n.score, n.text_score])).all() for n in first.neighbors)
