"""The embeddings that an index is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from index_build.download import DownloadError
from index_build.embeddings import (
    PASSING,
    Shard,
    embed_assets,
    embed_captions,
    embed_together,
    read_shard,
    write_shard,
)
from redream.clip import Clip
from redream.meshes.assets import AssetError
from redream.meshes.reading.refusal import ReaderFailed
from redream.records import Asset
from tests.disk import watched_disk


def test_an_asset_is_the_normalised_mean_of_its_views_in_any_order(clip: Clip):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    embedding = embed_together([images], clip, 1)[0][0]
    mean = clip.embed_images(images).mean(dim=0)
    torch.testing.assert_close(embedding, mean / mean.norm())
    torch.testing.assert_close(embed_together([images.flip(0)], clip, 1)[0][0], embedding)


def test_an_asset_of_one_view_is_that_view(clip: Clip):
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(embed_together([image], clip, 1)[0][0], clip.embed_images(image)[0])


def test_kept_views_stay_apart_and_fewer_repeat(clip: Clip):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    embeddings = clip.embed_images(images)
    torch.testing.assert_close(embed_together([images], clip, 3)[0], embeddings)
    torch.testing.assert_close(embed_together([images], clip, 5)[0], embeddings[[0, 1, 2, 0, 1]])


def some_shard() -> Shard:
    vectors = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float16)
    return Shard(["a", "b", "c"], vectors, vectors[:, None], {"d": "no mesh"})


def test_a_shard_reads_back_and_leaves_nothing_beside_it(tmp_path: Path):
    write_shard(tmp_path / "shards" / "one.safetensors", some_shard())
    read = read_shard(tmp_path / "shards" / "one.safetensors")
    assert read is not None and read.keys == ["a", "b", "c"] and read.refused == {"d": "no mesh"}
    np.testing.assert_array_equal(read.text, some_shard().text)
    np.testing.assert_array_equal(read.image, some_shard().image)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["one.safetensors"]


@pytest.mark.parametrize("place", [3, 100, -1])
def test_a_shard_with_one_bit_changed_is_none(place: int, tmp_path: Path):
    path = tmp_path / "one.safetensors"
    write_shard(path, some_shard())
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    assert read_shard(path) is None


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"no tensors"])
def test_what_is_no_shard_is_none(content: bytes, tmp_path: Path):
    (tmp_path / "one.safetensors").write_bytes(content)
    assert read_shard(tmp_path / "one.safetensors") is None
    assert read_shard(tmp_path / "absent.safetensors") is None


def views_of(asset: Asset) -> torch.Tensor:
    if asset.asset_id == "ball":
        raise AssetError("ball.glb: no mesh.")
    if asset.asset_id == "box" and "killed" in asset.mesh_path:
        raise ReaderFailed("box.glb could not be read.")
    if asset.asset_id == "pipe":
        raise DownloadError("pipe.glb: 404")
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_refused_assets_are_left_out_with_the_reason(clip: Clip, assets: list[Asset], tmp_path: Path):
    done = list(embed_assets(assets, ["1", "2", "3"], views_of, clip, 1, tmp_path / "one"))
    shard = read_shard(tmp_path / "one")
    assert done == ["box", "ball", "pipe"]
    assert shard is not None and shard.keys == ["1"]
    assert shard.refused == {"2": "ball.glb: no mesh.", "3": "not downloaded: pipe.glb: 404"}
    np.testing.assert_allclose(shard.text[0], embed_captions(assets[:1], clip)[0], atol=1e-3)


def test_an_asset_whose_reader_was_killed_is_no_lasting_refusal(clip: Clip, assets: list[Asset], tmp_path: Path):
    killed = replace(assets[0], mesh_path="killed.glb")
    list(embed_assets([killed, assets[1]], ["1", "2"], views_of, clip, 1, tmp_path / "one"))
    shard = read_shard(tmp_path / "one")
    assert shard is not None
    assert {key: why.startswith(PASSING) for key, why in shard.refused.items()} == {"1": True, "2": False}


def test_a_shard_of_which_nothing_can_be_downloaded_is_made_again(clip: Clip, assets: list[Asset], tmp_path: Path):
    with pytest.raises(ConnectionError, match="none of the 2"):
        list(embed_assets([assets[2], assets[2]], ["1", "2"], views_of, clip, 1, tmp_path / "one"))
    assert not (tmp_path / "one").exists()


def test_captions_are_embedded_in_the_order_of_the_assets(clip: Clip, assets: list[Asset]):
    embeddings = embed_captions(assets, clip)
    torch.testing.assert_close(embeddings[1], clip.embed_text([assets[1].caption])[0])


def test_behind_a_refused_asset_every_embedding_is_its_own(clip: Clip, assets: list[Asset], tmp_path: Path):
    def own_views(asset: Asset) -> torch.Tensor:
        if asset.asset_id == "box":
            raise AssetError("box.glb: no mesh.")
        seed = len(asset.caption) + (asset.asset_id == "pipe")
        return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

    list(embed_assets(assets, ["1", "2", "3"], own_views, clip, 2, tmp_path / "one"))
    shard = read_shard(tmp_path / "one")
    assert shard is not None and shard.keys == ["2", "3"] and list(shard.refused) == ["1"]
    for row, asset in enumerate(assets[1:]):
        np.testing.assert_allclose(shard.text[row], embed_captions([asset], clip)[0], atol=1e-3)
        np.testing.assert_allclose(shard.image[row], embed_together([own_views(asset)], clip, 2)[0], atol=1e-3)
    assert np.abs(shard.text[0] - shard.text[1]).max() > 0.01 < np.abs(shard.image[0] - shard.image[1]).max()


def test_a_shard_is_on_the_disk_before_its_rename_and_the_folder_after_it(tmp_path: Path):
    with watched_disk() as disk:
        write_shard(tmp_path / "shards" / "one.safetensors", some_shard())
    assert disk.is_safe() and disk.renamed == [tmp_path / "shards" / "one.safetensors"]
