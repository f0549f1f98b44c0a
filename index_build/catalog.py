"""The catalog: a folder of meshes and one `catalog.jsonl` that says what they are.

Each line is an object with `uid`, `file`, `caption`, `license`, `author` and `source`; `file` is relative to the folder
and stays inside it. Whatever else lies in the folder is not read.
"""

from __future__ import annotations

import json
from pathlib import Path

from redream.assets import Asset

FIELDS = ("uid", "file", "caption", "license", "author", "source")


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
        caption=record["caption"],
        source=record["source"],
        license=record["license"],
        author=record["author"],
    )
