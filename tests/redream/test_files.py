"""What is written stays whole: the old file, or the new one that the disk has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from redream.clip import Clip
from redream.export import save_turntable, write_aside
from redream.files import put_in_place
from redream.retrieval.index_files import read_manifest, seal_files, write_manifest
from tests.disk import watched_disk
from tests.redream.conftest import write_tiny_index


def test_a_file_is_on_the_disk_before_its_rename_and_the_folder_after_it(tmp_path: Path) -> None:
    (tmp_path / "aside").write_text("new")
    with watched_disk() as disk:
        put_in_place(tmp_path / "aside", tmp_path / "file")
    assert disk.is_safe() and disk.renamed == [tmp_path / "file"]
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "aside").exists()


def test_the_spy_sees_a_rename_without_a_sync(tmp_path: Path) -> None:
    (tmp_path / "aside").write_text("new")
    with watched_disk() as disk:
        os.replace(tmp_path / "aside", tmp_path / "file")
    assert disk.unsynced == [str(tmp_path / "aside")] and list(disk.open_folders.values()) == [tmp_path]


def test_exports_and_turntables_are_synced(tmp_path: Path) -> None:
    with watched_disk() as disk:
        write_aside(tmp_path / "mesh.glb", b"glTF")
        save_turntable(tmp_path / "turntable.mp4", torch.zeros(2, 16, 16, 3), 10)
    assert disk.is_safe() and [path.name for path in disk.renamed] == ["mesh.glb", "turntable.mp4"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_half_way_leaves_the_old_export(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_aside(tmp_path / "mesh.glb", b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="no space"):
        write_aside(tmp_path / "mesh.glb", b"new")
    assert (tmp_path / "mesh.glb").read_bytes() == b"old"


def test_the_files_of_an_index_are_synced_before_its_manifest(tiny_clip_folder: Path, tmp_path: Path) -> None:
    index_dir = write_tiny_index(tmp_path, Clip(str(tiny_clip_folder)))
    manifest = read_manifest(index_dir)
    (manifest.folder / "deeper").mkdir()
    np.save(manifest.folder / "deeper" / "more.npy", np.zeros(3))
    with watched_disk() as disk:
        seal_files(manifest.folder)
        inside = [manifest.folder, *manifest.folder.rglob("*")]
        assert {(path.stat().st_dev, path.stat().st_ino) for path in inside} <= disk.synced
        write_manifest(manifest)
    assert disk.is_safe()
