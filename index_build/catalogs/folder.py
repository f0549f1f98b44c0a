"""A folder of one's own meshes as a catalog: every GLB, glTF, OBJ, PLY and STL file below it, each an asset.

Captions, licences, authors and sources come from a CSV, else from glTF's `asset.extras` (as Sketchfab writes them) and
`asset.copyright`, else the caption is the file's name in words. An asset's id is the CSV's `uid`, else the file's path
in the folder: never anything inside the file, which its next export would change.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from index_build.catalogs.captions import MAX_SHOWN, CaptionRow, clean_text, read_captions, refuse_if_most
from index_build.catalogs.catalog import Catalog, allowed_assets
from index_build.catalogs.digests import FileDigest
from index_build.catalogs.gltf_head import gltf_json
from redream.records import MESH_SUFFIXES, Asset, UpAxis

logger = logging.getLogger(__name__)

MAX_NAMED = 5  # captions that match no file
# File names that say nothing, as Sketchfab's and Blender's exports have them; the folder's name then speaks.
_BLANK_NAMES = {"scene", "model", "mesh", "object", "untitled", "source", "output", "export"}


def open_folder(
    folder: str | Path, captions: str | None, licenses: tuple[str, ...], cache_dir: Path, up_axis: UpAxis = "+Y"
) -> Catalog:
    """Find the meshes of a folder and describe them; none is opened beyond the JSON of a glTF file.

    Args:
        up_axis: of files for which the CSV names none.
    """
    dropped: Counter[str] = Counter()
    root = Path(folder).resolve()
    files = sorted(mesh_files(root, dropped))
    rows = _rows_by_file(files, root, Path(captions), dropped, up_axis) if captions else {}
    assets: dict[str, Asset] = {}
    for file in files:
        asset = _described(root, file, rows.get(file), up_axis)
        if asset.asset_id in assets:
            dropped["id of another file"] += 1
        elif not asset.caption:
            dropped["no caption and no name"] += 1
        else:
            assets[asset.asset_id] = asset
    kept = allowed_assets(list(assets.values()), licenses, dropped)
    digest = FileDigest(folder=str(root), cache=str(cache_dir / "digests.sqlite"))
    return Catalog(name=str(folder), root=str(root), assets=kept, dropped=dict(dropped), digest=digest)


def mesh_files(root: Path, dropped: Counter[str]) -> Iterator[str]:
    """Yield the relative paths of a folder's meshes, and count what looks like one and is not used by reason."""

    def unreadable(error: OSError) -> None:
        dropped["unreadable folder"] += 1

    for place, folders, names in os.walk(root, onerror=unreadable):
        for name in list(folders):
            reason = "hidden folder" if _is_hidden(name) else ""
            if os.path.islink(os.path.join(place, name)):
                reason = "linked folder"
            if reason:
                dropped[reason] += 1
                folders.remove(name)
        for name in names:
            if os.path.splitext(name)[1].lower() not in MESH_SUFFIXES:
                continue
            path = Path(place, name)
            if reason := _unusable(path, root):
                dropped[reason] += 1
            else:
                yield path.relative_to(root).as_posix()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _unusable(path: Path, root: Path) -> str:
    """Return why a file is no asset, or ""."""
    if _is_hidden(path.name):
        return "hidden file"
    if not path.relative_to(root).as_posix().isprintable():  # control characters, or bytes that are no UTF-8
        return "unprintable name"
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            return "broken link"
        if not target.is_relative_to(root):
            return "link out of the folder"
        inside = target.relative_to(root)
        if target.suffix.lower() in MESH_SUFFIXES and not any(map(_is_hidden, inside.parts)):
            return "link to a file that is listed"
    if not path.is_file():
        return "no regular file"
    if not os.access(path, os.R_OK):
        return "unreadable file"
    return "empty file" if path.stat().st_size == 0 else ""


