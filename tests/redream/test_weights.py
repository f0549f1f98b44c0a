import hashlib
import os

import pytest

from redream import weights
from redream.weights import weights_digest, weights_path


def test_hub_ids_name_themselves() -> None:
    assert weights_path("owner/name@main") == weights_digest("owner/name@main") == "owner/name@main"


def test_an_unknown_miniature_is_refused_with_the_way_to_make_it() -> None:
    with pytest.raises(ValueError, match=r"redream\.mini\.train"):
        weights_path("mini:nothing")


def test_digest_follows_content_and_not_place(tmp_path) -> None:
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(content)
    first, same, other = (weights_digest(str(tmp_path / name)) for name in "abc")
    assert first == same != other
    (tmp_path / "a" / "model.safetensors").write_text("22")
    assert weights_digest(str(tmp_path / "a")) != first


def test_hash_of_a_large_file_is_kept_until_the_file_changes(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE_BYTES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    first = weights._file_digest(path)
    assert first == hashlib.sha256(b"one").digest()
    (kept,) = (tmp_path / "cache/redream/digests").iterdir()
    kept.write_bytes(b"\1" * 32)
    assert weights._file_digest(path) == b"\1" * 32
    kept.write_bytes(b"half")
    assert weights._file_digest(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 1))  # as large as before
    assert weights._file_digest(path) == hashlib.sha256(b"two").digest()


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE_BYTES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_bytes(b"x")
    assert weights._file_digest(tmp_path / "file") == hashlib.sha256(b"x").digest()
