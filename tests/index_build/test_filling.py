"""An index built from captions alone: its pictures come with searches, and then it answers as a complete one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from index_build.build import assemble, build_index, embed_caption_shard, plan_build
from index_build.compacting import compact
from index_build.filling import Budget, Filled, fill
from index_build.views import RenderedViews
from redream.clip import Clip
from redream.records import Asset
from redream.retrieval.index import AssetIndex
from redream.retrieval.index_files import read_manifest
from redream.retrieval.pictures import PictureLog
from redream.settings import DownloadConfig, MeshLimits, RetrievalConfig
from tests.index_build.conftest import catalog_of
from tests.index_build.hostile_server import HostileServer, content, first, hang_up, serving, stall, status

CONFIG = RetrievalConfig(num_index_views=2, num_recall=8, num_assets=3, captions_per_shard=3)
NAMES = ("box", "ball", "pipe", "cone", "ring", "slab", "rod", "egg")
PROMPTS = ("a grey ball", "a rod", "something round")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Asset]:
    """Return eight objects in the places of Objaverse's cache."""
    folder = tmp_path_factory.mktemp("objects") / "glbs" / "000-000"
    folder.mkdir(parents=True)
    assets = []
    for number, name in enumerate(NAMES):
        mesh = trimesh.creation.box((1, 1 + number, 2)) if number % 2 else trimesh.creation.cylinder(1, 1 + number)
        mesh.export(folder / f"{name}.glb")
        caption = f"a grey {name}" if name != "egg" else "a grey ball"  # a caption twice
        place = str(folder / f"{name}.glb")
        assets.append(Asset(asset_id=name, mesh_path=place, caption=caption, source="test", license="CC0"))
    return assets


