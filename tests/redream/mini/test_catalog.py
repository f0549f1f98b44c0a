"""Laws of the miniature's catalog: closed solids, true captions, a fair split, and a truth that no asset gives away."""

import itertools
import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial import KDTree
from trimesh.visual.color import ColorVisuals
from trimesh.visual.texture import TextureVisuals

from redream.meshes.assets import load_mesh, scene_parts, turn_mesh
from redream.mini.catalog import (
    CATEGORIES,
    COLORS,
    LICENSE,
    MAX_WORDS,
    OBJECT_RADIUS,
    catalog_pairs,
    glb_bytes,
    make_caption,
    make_mesh,
    make_parts,
    vocabulary,
    write_catalog,
)

VIEW_WORDS = {
    "view",
    "views",
    "front",
    "side",
    "back",
    "behind",
    "rear",
    "overhead",
    "above",
    "seen",
    "facing",
    "profile",
}


@pytest.fixture(scope="module")
def catalog_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalog")
    write_catalog(folder, seed=0, num_variants=3)
    return folder


def _records(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "catalog.jsonl").read_text().splitlines()]


def _colors(mesh: trimesh.Trimesh) -> np.ndarray:
    assert isinstance(mesh.visual, ColorVisuals)
    return np.asarray(mesh.visual.vertex_colors)


def _gltf_json(path: Path) -> dict:
    content = path.read_bytes()
    return json.loads(content[20 : 20 + struct.unpack("<I", content[12:16])[0]])


@pytest.mark.parametrize("category", CATEGORIES)
def test_meshes_are_finite_small_and_fill_the_bounding_sphere(category: str) -> None:
    for seed, color in enumerate(COLORS):
        mesh = make_mesh(category, color, np.random.default_rng(seed))
        reach = np.linalg.norm(mesh.vertices, axis=-1).max()
        assert np.isfinite(mesh.vertices).all() and np.isfinite(mesh.vertex_normals).all()
        assert reach == pytest.approx(OBJECT_RADIUS, abs=1e-6)
        np.testing.assert_allclose(mesh.bounds.sum(axis=0), 0, atol=1e-6)
        assert len(mesh.faces) <= 1500


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_part_is_closed_and_wound_outwards(category: str) -> None:
    for seed in range(2):
        for part in make_parts(category, "red", np.random.default_rng(seed)):
            solid = trimesh.Trimesh(part.vertices, part.faces, process=True)
            assert solid.is_watertight and solid.is_winding_consistent
            assert solid.volume > 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_normals_point_away_from_the_faces_they_shade(category: str) -> None:
    mesh = make_mesh(category, "blue", np.random.default_rng(0))
    is_real = mesh.area_faces > 1e-9
    cosines = np.einsum("fci,fi->fc", mesh.vertex_normals[mesh.faces], mesh.face_normals)
    assert (cosines[is_real].mean(axis=1) > 0).all()


def test_the_main_colour_covers_a_third_of_the_surface() -> None:
    for category in CATEGORIES:
        for color in COLORS:
            mesh = make_mesh(category, color, np.random.default_rng(1))
            rgb = _colors(mesh)[mesh.faces[:, 0], :3] / 255.0
            # Tints and shades of a colour keep its hue, so compare directions after removing the grey.
            chroma = rgb - rgb.min(axis=1, keepdims=True)
            wanted = np.asarray(COLORS[color].rgb) - min(COLORS[color].rgb)
            match = chroma @ wanted / (np.linalg.norm(chroma, axis=1) * np.linalg.norm(wanted) + 1e-9)
            is_main = (match > 0.95) & (np.linalg.norm(chroma, axis=1) > 0.15)
            share = mesh.area_faces[is_main].sum() / mesh.area_faces.sum()
            assert share > 1 / 3, f"{category} {color}: {share:.2f}"


def test_same_generator_state_gives_same_mesh_and_another_seed_another() -> None:
    for category in CATEGORIES:
        first, again, other = (make_mesh(category, "pink", np.random.default_rng(seed)) for seed in (5, 5, 6))
        np.testing.assert_array_equal(first.vertices, again.vertices)
        np.testing.assert_array_equal(_colors(first), _colors(again))
        assert first.vertices.shape != other.vertices.shape or not np.allclose(first.vertices, other.vertices)


def test_fronts_differ_from_backs_where_a_category_has_a_front() -> None:
    for category, info in CATEGORIES.items():
        mesh = make_mesh(category, "green", np.random.default_rng(2))
        turned = mesh.vertices * [-1, -1, 1]
        distances = KDTree(mesh.vertices).query(turned)[0]
        if info.has_front:
            assert distances.max() > 0.03, category
        if category in ("table", "vase"):
            assert distances.max() < 1e-3, category


def test_unknown_category_color_and_view_are_refused_with_the_choices() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown category 'zebra'.*car"):
        make_mesh("zebra", "red", generator)
    with pytest.raises(ValueError, match="unknown color 'beige'.*turquoise"):
        make_mesh("car", "beige", generator)
    with pytest.raises(ValueError, match="unknown view 'left'.*back"):
        make_caption("car", "red", generator, view="left")
    with pytest.raises(ValueError, match="unknown color 'beige'"):
        make_caption("car", "beige", generator)


@pytest.mark.parametrize("category", CATEGORIES)
def test_captions_name_colour_and_category_in_few_known_words(category: str) -> None:
    words_known = set(vocabulary())
    generator = np.random.default_rng(3)
    for color, info in COLORS.items():
        for view in (None, "front", "side", "back", "overhead") * 12:
            caption = make_caption(category, color, generator, view)
            words = caption.replace(",", "").split()
            padded = f" {' '.join(words)} "
            assert any(f" {noun} " in padded for noun in CATEGORIES[category].synonyms), caption
            assert any(f" {word} " in padded for word in info.synonyms), caption
            assert set(words) <= words_known and len(words) <= MAX_WORDS and caption == caption.lower()
            for article, following in itertools.pairwise(words):
                assert article != ("a" if following[0] in "aeiou" else "an"), caption
            if view is None:
                assert not VIEW_WORDS & set(words), caption


