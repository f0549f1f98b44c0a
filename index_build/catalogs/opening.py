"""Open a catalog: one door for Objaverse, a folder of meshes and the embedded miniature.

A catalog of one's own making is a folder with `catalog.jsonl`: each line is an object with `uid`, `file`, `caption`,
`license`, `author` and `source`; `file` is relative to the folder and stays inside it. Whatever else lies in the folder
is not read. Any other folder is searched for meshes (`folder.py`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from index_build.catalogs.catalog import Catalog, allowed_assets
from index_build.catalogs.digests import FileDigest
from index_build.catalogs.folder import open_folder
from redream.mini import CATALOG_SEED, VARIANTS_PER_PAIR
from redream.records import Asset, UpAxis
from redream.retrieval.licenses import check_licenses
from redream.settings import DownloadConfig
from redream.weights import default_cache_dir

FIELDS = ("uid", "file", "caption", "license", "author", "source")


def open_catalog(
    name: str,
    captions: str | None = None,
    licenses: tuple[str, ...] = (),
    *,
    config: DownloadConfig = DownloadConfig(),  # noqa: B008  (frozen)
    objaverse_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    up_axis: UpAxis = "+Y",
) -> Catalog:
    """Open a catalog.

    Args:
        name: "objaverse", "mini", or a folder.
        captions: a CSV in Cap3D's form or with a header; for Objaverse also a hub id, `owner/name[@revision][:file]`.
        licenses: codes such as "cc0" and "by"; assets with any other licence are dropped. Empty: all pass.
        objaverse_dir: the `objaverse` package's cache; by default its own, `~/.objaverse/hf-objaverse-v1`.
        cache_dir: where digests and what is read off Objaverse's annotations are kept; `~/.cache/redream` by default.
        up_axis: of a folder's meshes for which its captions name none.

    Raises:
        ValueError: there is no such catalog, its files are unusable, or no asset is left.
    """
    check_licenses(licenses)
    cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
    # Each kind of catalog has libraries of its own, which the others need not wait for.
    if name == "objaverse":
        from index_build.catalogs.objaverse import open_objaverse

        catalog = open_objaverse(captions, licenses, config, objaverse_dir, cache_dir)
    elif name == "mini" or (Path(name) / "catalog.jsonl").is_file():
        if captions:
            raise ValueError(f"catalog {name} has captions of its own; leave {captions} out")
        catalog = _listed(name, mini_folder(cache_dir) if name == "mini" else Path(name), licenses, cache_dir)
    elif Path(name).is_dir():
        catalog = open_folder(name, captions, licenses, cache_dir, up_axis)
    else:
        raise ValueError(f"there is no catalog {name!r}; give objaverse, mini, or a folder of meshes")
    if not catalog.assets:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in catalog.dropped.items()) or "it is empty"
        raise ValueError(f"catalog {name} has no asset to index ({reasons})")
    return catalog


def mini_folder(cache_dir: Path) -> Path:
    """Return the miniature's catalog, made where it is missing; its name follows the code that makes it."""
    from redream.mini import catalog

    code = Path(catalog.__file__)
    source = b"".join(path.read_bytes() for path in (code, *sorted((code.parent / "shapes").glob("*.py"))))
    folder = cache_dir / f"mini-{hashlib.sha256(source).hexdigest()[:16]}"
    if not folder.is_dir():
        cache_dir.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".mini.", dir=cache_dir))
        try:
            catalog.write_catalog(aside, seed=CATALOG_SEED, num_variants=VARIANTS_PER_PAIR)
            aside.chmod(0o755)  # mkdtemp's folder is private
            try:
                aside.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process has made the same meanwhile
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _listed(name: str, folder: Path, licenses: tuple[str, ...], cache_dir: Path) -> Catalog:
    dropped: Counter[str] = Counter()
    assets = allowed_assets(read_catalog(folder), licenses, dropped)
    folder = folder.resolve()
    digest = FileDigest(folder=str(folder), cache=str(cache_dir / "digests.sqlite"))
    return Catalog(name=name, root=str(folder), assets=assets, dropped=dict(dropped), digest=digest)


def read_catalog(folder: str | Path) -> list[Asset]:
    """Read the assets of a catalog in its order; mesh paths are absolute, and every mesh is there.

    Raises:
        ValueError: the catalog or a line of it is wrong; the message names the line.
    """
    folder = Path(folder).resolve()
    path = folder / "catalog.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} is no catalog: it has no catalog.jsonl")
    assets: dict[str, Asset] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path.name} line {number}"
        asset = _read_line(line, place, folder)
        if asset.asset_id in assets:
            raise ValueError(f"{place}: uid {asset.asset_id!r} occurs twice; every asset needs its own")
        assets[asset.asset_id] = asset
    if not assets:
        raise ValueError(f"{path} lists no assets")
    return list(assets.values())


def _read_line(line: bytes, place: str, folder: Path) -> Asset:
    try:
        record = json.loads(line)
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{place}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{place}: {str(record)[:60]} is not an object with {', '.join(FIELDS)}")
    for name in FIELDS:
        if not isinstance(record.get(name), str):
            raise ValueError(f"{place}: {name!r} is {record.get(name)!r}; it must be a text")
    for name in ("uid", "file", "caption"):
        if not record[name].strip():
            raise ValueError(f"{place}: {name!r} is empty")
    mesh_path = (folder / record["file"]).resolve()
    if not mesh_path.is_relative_to(folder):
        raise ValueError(f"{place}: file {record['file']!r} lies outside the catalog's folder")
    if not mesh_path.is_file():
        raise ValueError(f"{place}: file {record['file']!r} does not exist")
    return Asset(
        asset_id=record["uid"],
        mesh_path=str(mesh_path),
        border=str(folder),
        caption=record["caption"],
        source=record["source"],
        license=record["license"],
        author=record["author"],
    )