@pytest.fixture(scope="module")
def complete(objects: list[Asset], clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> AssetIndex:
    folder = tmp_path_factory.mktemp("complete") / "index"
    list(build_index(catalog_of(objects), clip, CONFIG, RenderedViews(2, clip.image_size), folder))
    return AssetIndex.open(folder, clip)


@pytest.fixture
def server(objects: list[Asset]) -> Iterator[HostileServer]:
    with serving() as server:
        for asset in objects:
            server.answers[f"/glbs/000-000/{asset.asset_id}.glb"] = content(Path(asset.mesh_path).read_bytes())
        yield server


def captioned(objects: list[Asset], clip: Clip, folder: Path) -> AssetIndex:
    """Build an index from captions alone, whose meshes are still to be fetched."""
    plan = plan_build(catalog_of(objects), clip, CONFIG, RenderedViews(2, clip.image_size), folder / "index", False)
    for number in range(plan.num_shards):
        list(embed_caption_shard(plan, number, lambda texts: clip.embed_text(texts).cpu().numpy()))
    assemble(plan)
    return AssetIndex.open(folder / "index", clip, asset_root=folder / "cache" / "glbs" / "000-000")


def download(server: HostileServer, **changes: float) -> DownloadConfig:
    return replace(
        DownloadConfig(base_url=server.url, first_pause=0.01, stall_timeout=0.3, total_timeout=5.0), **changes
    )


def add(index: AssetIndex, clip: Clip, config: DownloadConfig, budget: Budget, prompt: str) -> list[Filled]:
    rows = index.lacking(prompt, CONFIG.num_recall)
    filled = list(fill(index, rows, clip, config, MeshLimits(), budget))
    index.refresh()
    return filled


def plenty() -> Budget:
    return Budget(objects=100, num_bytes=2**30, seconds=100.0)


def ranking(index: AssetIndex, prompt: str) -> list[tuple[str, float, float, float, bool]]:
    found = index.search(prompt, CONFIG.num_recall, 8).neighbors
    return [(n.asset.asset_id, n.score, n.text_score, n.lexical_score, n.is_weak) for n in found]


def test_a_caption_is_embedded_once(objects: list[Asset], clip: Clip, tmp_path: Path):
    plan = plan_build(catalog_of(objects), clip, CONFIG, RenderedViews(2, clip.image_size), tmp_path / "index", False)
    texts = [text for number in range(plan.num_shards) for text in plan.captions(number)]
    assert sorted(texts) == sorted({asset.caption for asset in objects}) and texts == sorted(texts, key=len)


def test_without_pictures_captions_alone_rank(objects: list[Asset], clip: Clip, tmp_path: Path):
    index = captioned(objects, clip, tmp_path)
    found = index.search("a grey ball", CONFIG.num_recall, 3).neighbors
    assert {found[0].asset.asset_id, found[1].asset.asset_id} == {"ball", "egg"}
    assert not any(neighbor.has_picture for neighbor in found)


def test_filled_from_a_bad_server_an_index_ranks_as_a_complete_one(
    objects: list[Asset], complete: AssetIndex, clip: Clip, server: HostileServer, tmp_path: Path
):
    bodies = {asset.asset_id: Path(asset.mesh_path).read_bytes() for asset in objects}
    bad = {
        "box": first(status(503), content(bodies["box"])),
        "ball": first(content(bodies["ball"][:100], stated=len(bodies["ball"])), content(bodies["ball"])),
        "pipe": first(hang_up, content(bodies["pipe"])),
        "cone": first(stall(bodies["cone"], 1.0), content(bodies["cone"])),
    }
    server.answers.update({f"/glbs/000-000/{name}.glb": answer for name, answer in bad.items()})
    index = captioned(objects, clip, tmp_path)
    filled = add(index, clip, download(server), plenty(), PROMPTS[0])
    assert sorted(each.asset_id for each in filled) == sorted(NAMES) and not any(each.reason for each in filled)
    assert [ranking(index, prompt) for prompt in PROMPTS] == [ranking(complete, prompt) for prompt in PROMPTS]
    again = AssetIndex.open(tmp_path / "index", clip)
    assert ranking(again, PROMPTS[1]) == ranking(complete, PROMPTS[1]) and again.lacking(PROMPTS[1], 8) == []
    manifest, num_added = compact(tmp_path / "index")
    assert num_added == len(NAMES) and manifest.has_all_pictures and compact(tmp_path / "index")[1] == 0
    assert ranking(AssetIndex.open(tmp_path / "index", clip), PROMPTS[2]) == ranking(complete, PROMPTS[2])
    assert manifest.content_hash == complete.manifest.content_hash


def test_a_budget_ends_the_fetching_and_the_rest_ranks_behind(
    objects: list[Asset], clip: Clip, server: HostileServer, tmp_path: Path
):
    server.answers["/glbs/000-000/egg.glb"] = status(404)
    index = captioned(objects, clip, tmp_path)
    filled = add(index, clip, download(server), Budget(objects=3, num_bytes=2**30, seconds=50.0), "a grey ball")
    assert len(filled) == 3 and {each.asset_id for each in filled} >= {"ball", "egg"}
    assert ["404" in each.reason for each in filled if each.asset_id == "egg"] == [True]
    found = index.search("a grey ball", CONFIG.num_recall, 8).neighbors
    assert [neighbor.has_picture for neighbor in found] == [True] * 2 + [False] * (len(found) - 2)
    assert found[0].asset.asset_id == "ball"
    assert add(index, clip, download(server), Budget(objects=9, num_bytes=0, seconds=50.0), "a grey ball") == []


def test_a_server_that_stalls_costs_no_more_than_the_seconds_allowed(
    objects: list[Asset], clip: Clip, server: HostileServer, tmp_path: Path
):
    for path in list(server.answers):
        server.answers[path] = stall(b"glTF" * 100, 20.0)
    index, started = captioned(objects, clip, tmp_path), time.monotonic()
    config = download(server, stall_timeout=15.0, total_timeout=15.0)
    add(index, clip, config, Budget(objects=9, num_bytes=2**30, seconds=0.5), "a grey ball")
    assert time.monotonic() - started < 10.0
    assert not any(neighbor.has_picture for neighbor in index.search("a grey ball", 8, 8).neighbors)


def test_a_mesh_that_cannot_be_used_is_not_fetched_again(
    objects: list[Asset], clip: Clip, server: HostileServer, tmp_path: Path
):
    index = captioned(objects, clip, tmp_path)
    folder = tmp_path / "cache" / "glbs" / "000-000"
    folder.mkdir(parents=True)
    for asset in objects:
        shutil.copy(asset.mesh_path, folder)
    (folder / "rod.glb").write_bytes(b"glTF\x02\0\0\0\x14\0\0\0\0\0\0\0JSON")
    filled = add(index, clip, download(server), plenty(), "a rod")
    assert [each.asset_id for each in filled if each.reason] == ["rod"] and server.asked == []
    again = AssetIndex.open(tmp_path / "index", clip, asset_root=folder)
    assert again.lacking("a rod", 8) == []
    assert "rod" not in [neighbor.asset.asset_id for neighbor in again.search("a rod", 8, 8).neighbors]


def test_pictures_stay_when_the_index_is_built_again_with_or_without_them(
    objects: list[Asset], complete: AssetIndex, clip: Clip, tmp_path: Path
):
    shutil.copytree(complete.manifest.index_dir, tmp_path / "index")
    index = captioned(objects[::-1], clip, tmp_path)
    assert index.pictures.rows().tolist() == list(range(len(objects)))
    assert {name for name, *_ in ranking(index, PROMPTS[0])} == {name for name, *_ in ranking(complete, PROMPTS[0])}
    plan = plan_build(catalog_of(objects), clip, CONFIG, RenderedViews(2, clip.image_size), tmp_path / "index")
    assert plan.num_pending == 0
    assemble(plan)
    assert read_manifest(tmp_path / "index").content_hash == complete.manifest.content_hash


def test_a_log_that_ends_anywhere_holds_what_was_whole_and_goes_on(tmp_path: Path):
    log = PictureLog(tmp_path, 1, 4)
    vectors = np.arange(8, dtype=np.float16).reshape(2, 1, 4)
    log.add("a" * 32, vectors[0])
    size = log.size
    log.refuse("b" * 32, "broken")
    whole = log.path.read_bytes()
    for length in range(0, len(whole), 7):
        log.path.write_bytes(whole[:length])
        assert len(log.read()) == length // size
        log.add("c" * 32, vectors[1])
        assert log.read()["key"].tolist()[-1] == b"c" * 32 and len(log.read()) == length // size + 1
    damaged = bytearray(whole)
    damaged[40] ^= 1
    log.path.write_bytes(damaged)
    assert log.read()["reason"].tolist() == [b"broken"]
