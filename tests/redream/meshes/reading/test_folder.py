"""Files of a mesh are read whole, or refused, in no more memory than they need."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from redream.meshes.reading.folder import read_whole_file
from redream.meshes.reading.refusal import Refused
from redream.settings import MeshLimits


def test_a_small_file_takes_little_memory_however_large_files_may_be(tmp_path: Path):
    (tmp_path / "a.glb").write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert len(read_whole_file(tmp_path / "a.glb", MeshLimits())) == 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(("size", "reason"), [(0, "is empty"), (101, "has 101 bytes, more than the allowed 100")])
def test_a_file_of_the_wrong_size_is_refused(tmp_path: Path, size: int, reason: str):
    (tmp_path / "a.glb").write_bytes(b"x" * size)
    with pytest.raises(Refused, match=reason):
        read_whole_file(tmp_path / "a.glb", MeshLimits(file_bytes=100))
