"""Three small assets as GLB files, and the tiny random CLIP of `tests/redream`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trimesh

from index_build.catalogs.catalog import Catalog
from redream.clip import Clip
from redream.records import Asset
from tests.redream.conftest import save_tiny_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip(str(save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", seed=0)))


@pytest.fixture
def assets(tmp_path: Path) -> list[Asset]:
    meshes = {
        "box": trimesh.creation.box((1, 2, 3)),
        "ball": trimesh.creation.icosphere(1),
        "pipe": trimesh.creation.cylinder(0.3, 2.0),
    }
    (tmp_path / "catalog" / "assets").mkdir(parents=True)
    records = []
    for name, mesh in meshes.items():
        path = tmp_path / "catalog" / "assets" / f"{name}.glb"
        mesh.export(path)
        caption = f"a grey {name}"
        records.append(Asset(asset_id=name, mesh_path=str(path), caption=caption, source="test", license="CC0"))
    return records


def catalog_of(assets: list[Asset]) -> Catalog:
    """Return a catalog of meshes that lie here, with digests of their content."""
    root = str(Path(assets[0].mesh_path).parent) if assets else "/"
    return Catalog(
        name="test",
        root=root,
        assets=assets,
        dropped={},
        digest=lambda asset: hashlib.sha256(Path(asset.mesh_path).read_bytes()).hexdigest(),
    )
