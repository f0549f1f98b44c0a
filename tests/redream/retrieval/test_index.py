"""Laws of the search: on planted vectors, and on a tiny random CLIP for prompts."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from redream.clip import Clip
from redream.records import Retrieval
from redream.retrieval.index import AssetIndex
from redream.retrieval.index_files import IndexMismatch, read_manifest
from tests.redream.conftest import NUM_ASSETS, some_assets, unit_rows, write_index, write_tiny_index


@pytest.fixture(scope="module")
def clip(tiny_clip_folder: Path) -> Clip:
    return Clip(str(tiny_clip_folder))


Make = Callable[[np.ndarray, np.ndarray], AssetIndex]


@pytest.fixture
def index_of(tmp_path: Path, clip: Clip) -> Make:
    numbers = itertools.count()

    def make(text: np.ndarray, image: np.ndarray) -> AssetIndex:
        assets = some_assets(len(text))
        return AssetIndex.open(write_index(tmp_path / str(next(numbers)), text, image, clip, assets), clip)

    return make


CAPTIONS = ["a white fridge", "a yellow taxi", "a red truck", "a red chair", "a red box", "a fish"]
CAPTIONS += ["a red truck with black wheels"]


@pytest.fixture
def worded(clip: Clip, tmp_path: Path) -> AssetIndex:
    """An index of these captions whose vectors say nothing."""
    assets = [replace(asset, caption=text) for asset, text in zip(some_assets(len(CAPTIONS)), CAPTIONS, strict=True)]
    rows = unit_rows(1, num=len(CAPTIONS)), unit_rows(2, num=len(CAPTIONS))
    index = AssetIndex.open(write_index(tmp_path / "worded", *rows, clip, assets), clip)
    index.calibration = replace(index.calibration, separation=0.0)
    return index


def named(retrieval: Retrieval) -> dict[str, bool]:
    """Return which assets were found and whether they are weak."""
    return {n.asset.asset_id: n.is_weak for n in retrieval.neighbors}


def test_an_indexed_vector_is_its_own_nearest_neighbor(index_of: Make):
    rows = unit_rows(0)
    index = index_of(rows, rows)
    for i, row in enumerate(rows):
        neighbor = index.nearest(row, 5, 1)[0]
        assert neighbor.asset.asset_id == f"id{i}"
        assert neighbor.score == pytest.approx(1, abs=2e-3) and neighbor.text_score == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("num_recall", [1, 3, 10, NUM_ASSETS, 1000])
def test_image_rerank_orders_what_text_recall_found_by_exact_cosine(index_of: Make, num_recall: int):
    text, image, query = unit_rows(1), unit_rows(2), unit_rows(3, num=1)[0]
    neighbors = index_of(text, image).nearest(query, num_recall, num_recall)
    recalled = np.argsort(-(text @ query), kind="stable")[:num_recall]
    expected = sorted(recalled, key=lambda i: -float(image[i] @ query))
    assert [n.asset.asset_id for n in neighbors] == [f"id{i}" for i in expected]
    np.testing.assert_allclose([n.score for n in neighbors], image[expected] @ query, atol=1e-6)
    np.testing.assert_allclose([n.text_score for n in neighbors], text[expected] @ query, atol=1e-6)


def test_an_asset_that_text_recall_leaves_out_cannot_be_found_by_its_renders(index_of: Make):
    query = unit_rows(3, num=1)[0]
    text, image = unit_rows(1), unit_rows(2)
    last = int(np.argmin(text @ query))
    image[last] = query
    index = index_of(text, image)
    found = [n.asset.asset_id for n in index.nearest(query, NUM_ASSETS - 1, 5)]
    assert f"id{last}" not in found
    assert index.nearest(query, NUM_ASSETS, 1)[0].asset.asset_id == f"id{last}"


def test_fewer_neighbors_are_the_first_of_more(index_of: Make):
    index, query = index_of(unit_rows(1), unit_rows(2)), unit_rows(3, num=1)[0]
    assert index.nearest(query, 20, 3) == index.nearest(query, 20, 10)[:3]


def test_equal_scores_keep_the_order_of_the_index(index_of: Make):
    rows = np.repeat(unit_rows(0, num=1), 6, axis=0)
    found = [n.asset.asset_id for n in index_of(rows, rows).nearest(rows[0], 6, 6)]
    assert found == [f"id{i}" for i in range(6)]


def test_an_asset_that_the_prompt_names_is_found_first_and_strangers_are_weak_or_left_out(worded: AssetIndex):
    assert named(worded.search("a New York cab", 3, 3)) == {"id1": False}  # a synonym, and no word in common elsewhere
    assert named(worded.search("a pickup", 3, 3)) == {"id2": False, "id6": False}  # a kind of truck
    found = named(worded.search("a red umbrella", 3, 3))
    assert found and all(found.values())
    assert named(worded.search("a grand piano", 3, 3)) == {}


@pytest.mark.parametrize("prompt", ["a red truck", "A RED  truck.", "a red truck with black wheels"])
def test_a_caption_word_for_word_comes_first_and_is_not_weak(worded: AssetIndex, prompt: str):
    first = worded.search(prompt, 8, 1).neighbors[0]
    assert first.asset.asset_id == ("id6" if "wheels" in prompt else "id2") and not first.is_weak


def test_chosen_assets_are_returned_in_their_order_and_an_unknown_one_is_named_with_its_nearest(worded: AssetIndex):
    chosen = worded.chosen("a red truck", ["id4", "id2"])
    assert [n.asset.asset_id for n in chosen.neighbors] == ["id4", "id2"]
    assert not any(n.is_weak for n in chosen.neighbors)
    with pytest.raises(ValueError, match="has no asset 'id4x'; did you mean id4"):
        worded.chosen("a red truck", ["id2", "id4x"])


def test_assets_that_are_left_out_are_not_found(worded: AssetIndex):
    assert list(named(worded.search("a red truck", 8, 3, leave_out=("id2", "unknown"))))[0] == "id6"
    everything = [f"id{number}" for number in range(len(CAPTIONS))]
    with pytest.raises(ValueError, match="leave over"):
        worded.search("a red truck", 8, 3, leave_out=everything)


def test_an_index_of_format_3_opens_and_answers_by_embeddings_and_names(clip: Clip, tmp_path: Path):
    assets = [replace(asset, caption=text) for asset, text in zip(some_assets(len(CAPTIONS)), CAPTIONS, strict=True)]
    rows = unit_rows(1, num=len(CAPTIONS)), unit_rows(2, num=len(CAPTIONS))
    index = AssetIndex.open(write_index(tmp_path / "index", *rows, clip, assets, has_words=False), clip)
    assert not index.manifest.has_words and index.assets[0].front_axis == ""
    found = index.search("a cab", len(CAPTIONS), 3).neighbors
    assert [(n.asset.asset_id, n.lexical_score, n.is_weak) for n in found] == [("id1", 0.0, False)]


def test_mesh_paths_start_from_the_catalog_or_from_where_it_lies_now(clip: Clip, tmp_path: Path):
    index_dir = write_tiny_index(tmp_path, clip)
    assert AssetIndex.open(index_dir, clip).assets[3].mesh_path == str(tmp_path / "catalog" / "3.glb")
    assert AssetIndex.open(index_dir, clip, asset_root="/other").assets[3].mesh_path == str(Path("/other/3.glb"))
    rows = read_manifest(index_dir).folder / "assets.arrow"
    assert str(tmp_path).encode() not in rows.read_bytes()


def test_an_index_may_move(clip: Clip, tmp_path: Path):
    index_dir = write_tiny_index(tmp_path, clip)
    shutil.move(index_dir, tmp_path / "moved")
    assert AssetIndex.open(tmp_path / "moved", clip).manifest.index_dir == str(tmp_path / "moved")


def test_an_index_of_another_clip_is_refused_and_both_are_named(clip: Clip, other_clip_folder: Path, tmp_path: Path):
    other = Clip(str(other_clip_folder))
    with pytest.raises(IndexMismatch) as refusal:
        AssetIndex.open(write_tiny_index(tmp_path, clip), other)
    assert clip.identity in str(refusal.value) and other.identity in str(refusal.value)


def test_an_asset_is_scored_by_its_best_view_where_all_are_kept(index_of: Make):
    text, views, query = unit_rows(1), unit_rows(2, num=3 * NUM_ASSETS).reshape(NUM_ASSETS, 3, 8), unit_rows(3, 1)[0]
    neighbors = index_of(text, views).nearest(query, NUM_ASSETS, NUM_ASSETS)
    best = (views @ query).max(axis=1)
    assert [n.asset.asset_id for n in neighbors] == [f"id{i}" for i in np.argsort(-best, kind="stable")]
    np.testing.assert_allclose([n.score for n in neighbors], np.sort(best)[::-1], atol=1e-6)


def test_a_licence_filter_finds_what_an_index_without_the_others_would(index_of: Make):
    text, image, query = unit_rows(1), unit_rows(2), unit_rows(3, num=1)[0]
    found = index_of(text, image).nearest(query, 4, 4, allows=lambda text: text == "by")
    rows = np.arange(1, NUM_ASSETS, 3)
    recalled = rows[np.argsort(-(text[rows] @ query), kind="stable")[:4]]
    expected = sorted(recalled, key=lambda i: -float(image[i] @ query))
    assert [n.asset.asset_id for n in found] == [f"id{i}" for i in expected]
    assert index_of(text, image).nearest(query, 4, 4, allows=lambda text: False) == ()


def test_readers_keep_the_index_that_they_opened_while_a_newer_one_takes_its_place(clip: Clip, tmp_path: Path):
    index_dir = write_tiny_index(tmp_path, clip)
    reader, query = AssetIndex.open(index_dir, clip), unit_rows(3, num=1)[0]
    before = reader.nearest(query, 10, 5)
    write_index(index_dir, unit_rows(8, num=7), unit_rows(9, num=7), clip, some_assets(7))
    assert reader.nearest(query, 10, 5) == before
    assert len(AssetIndex.open(index_dir, clip).assets) == 7
    assert len([path for path in index_dir.iterdir() if path.is_dir()]) == 1


def test_opening_follows_an_index_that_is_replaced_meanwhile(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    index_dir = write_tiny_index(tmp_path, clip)
    stale = read_manifest(index_dir)
    write_index(index_dir, unit_rows(8, num=7), unit_rows(9, num=7), clip, some_assets(7))
    answers = iter([stale])
    monkeypatch.setattr(
        "redream.retrieval.index.read_manifest", lambda path: next(answers, None) or read_manifest(path)
    )
    assert len(AssetIndex.open(index_dir, clip).assets) == 7


def test_a_vector_that_is_not_finite_is_refused_when_it_is_met(clip: Clip, tmp_path: Path):
    image = unit_rows(2)
    image[5] = np.nan
    index = AssetIndex.open(write_index(tmp_path / "index", unit_rows(1), image, clip, some_assets()), clip)
    with pytest.raises(IndexMismatch, match="not finite"):
        index.nearest(unit_rows(1)[5], NUM_ASSETS, 1)


@pytest.mark.parametrize(("prompt", "num_recall", "top_k"), [("  ", 5, 1), ("car", 5, 0), ("car", 2, 3)])
def test_a_search_that_makes_no_sense_is_refused(index_of: Make, prompt: str, num_recall: int, top_k: int):
    with pytest.raises(ValueError):
        index_of(unit_rows(1), unit_rows(2)).search(prompt, num_recall, top_k)


def test_exhaustive_search_prints_nothing(index_of: Make, capfd: pytest.CaptureFixture[str]):
    index_of(unit_rows(1), unit_rows(2)).nearest(unit_rows(1)[0], 5, 3)
    assert capfd.readouterr() == ("", "")


def test_equal_queries_get_equal_answers_after_reopening(clip: Clip, tmp_path: Path):
    index_dir = write_tiny_index(tmp_path, clip)
    first, second = (AssetIndex.open(index_dir, clip).search("an owl", 10, 5) for _ in range(2))
    assert first == second
    assert all(torch.isfinite(torch.tensor([n.score, n.text_score])).all() for n in first.neighbors)


def test_near_copies_rank_behind_other_things_that_fit_as_well(clip: Clip, tmp_path: Path):
    captions = ["a red truck", "a red truck with wheels", "a red sofa", "a red fish", "a blue truck"]
    assets = [replace(asset, caption=text) for asset, text in zip(some_assets(5), captions, strict=True)]
    looks = unit_rows(2, num=5)
    looks[1] = looks[0]
    looks[4] = unit_rows(3, num=1)[0]
    index = AssetIndex.open(write_index(tmp_path / "copies", unit_rows(1, num=5), looks, clip, assets), clip)
    index.calibration = replace(index.calibration, separation=0.0)
    red_things = list(named(index.search("something red", 5, 4, max_likeness=0.95)))
    assert set(red_things[:3]) == {red_things[0], "id2", "id3"} and red_things[0] in ("id0", "id1")
    red_trucks = list(named(index.search("a red truck", 5, 5, max_likeness=0.95)))
    assert red_trucks[:3] == ["id0", "id1", "id4"]  # the copy before the truck of another color
    trucks = list(named(index.search("a truck", 5, 3, max_likeness=0.95)))
    assert "id4" in trucks[:2]


def test_what_conditions_leave_out_is_not_found(worded: AssetIndex):
    among = worded.matching("'truck' in caption and uid != 'id2'")
    assert list(named(worded.search("a red truck", 8, 3, among=among))) == ["id6"]
    assert worded.matching("") is None
    with pytest.raises(ValueError, match="no column 'faceCount'"):
        worded.matching("faceCount < 3")