def _rows_by_file(
    files: list[str], root: Path, captions: Path, dropped: Counter[str], up_axis: UpAxis
) -> dict[str, CaptionRow]:
    """Match rows to files by path, relative to the CSV or to the folder, else by uid: a file's path or name."""
    by_name: dict[str, list[str]] = {}
    for file in files:
        without_suffix = os.path.splitext(file)[0]
        for name in {file, without_suffix, os.path.basename(file), os.path.basename(without_suffix)}:
            for spelling in {name, _alike(name)}:
                by_name.setdefault(spelling, []).append(file)
    rows: dict[str, CaptionRow] = {}
    num_wrong, shown = 0, []
    for row in read_captions(captions, dropped, up_axis):
        matches = next((found for name in _names(row, captions, root) if (found := by_name.get(name))), [])
        if len(matches) == 1 and matches[0] not in rows:
            rows[matches[0]] = row
            continue
        reason = "second caption of a file" if len(matches) == 1 else "caption of several files"
        reason = reason if matches else "caption of no file"
        dropped[reason] += 1
        num_wrong += 1
        if len(matches) != 1 and num_wrong <= MAX_NAMED:
            logger.warning(_unmatched(row, matches, files))
        if len(shown) < MAX_SHOWN:
            shown.append(f"{clean_text(row.path or row.uid, 80)!r}: {reason}")
    refuse_if_most(captions, num_wrong, len(rows), shown)
    return rows


def _names(row: CaptionRow, captions: Path, root: Path) -> Iterator[str]:
    """Yield the names by which a row may mean a file, the surest first; they are compared, never opened."""
    for spelling in (lambda name: name, _alike):
        path = spelling(row.path)
        if path:
            for place in (captions.resolve().parent, root):
                yield spelling(os.path.relpath(os.path.normpath(place / path), root))
        if row.uid:
            yield spelling(row.uid)
    if row.path:  # on another machine, or in another folder
        yield _alike(row.path).rpartition("/")[2]


def _alike(name: str) -> str:
    """Return a name without what systems and spreadsheets change: separators, Unicode form, letter case."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _unmatched(row: CaptionRow, matches: list[str], files: list[str]) -> str:
    """Say which files a row's name means, or which is nearest to it."""
    name = clean_text(row.path or row.uid, 80)
    if matches:
        return f"a caption of {name!r} is left out: that could be {' or '.join(matches[:3])}"
    names = {os.path.basename(file): file for file in reversed(files)}
    close = difflib.get_close_matches(os.path.basename(name), names, n=1)
    return f"a caption of {name!r} is left out: there is no such file" + (
        f"; did you mean {names[close[0]]}?" if close else ""
    )


def _described(root: Path, file: str, row: CaptionRow | None, up_axis: UpAxis) -> Asset:
    row = row or CaptionRow(uid="", caption="")
    said = _said_of_itself(root / file) if file.lower().endswith((".glb", ".gltf")) else {}
    return Asset(
        asset_id=row.uid or file,
        mesh_path=str(root / file),
        border=str(root),
        caption=row.caption or said.get("caption", "") or words_of(file),
        source=row.source or said.get("source", "") or file,
        license=row.license or said.get("license", ""),
        author=row.author or said.get("author", ""),
        up_axis=row.up_axis or up_axis,
        front_axis=row.front_axis,
    )


def _said_of_itself(path: Path) -> dict[str, str]:
    """Read `asset.extras` and `asset.copyright`, whatever they may hold."""
    said: Any = gltf_json(path).get("asset")
    said = said if isinstance(said, dict) else {}
    extras: Any = said.get("extras") if isinstance(said.get("extras"), dict) else {}
    copyright_ = _text(said.get("copyright"))
    return {
        "caption": next(filter(None, (_text(extras.get(key)) for key in ("caption", "description", "title"))), ""),
        "source": _text(extras.get("source")),
        "license": _text(extras.get("license")) or copyright_,
        "author": _text(extras.get("author")) or copyright_,
    }


def _text(value: object) -> str:
    return clean_text(value, 500) if isinstance(value, str) else ""


def words_of(file: str) -> str:
    """Read a file's name as words: `props/RedTruck_v2.glb` is "red truck v2", `red-truck/scene.gltf` "red truck"."""
    path = Path(file)
    name = path.parent.name if path.stem.lower() in _BLANK_NAMES and path.parent.name else path.stem
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.sub(r"[\W_]+", " ", split).lower().split())
