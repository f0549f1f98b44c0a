"""Malformed and hostile files that this project did not make: each does what its row in `cases.csv` expects."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from redream.meshes.assets import AssetError, load_mesh, normalize_mesh
from redream.meshes.scenes import scene_parts, scene_vertices
from redream.settings import MeshLimits

FOLDER = Path(__file__).parents[3].parent / "shared" / "data" / "bad"
# The rows ask for less than 1 GB, or 2 GB for images; here every file has to do with half.
LIMITS = MeshLimits(memory_bytes=512 * 2**20, seconds=30)

# Rows that are neither refused nor plainly opened: how many triangles come out, and what must be said.
OPENED = {
    "00_control_ok.glb": (4, ""),
    "20_denormal_size.glb": (4, ""),
    "22_far_from_origin.glb": (4, "rounded"),
    "30_deep_nodes_5000.glb": (4, ""),
    "50_wrong_mime.glb": (2, ""),
    "61_glb_named.gltf": (4, ""),
    "73_-rf.glb": (4, ""),
    "74_UPPER.GLB": (4, ""),
    "75_no_extension": (4, ""),
    "76_duplicate_faces_60000.glb": (60_000, ""),
    "78_flat_single_triangle.glb": (1, "flat"),
    "79_needle_1e6.glb": (4, ""),
    "90_obj_latin1.obj": (1, "flat"),
    "91_obj_100_gon.obj": (98, "flat"),
    "from_the_wild/DenseSphere_draco_quantized.glb": (30_720, ""),
}
# What the sentence must say, for the rows that ask for a particular cause or hide one behind another.
CAUSES = {
    "02_truncated_in_json.glb": "cut off",
    "07_header_length_too_short.glb": "runs over",
    "09_bin_chunk_4gb.glb": "runs over",
    "12_missing_view.glb": "bufferViews[99]",
    "13_negative_count.glb": "-4",
    "16_nan_position.glb": "not finite",
    "17_inf_position.glb": "not finite",
    "18_all_zero_positions.glb": "every vertex at the origin",
    "19_collinear_zero_area.glb": "zero area",
    "28_cyclic_nodes.glb": "own ancestor",
    "29_self_child.glb": "own ancestor",
    "44_missing_bin.gltf": "does not exist",
    "45_declares_4gb.glb": "declares 4,294,967,296 bytes",
    "46_accessor_without_view_1e9.glb": "1,000,000,000",
    "47_billion_laughs_nodes.glb": "two parents",
    "48_image_bomb_30000.glb": "30000 x 30000 pixels",
    "49_image_bomb_header_only.glb": "60000 x 60000 pixels",
    "51_image_is_text.glb": "no image",
    "53_image_svg.glb": "no image",
    "54_zip_renamed.glb": "not a GLB",
    "56_html_error_page.glb": "download probably failed",
    "63_requires_VENDOR_unknown_thing.glb": "VENDOR_unknown_thing",
    "66_sparse_out_of_range.glb": "replaces 9 elements",
    "67_bad_stride.glb": "stride of 3",
    "80_fully_transparent.glb": "invisible",
    "81_missing_texture_index.glb": "textures[5]",
    "87_obj_points_only.obj": "no triangles",
    "92_ply_count_lies.ply": "cut off",
    "from_the_wild/market_donut.gltf": "char 716529",
}
FOREIGN = ("41_", "42_")  # URIs out of the folder


def rows() -> list[dict[str, str]]:
    if not (FOLDER / "cases.csv").is_file():
        return [{"case": "absent", "open": "", "expected": ""}]
    with (FOLDER / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["case"])
def test_bad_files_do_what_their_row_expects(row: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    if row["case"] == "absent":
        pytest.skip("the shared bad files are not on this machine")
    path = FOLDER / row["open"]
    load_mesh(FOLDER / "00_control_ok.glb")  # the start of the reader is not the file's time
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        if row["open"] in OPENED:
            _opens(path, *OPENED[row["open"]], caplog)
        else:
            _is_refused(path, row)
    assert time.monotonic() - started < LIMITS.seconds


def _opens(path: Path, num_triangles: int, remark: str, caplog: pytest.LogCaptureFixture) -> None:
    scene = normalize_mesh(load_mesh(path, LIMITS))
    vertices = scene_vertices(scene)
    assert sum(len(mesh.faces) for mesh, _ in scene_parts(scene)) == num_triangles
    assert np.isfinite(vertices).all()
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1).max(), 0.5, rtol=1e-5)
    assert remark in caplog.text


def _is_refused(path: Path, row: dict[str, str]) -> None:
    with pytest.raises(AssetError) as error:
        load_mesh(path, LIMITS)
    message = str(error.value)
    assert path.name in message
    assert "\n" not in message
    assert "error" in row["expected"] or "renders empty" in row["expected"] or "as above" in row["expected"]
    assert "crashes" not in message
    assert CAUSES.get(row["open"], "") in message
    if row["case"].startswith(FOREIGN):
        assert "outside its own folder" in message


def test_the_batch_goes_on_after_every_bad_file() -> None:
    if not FOLDER.is_dir():
        pytest.skip("the shared bad files are not on this machine")
    for row in rows():
        try:
            load_mesh(FOLDER / row["open"], LIMITS)
        except AssetError:
            continue
    assert len(scene_parts(load_mesh(FOLDER / "00_control_ok.glb", LIMITS))) == 1


def test_a_quantised_draco_sphere_has_its_true_size() -> None:
    path = FOLDER / "from_the_wild" / "DenseSphere_draco_quantized.glb"
    if not path.is_file():
        pytest.skip("the shared bad files are not on this machine")
    radii = np.linalg.norm(scene_vertices(load_mesh(path)), axis=1)
    assert radii.max() < 1.1
    assert radii.min() > 0.8
