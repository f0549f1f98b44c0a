"""Laws of the CLIP wrapper, on a tiny random model in open_clip's local form."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from redream.clip import Clip


def open_clip_itself(folder: Path) -> tuple[Any, Any]:
    """Return open_clip's own model and its transform of PIL images."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model, preprocess


def test_embeddings_are_unit_vectors_of_the_stated_dimension(tiny_clip_folder: Path, generator: torch.Generator):
    clip = Clip(str(tiny_clip_folder))
    text = clip.embed_text(["a red car", "an owl", ""])
    image = clip.embed_images(torch.rand(5, 3, 16, 16, generator=generator))
    assert text.shape == (3, clip.embedding_dim) and image.shape == (5, clip.embedding_dim)
    for embeddings in (text, image):
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(len(embeddings)))
    assert not text.requires_grad and not image.requires_grad


def test_images_of_the_models_size_are_embedded_as_by_open_clip(tiny_clip_folder: Path, generator: torch.Generator):
    pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
    model, preprocess = open_clip_itself(tiny_clip_folder)
    with torch.no_grad():
        expected = model.eval().encode_image(preprocess(Image.fromarray(pixels.numpy()))[None], normalize=True)
    ours = Clip(str(tiny_clip_folder)).embed_images(pixels.permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [11, 40, 64])
def test_resizing_follows_the_models_own_transform(tiny_clip_folder: Path, generator: torch.Generator, size: int):
    # Away from black and white, where PIL clips between the two axes and we do after both.
    pixels = torch.randint(80, 176, (size, size, 3), generator=generator, dtype=torch.uint8)
    _, preprocess = open_clip_itself(tiny_clip_folder)
    expected = preprocess(Image.fromarray(pixels.numpy()))
    ours = Clip(str(tiny_clip_folder)).preprocess(pixels.permute(2, 0, 1)[None] / 255)[0]
    # PIL rounds to bytes after each axis; 0.2 is the smallest std.
    torch.testing.assert_close(ours, expected, atol=2 / 255 / 0.2, rtol=0)


def test_a_text_is_embedded_the_same_alone_and_among_longer_ones(tiny_clip_folder: Path):
    clip = Clip(str(tiny_clip_folder))
    alone = clip.embed_text(["owl"])[0]
    among = clip.embed_text(["a very long description of a car", "owl"])[1]
    torch.testing.assert_close(alone, among)
    torch.testing.assert_close(clip.embed_text(["OWL"])[0], alone)
    assert not torch.allclose(clip.embed_text(["ow"])[0], alone, atol=1e-3)


def test_many_images_are_embedded_as_if_one_by_one(tiny_clip_folder: Path, generator: torch.Generator):
    clip = Clip(str(tiny_clip_folder))
    images = torch.rand(70, 3, 16, 16, generator=generator)
    one_by_one = torch.cat([clip.embed_images(image[None]) for image in images])
    torch.testing.assert_close(clip.embed_images(images), one_by_one, atol=1e-5, rtol=0)


def test_identity_follows_the_weights_and_not_their_place(
    tiny_clip_folder: Path, other_clip_folder: Path, tmp_path: Path
):
    moved = tmp_path / "elsewhere" / tiny_clip_folder.name
    shutil.copytree(tiny_clip_folder, moved)
    assert Clip(str(moved)).identity == Clip(str(tiny_clip_folder)).identity
    assert Clip(str(other_clip_folder)).identity != Clip(str(tiny_clip_folder)).identity
    assert str(tmp_path) not in Clip(str(moved)).identity


def test_a_local_model_loads_without_network(tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("network call")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert np.isfinite(Clip(str(tiny_clip_folder)).embed_text(["a boat"]).numpy()).all()


@pytest.mark.parametrize(
    ("model_id", "complaint"),
    [
        ("no-such-model", "ARCH/PRETRAINED"),
        ("ViT-L-14", "ARCH/PRETRAINED"),
        ("ViT-L-14/no-such-tag", "laion2b_s32b_b82k"),
        ("mini:no-such-model", "no-such-model"),
    ],
)
def test_an_unknown_model_is_refused_with_the_remedy(model_id: str, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        Clip(model_id)


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_rather_than_loaded_at_random(
    tiny_clip_folder: Path, tmp_path: Path, missing: str
):
    shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    (tmp_path / "clip" / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        Clip(str(tmp_path / "clip"))


def test_an_image_that_is_not_square_is_refused(tiny_clip_folder: Path):
    with pytest.raises(ValueError, match="square"):
        Clip(str(tiny_clip_folder)).embed_images(torch.zeros(1, 3, 16, 20))