def test_captions_with_a_view_say_which() -> None:
    generator = np.random.default_rng(4)
    others = {"front": "back", "side": "front", "back": "front"}
    for view, other in others.items():
        captions = [make_caption("dog", "red", generator, view).replace(",", "").split() for _ in range(300)]
        assert np.mean([view in words and "view" in words for words in captions]) > 0.8
        assert all(VIEW_WORDS & set(words) and other not in words for words in captions)


def test_a_third_of_the_pairs_is_left_out_evenly() -> None:
    included, left_out = catalog_pairs()
    assert (len(included), len(left_out)) == (128, 64)
    assert set(included) | set(left_out) == {(category, color) for category in CATEGORIES for color in COLORS}
    assert set(Counter(category for category, _ in left_out).values()) <= {2, 3}
    assert set(Counter(color for _, color in left_out).values()) == {8}


def test_catalog_holds_every_included_pair_and_no_other(catalog_folder: Path) -> None:
    truth = json.loads((catalog_folder / "truth.json").read_text())
    pairs = Counter((entry["category"], entry["color"]) for entry in truth.values())
    assert set(pairs) == set(catalog_pairs()[0]) and set(pairs.values()) == {3}
    records = _records(catalog_folder)
    uids = [record["uid"] for record in records]
    assert len(set(uids)) == len(uids) == 384 and set(uids) == set(truth)
    assert all(len(uid) == 32 and int(uid, 16) >= 0 for uid in uids)
    assert {path.stem for path in (catalog_folder / "assets").iterdir()} == set(uids)


def test_neither_catalog_nor_assets_give_the_truth_away(catalog_folder: Path) -> None:
    for record in _records(catalog_folder):
        assert set(record) == {"uid", "file", "caption", "license", "author", "source"}
        document = _gltf_json(catalog_folder / record["file"])
        assert document["asset"]["extras"] == {key: value for key, value in record.items() if key != "file"}
        assert record["license"] == LICENSE
        assert not {"yaw", "truth", "has_front", "category"} & set(json.dumps(document).replace("_", '"').split('"'))
        assert "rotation" not in document["nodes"][0] and "matrix" not in document["nodes"][0]


def test_same_seed_writes_same_bytes_and_no_temporary_file_stays(tmp_path: Path, catalog_folder: Path) -> None:
    write_catalog(tmp_path / "again", seed=0, num_variants=1)
    write_catalog(tmp_path / "other", seed=1, num_variants=1)
    again, other = (sorted((tmp_path / name / "assets").iterdir()) for name in ("again", "other"))
    assert len(again) == len(other) == 128
    assert all(path.read_bytes() == (catalog_folder / "assets" / path.name).read_bytes() for path in again)
    assert not {path.name for path in again} & {path.name for path in other}
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"assets", "catalog.jsonl", "truth.json"}
    assert {path.suffix for path in again} == {".glb"}
    lines = (tmp_path / "again" / "catalog.jsonl").read_text().splitlines()
    assert set(lines) <= set((catalog_folder / "catalog.jsonl").read_text().splitlines())


@pytest.mark.parametrize("yaw_deg", [0.0, 90.0, -37.5, 179.0])
def test_loading_a_glb_and_undoing_its_yaw_gives_the_canonical_mesh(tmp_path: Path, yaw_deg: float) -> None:
    for category in ("car", "snail", "teapot"):
        mesh = make_mesh(category, "turquoise", np.random.default_rng(8))
        path = tmp_path / f"{category}.glb"
        path.write_bytes(glb_bytes(mesh, yaw_deg, {"uid": "0"}))
        ((loaded, matrix),) = scene_parts(turn_mesh(load_mesh(path), -yaw_deg))
        np.testing.assert_allclose(trimesh.transform_points(loaded.vertices, matrix), mesh.vertices, atol=1e-6)
        np.testing.assert_array_equal(loaded.faces, mesh.faces)
        np.testing.assert_allclose(loaded.vertex_normals @ matrix[:3, :3].T, mesh.vertex_normals, atol=1e-5)
        assert isinstance(loaded.visual, TextureVisuals)
        np.testing.assert_array_equal(loaded.visual.vertex_attributes["color"], _colors(mesh))


def test_yaw_is_the_azimuth_at_which_the_front_points(tmp_path: Path) -> None:
    path = tmp_path / "teapot.glb"
    # The spout, dark inside, marks a teapot's front: yaw 90 degrees turns it from +x to +y.
    mesh = make_mesh("teapot", "red", np.random.default_rng(0))
    path.write_bytes(glb_bytes(mesh, 90.0, {}))
    ((loaded, matrix),) = scene_parts(load_mesh(path))
    is_dark = _colors(mesh)[:, :3].max(axis=1) < 40
    tip = trimesh.transform_points(loaded.vertices, matrix)[is_dark].mean(axis=0)
    assert tip[1] > 0.3 and abs(tip[0]) < 1e-5


def test_yaws_of_the_catalog_are_spread_over_the_circle(catalog_folder: Path) -> None:
    yaws = np.array([entry["yaw_deg"] for entry in json.loads((catalog_folder / "truth.json").read_text()).values()])
    assert (yaws >= -180).all() and (yaws < 180).all()
    assert np.abs(np.exp(1j * np.radians(yaws)).mean()) < 0.15
