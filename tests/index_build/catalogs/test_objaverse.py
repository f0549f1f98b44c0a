"""Objaverse from its own cache and Cap3D's rows: only its ids, each drop counted, nothing trusted."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import objaverse
import pytest

from index_build.catalogs import objaverse as objaverse_catalog
from index_build.catalogs.catalog import Catalog
from index_build.catalogs.opening import open_catalog
from redream.retrieval.licenses import attribution
from redream.settings import DownloadConfig
from tests.index_build.hostile_server import HostileServer, content, first, serving, status

DATA = Path(__file__).parents[3] / "../shared/data/captions"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/captions")

CHAIR, TABLE, LAMP, XL = "a" * 32, "kiDgUIcaC7c4YaIcLCJeq4kS7rK", "b" * 32, "c" * 64


def annotation(license_: object, **changes: object) -> dict[str, object]:
    user = {"username": "ada", "displayName": "Ada", "profileUrl": "https://sketchfab.com/ada"}
    return {"license": license_, "user": user, "viewerUrl": "https://sketchfab.com/3d-models/x", **changes}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(value).encode()))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    root = tmp_path / "objaverse"
    shards = {CHAIR: "000-001", TABLE: "000-130", LAMP: "000-001"}
    write_json(root / "object-paths.json.gz", {uid: f"glbs/{shard}/{uid}.glb" for uid, shard in shards.items()})
    write_json(root / "metadata/000-001.json.gz", {CHAIR: annotation("by"), LAMP: annotation("by-nc")})
    write_json(root / "metadata/000-130.json.gz", {TABLE: annotation("cc0")})
    return root


def open_it(cache: Path, captions: str | Path, *licenses: str, url: str = "http://127.0.0.1:9") -> Catalog:
    config = DownloadConfig(base_url=url, num_retries=1, first_pause=0.01)
    if not isinstance(captions, Path):
        path = cache.parent / "captions.csv"
        path.write_bytes(captions.encode())
        captions = path
    return open_catalog(
        "objaverse", str(captions), licenses, config=config, objaverse_dir=cache, cache_dir=cache.parent / "kept"
    )


def ids(catalog: Catalog) -> list[str]:
    return [asset.asset_id for asset in catalog.assets]


def test_captions_are_joined_to_objects_and_every_row_that_is_not_used_is_counted(cache: Path):
    rows = f"{XL},not of 1.0\r\n{TABLE},a table\r\n{TABLE.lower()},another id\r\n{CHAIR},\r\n {CHAIR} ,a chair\r\n"
    catalog = open_it(cache, rows + f"{CHAIR},again\r\n{CHAIR},three,columns\r\n")
    assert {asset.asset_id: asset.caption for asset in catalog.assets} == {CHAIR: "a chair", TABLE: "a table"}
    assert catalog.dropped == {
        "not in Objaverse 1.0": 2,
        "empty caption": 1,
        "malformed row": 1,
        "id seen before": 1,
        "object without a caption": 1,
    }


def test_assets_carry_licence_author_source_and_the_place_in_objaverses_cache(cache: Path):
    catalog = open_it(cache, f"{CHAIR},a chair\n{TABLE},a table\n")
    chair = catalog.assets[0]
    assert chair.mesh_path == str(cache / f"glbs/000-001/{CHAIR}.glb") and catalog.root == str(cache)
    assert attribution(chair) == (
        f"{CHAIR} by Ada (https://sketchfab.com/ada), CC BY, https://sketchfab.com/3d-models/x"
    )
    assert catalog.digest(chair) != catalog.digest(catalog.assets[1])


def test_a_filter_of_licences_drops_and_counts_the_others(cache: Path):
    rows = f"{CHAIR},a chair\n{TABLE},a table\n{LAMP},a lamp\n"
    catalog = open_it(cache, rows, "cc0", "by")
    assert ids(catalog) == [CHAIR, TABLE] and catalog.dropped == {"license by-nc": 1}
    with pytest.raises(ValueError, match=r"has no asset to index \(3 x license|has no asset to index .*license by"):
        open_it(cache, rows, "mit")
    with pytest.raises(ValueError, match="unknown licence 'CC0'"):
        open_it(cache, rows, "CC0")


def test_the_order_follows_objaverse_and_not_the_captions(cache: Path):
    rows = [f"{CHAIR},a chair\n", f"{TABLE},a table\n", f"{LAMP},a lamp\n"]
    assert ids(open_it(cache, "".join(rows))) == ids(open_it(cache, "".join(reversed(rows))))


def test_assets_can_be_counted_sliced_iterated_and_sent_to_another_process(cache: Path):
    catalog = open_it(cache, f"{CHAIR},a chair\n{TABLE},a table\n{LAMP},a lamp\n")
    assets = list(catalog.assets)
    assert len(catalog.assets) == 3 and catalog.assets[-1] == assets[2] and list(catalog.assets[1:]) == assets[1:]
    with pytest.raises(IndexError):
        catalog.assets[3]
    assert list(pickle.loads(pickle.dumps(catalog)).assets) == assets


def test_annotations_are_read_once_and_again_when_a_file_of_them_changes(cache: Path, monkeypatch: pytest.MonkeyPatch):
    rows = f"{CHAIR},a chair\n"
    assert open_it(cache, rows).assets[0].license == "by"
    (cache / "metadata/000-130.json.gz").unlink()  # nobody needs it any more
    assert open_it(cache, rows).assets[0].license == "by"
    write_json(cache / "metadata/000-130.json.gz", {})
    write_json(cache / "metadata/000-001.json.gz", {CHAIR: annotation("cc0")})
    assert open_it(cache, rows).assets[0].license == "cc0"


def test_a_damaged_table_of_annotations_is_made_again(cache: Path):
    rows = f"{CHAIR},a chair\n"
    before = list(open_it(cache, rows).assets)
    (table,) = (cache.parent / "kept").glob("*.parquet")
    table.write_bytes(table.read_bytes()[:500])
    assert list(open_it(cache, rows).assets) == before


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        "text",
        {},
        annotation(7),
        annotation("by\x1b[31m\n"),
        annotation("by", user=None, viewerUrl=None),
        annotation("by", user={"displayName": "\ud800\u202e" + "x" * 9_999, "profileUrl": "javascript:alert(1)"}),
        annotation("by", viewerUrl="https://a b\n"),
    ],
)
def test_an_annotation_may_hold_anything_and_stays_one_printable_line(cache: Path, hostile: object):
    write_json(cache / "metadata/000-001.json.gz", {CHAIR: hostile})
    asset = open_it(cache, f"{CHAIR},a chair\n").assets[0]
    text = attribution(asset)
    assert text.isprintable() and len(text) < 600 and asset.source.startswith("https://sketchfab.com/3d-models/")
    assert "javascript" not in text


def test_object_paths_that_lead_elsewhere_are_counted_and_not_followed(cache: Path):
    bad = {"d" * 32: "../../etc/passwd", "e" * 32: f"glbs/000-001/{CHAIR}.glb", "f" * 32: 7}
    write_json(cache / "object-paths.json.gz", {CHAIR: f"glbs/000-001/{CHAIR}.glb", **bad})
    catalog = open_it(cache, f"{CHAIR},a chair\n{'d' * 32},evil\n")
    assert ids(catalog) == [CHAIR]
    assert catalog.dropped == {"object with an unusable path": 3, "not in Objaverse 1.0": 1}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        yield server


def test_files_that_are_missing_or_cut_off_are_downloaded_and_the_objaverse_package_reads_them(
    cache: Path, server: HostileServer, monkeypatch: pytest.MonkeyPatch
):
    whole = (cache / "metadata/000-001.json.gz").read_bytes()
    paths = (cache / "object-paths.json.gz").read_bytes()
    server.answers["/metadata/000-001.json.gz"] = first(status(503), content(whole))
    server.answers["/object-paths.json.gz"] = content(paths)
    (cache / "metadata/000-001.json.gz").write_bytes(whole[:-9])  # as the package leaves it when it is stopped
    (cache / "object-paths.json.gz").unlink()
    assert ids(open_it(cache, f"{CHAIR},a chair\n", url=server.url)) == [CHAIR]
    assert "/metadata/000-130.json.gz" not in server.asked, "what is there and whole is not asked for"
    monkeypatch.setattr(objaverse, "_VERSIONED_PATH", str(cache))
    assert set(objaverse.load_uids()) == {CHAIR, TABLE, LAMP}
    assert objaverse.load_annotations([CHAIR])[CHAIR]["license"] == "by"


def test_what_cannot_be_read_or_had_is_refused_in_one_line(cache: Path, server: HostileServer, tmp_path: Path):
    with pytest.raises(ValueError, match="objaverse needs captions"):
        open_catalog("objaverse")
    with pytest.raises(ValueError, match="there is no caption file nowhere.csv"):
        open_it(cache, Path("nowhere.csv"))
    (cache / "metadata/000-130.json.gz").unlink()
    with pytest.raises(ValueError, match=r"metadata/000-130.json.gz from 127.0.0.1: it is not there") as refusal:
        open_it(cache, f"{CHAIR},a chair\n", url=server.url)
    assert "\n" not in str(refusal.value)
    write_json(cache / "metadata/000-130.json.gz", ["no object"])
    with pytest.raises(ValueError, match="is JSON, but no object"):
        open_it(cache, f"{CHAIR},a chair\n", url=server.url)


@needs_data
def test_real_samples_of_all_files_are_read_together(tmp_path: Path):
    root = tmp_path / "objaverse"
    root.mkdir()
    (root / "object-paths.json.gz").write_bytes((DATA / "object-paths.sample.json.gz").read_bytes())
    paths = json.loads(gzip.decompress((DATA / "object-paths.sample.json.gz").read_bytes()))
    for shard in {path.split("/")[1] for path in paths.values()}:
        write_json(root / f"metadata/{shard}.json.gz", {})
    real = (DATA / "metadata_000-023.sample.json.gz").read_bytes()
    (root / "metadata/000-023.json.gz").write_bytes(real)
    (known,) = json.loads(gzip.decompress(real))
    captions = (DATA / "cap3d_v1_sample.csv").read_bytes() + f"{known},a staircase\r\n".encode()
    captions += b"kiDgUIcaC7c4YaIcLCJeq4kS7rK,a legacy id\r\n"
    (tmp_path / "captions.csv").write_bytes(captions)
    catalog = open_it(root, tmp_path / "captions.csv")
    assert len(catalog.assets) == 7 and catalog.dropped["not in Objaverse 1.0"] == 34
    stairs = next(asset for asset in catalog.assets if asset.asset_id == known)
    assert attribution(stairs) == (
        f"{known} by Alan Grice Staircase Co Ltd (https://sketchfab.com/agrice), CC BY, "
        f"https://sketchfab.com/3d-models/{known}"
    )


def test_captions_of_the_hub_name_a_data_set_a_revision_and_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked = []

    def download(repo_id: str, filename: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((repo_id, filename, repo_type, revision))
        return str(tmp_path / filename)

    monkeypatch.setattr(objaverse_catalog.huggingface_hub, "hf_hub_download", download)
    objaverse_catalog.locate_captions("tiange/Cap3D")
    objaverse_catalog.locate_captions("tiange/Cap3D@0123abc:misc/other.csv")
    default = "Cap3D_automated_Objaverse_full.csv"
    assert asked == [
        ("tiange/Cap3D", default, "dataset", None),
        ("tiange/Cap3D", "misc/other.csv", "dataset", "0123abc"),
    ]


def test_captions_of_the_hub_that_cannot_be_had_are_refused_in_one_line():
    with pytest.raises(ValueError, match="captions tiange/Cap3D: .* cannot be had from the hub") as refusal:
        objaverse_catalog.locate_captions("tiange/Cap3D")  # tests are offline
    assert "\n" not in str(refusal.value)
