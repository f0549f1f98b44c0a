"""A world of tiny random models and three primitive meshes: every stage is real, nothing is worth looking at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from index_build.build import build_index
from index_build.views import RenderedViews
from redream.clip import Clip
from redream.metrics.perceptual import PerceptualConfig, PerceptualNet
from redream.presets import smoke
from redream.records import Asset
from tasks.tracking.tracker import default_tracking_uri
from tests.flows.services import Served, start
from tests.index_build.conftest import catalog_of
from tests.redream.conftest import save_tiny_clip, save_tiny_prior


@dataclass(frozen=True)
class World:
    """Where the tiny models and their index lie, and the settings that name them."""

    index: str
    settings: dict[str, Any]
    meshes: dict[str, str]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("tiny world")
    for seed, name in enumerate(("clip-retrieval", "clip-a", "clip-b")):
        save_tiny_clip(folder / name, seed)
    save_tiny_prior(folder / "prior", "epsilon")
    for seed, name in enumerate(("perceptual-a", "perceptual-b")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            PerceptualNet(PerceptualConfig(channels=(8, 8), categories=("box",), colors=("grey",))).save(folder / name)
    settings = {
        "retrieval.clip_model": str(folder / "clip-retrieval"),
        "prior.model": str(folder / "prior"),
        "evaluation.clip_models": [str(folder / "clip-a"), str(folder / "clip-b")],
        "evaluation.lpips_backbones": [str(folder / "perceptual-a"), str(folder / "perceptual-b")],
        "retrieval.take_weak": True,
        "render.image_size": 16,
        "export.density_threshold": 1.0,  # a few steps make no dense object
    }
    meshes = save_meshes(folder / "catalog")
    assets = [
        Asset(asset_id=name, mesh_path=path, caption=f"a grey {name}", source="test", license="CC-BY-4.0", author="<A>")
        for name, path in meshes.items()
    ]
    clip = Clip(settings["retrieval.clip_model"])
    views = RenderedViews(smoke().retrieval.num_index_views, clip.image_size)
    assert len(list(build_index(catalog_of(assets), clip, smoke().retrieval, views, folder / "index"))) == len(assets)
    return World(str(folder / "index"), settings, meshes)


def save_meshes(folder: Path) -> dict[str, str]:
    folder.mkdir()
    shapes = {
        "box": trimesh.creation.box((1, 2, 3)),
        "ball": trimesh.creation.icosphere(1),
        "pipe": trimesh.creation.cylinder(0.3, 2.0),
    }
    for name, mesh in shapes.items():
        mesh.export(folder / f"{name}.glb")
    return {name: str(folder / f"{name}.glb") for name in shapes}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`redream serve` with a new folder, for all tests that need it running."""
    served = start(tmp_path_factory.mktemp("served") / "out", "--max-resumes", "2")
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="module")
def tracking_uri(prefect_server: None, mlflow_folder: Path) -> Iterator[str]:
    """Run flows on a Prefect server of the tests' own, tracked in a database of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        uri = default_tracking_uri(mlflow_folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
