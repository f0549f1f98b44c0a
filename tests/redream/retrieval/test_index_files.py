"""What is no whole index is refused in one line; what is one reads back."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from redream.clip import Clip
from redream.retrieval import index_files
from redream.retrieval.index import AssetIndex
from redream.retrieval.index_files import (
    ASSET_SCHEMA,
    IndexMismatch,
    check_files,
    content_hash,
    read_manifest,
    read_table,
    seal_files,
    write_manifest,
)
from tests.redream.conftest import some_assets, unit_rows, write_index, write_tiny_index


@pytest.fixture(scope="module")
def clip(tiny_clip_folder: Path) -> Clip:
    return Clip(str(tiny_clip_folder))


def edit_manifest(index_dir: Path, **changes: object) -> None:
    path = index_dir / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def file_of(index_dir: Path, name: str) -> Path:
    return read_manifest(index_dir).folder / name


def seal_again(index_dir: Path) -> None:
    """Let the manifest agree with the files, as a hostile index would."""
    manifest = read_manifest(index_dir)
    files = seal_files(manifest.folder)
    write_manifest(replace(manifest, files=files, content_hash=content_hash(files)))


def remove_manifest(index_dir: Path) -> None:
    (index_dir / "manifest.json").unlink()


def garble_manifest(index_dir: Path) -> None:
    (index_dir / "manifest.json").write_bytes(b'{"clip_model": \xff')


def nest_manifest_deeply(index_dir: Path) -> None:
    (index_dir / "manifest.json").write_text("[" * 200_000)


def use_other_format(index_dir: Path) -> None:
    edit_manifest(index_dir, format_version=1)


def use_list_as_manifest(index_dir: Path) -> None:
    (index_dir / "manifest.json").write_text("[]")


def drop_manifest_key(index_dir: Path) -> None:
    content = json.loads((index_dir / "manifest.json").read_text())
    del content["num_assets"]
    (index_dir / "manifest.json").write_text(json.dumps(content))


def use_text_as_number(index_dir: Path) -> None:
    edit_manifest(index_dir, num_assets="many")


def name_generation_elsewhere(index_dir: Path) -> None:
    edit_manifest(index_dir, generation="../../etc")


def name_file_elsewhere(index_dir: Path) -> None:
    files = json.loads((index_dir / "manifest.json").read_text())["files"]
    edit_manifest(index_dir, files={**files, "../../etc/passwd": files["text.npy"]})


def say_nothing_of_files(index_dir: Path) -> None:
    edit_manifest(index_dir, files={})


def contradict_hashes(index_dir: Path) -> None:
    edit_manifest(index_dir, content_hash="0" * 64)


def count_wrongly(index_dir: Path) -> None:
    edit_manifest(index_dir, num_assets=39)


def lack_image_vectors(index_dir: Path) -> None:
    file_of(index_dir, "image.npy").unlink()


def link_text_vectors(index_dir: Path) -> None:
    path = file_of(index_dir, "text.npy")
    os.rename(path, index_dir.parent / "text.npy")
    path.symlink_to(index_dir.parent / "text.npy")


def cut_text_vectors(index_dir: Path) -> None:
    os.truncate(file_of(index_dir, "text.npy"), 500)


def flip_one_bit_of_text(index_dir: Path) -> None:
    flip(file_of(index_dir, "text.npy"), -1)


def flip_one_bit_of_assets(index_dir: Path) -> None:
    flip(file_of(index_dir, "assets.arrow"), 700)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def hold_other_numbers(index_dir: Path) -> None:
    np.save(file_of(index_dir, "text.npy"), unit_rows(1))  # float32
    seal_again(index_dir)


def hold_a_pickle(index_dir: Path) -> None:
    np.save(file_of(index_dir, "image.npy"), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    seal_again(index_dir)


def hold_no_arrow(index_dir: Path) -> None:
    file_of(index_dir, "assets.arrow").write_bytes(b"ARROW1" * 100)
    seal_again(index_dir)


def hold_other_columns(index_dir: Path) -> None:
    table = pa.table({"asset_id": pa.array(range(40))})
    path = file_of(index_dir, "assets.arrow")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    seal_again(index_dir)


@pytest.mark.parametrize(
    "damage",
    [
        remove_manifest,
        garble_manifest,
        nest_manifest_deeply,
        use_other_format,
        use_list_as_manifest,
        drop_manifest_key,
        use_text_as_number,
        name_generation_elsewhere,
        name_file_elsewhere,
        say_nothing_of_files,
        contradict_hashes,
        count_wrongly,
        lack_image_vectors,
        link_text_vectors,
        cut_text_vectors,
        flip_one_bit_of_text,
        flip_one_bit_of_assets,
        hold_other_numbers,
        hold_a_pickle,
        hold_no_arrow,
        hold_other_columns,
    ],
)
def test_a_damaged_index_is_refused_in_one_line_with_the_remedy(damage, clip: Clip, tmp_path: Path):
    index_dir = write_tiny_index(tmp_path, clip)
    AssetIndex.open(index_dir, clip)
    damage(index_dir)
    with pytest.raises(IndexMismatch, match="build") as refusal:
        AssetIndex.open(index_dir, clip)
    assert "\n" not in str(refusal.value) and str(index_dir) in str(refusal.value)


def test_of_large_vectors_opening_reads_a_sample_and_a_check_every_byte(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index_files, "FULLY_HASHED_BYTES", 0)
    monkeypatch.setattr(index_files, "SAMPLE_BLOCKS", 2)
    monkeypatch.setattr(index_files, "SAMPLE_BLOCK_BYTES", 64)
    index_dir = write_tiny_index(tmp_path, clip)
    flip(file_of(index_dir, "text.npy"), 300)
    manifest = read_manifest(index_dir)
    check_files(manifest)
    with pytest.raises(IndexMismatch, match=r"text\.npy differs"):
        check_files(manifest, fully=True)
    flip(file_of(index_dir, "text.npy"), -1)
    with pytest.raises(IndexMismatch, match=r"text\.npy differs"):
        check_files(manifest)


def test_a_manifest_reads_back_as_written(clip: Clip, tmp_path: Path):
    manifest = read_manifest(write_tiny_index(tmp_path, clip))
    changed = replace(manifest, settings={"a": 1.5}, versions={"torch": "2"}, catalog="objaverse")
    write_manifest(changed)
    assert read_manifest(manifest.index_dir) == changed
    assert sorted(path.name for path in Path(manifest.index_dir).iterdir()) == [manifest.generation, "manifest.json"]


def test_rows_of_the_table_are_the_assets(clip: Clip, tmp_path: Path):
    assets = some_assets()
    index = AssetIndex.open(write_index(tmp_path / "index", unit_rows(1), unit_rows(2), clip, assets), clip)
    found = [replace(asset, border="") for asset in index.assets]  # which follows from the index
    assert found == assets
    assert index.assets[-1] == list(index.assets)[-1] and index.assets[3:6] == list(index.assets)[3:6]
    with pytest.raises(IndexError):
        index.assets[40]


def test_texts_of_any_script_and_length_come_back(clip: Clip, tmp_path: Path):
    texts = ["", "\u6c34\u306e\u58fa", '"a", b\r\nc', "\U0001f989" * 1000, "\x00end"]
    assets = [replace(asset, caption=text, author=text) for asset, text in zip(some_assets(5), texts, strict=True)]
    index_dir = write_index(tmp_path / "index", unit_rows(1, 5), unit_rows(2, 5), clip, assets)
    assert [replace(asset, border="") for asset in AssetIndex.open(index_dir, clip).assets] == assets
    assert read_table(read_manifest(index_dir).folder / "assets.arrow", ASSET_SCHEMA)["caption"].to_pylist() == texts
