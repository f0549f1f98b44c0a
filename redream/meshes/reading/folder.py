"""The files that a mesh file is made of: itself, what is in its own folder, and pictures a little further out.

Pictures may be in the folder next door, as Sketchfab's downloads (`source/`, `textures/`) and ShapeNet have them, but
inside a border: a catalog's root, or else one level above the mesh. Nothing outside is read, whatever names it.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from redream.meshes.reading.names import Named
from redream.meshes.reading.refusal import Refused
from redream.meshes.reading.textures import open_image
from redream.settings import MeshLimits

MAX_FILES = 1_000  # that belong to one mesh
MAX_LIBRARIES = 64  # of materials, each of which is read
MAX_LOOKUPS = 2_000  # of names, each of which costs some looks at the disk
MAX_WORDS = 16  # libraries in one line


def read_whole_file(path: Path, limits: MeshLimits, what: str = "") -> bytes:
    """Read a file of the allowed size; `what` names it where it is not the mesh file itself."""
    if not path.is_file():
        raise Refused(f"{what}is not a regular file" if path.exists() else f"{what}does not exist (looked for {path})")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # reading reserves what it is asked for, whatever is there
            content = file.read(min(size, limits.file_bytes) + 1)
    except OSError as error:
        raise Refused(f"{what}cannot be read ({error.strerror})") from error
    if not content:
        raise Refused(f"{what}is empty (0 bytes)")
    if len(content) > limits.file_bytes:
        raise Refused(f"{what}has {path.stat().st_size:,} bytes, more than the allowed {limits.file_bytes:,}")
    return content


class Folder:
    """Serves the files beside a mesh file to its reader; `border` is the outermost folder of its pictures."""

    def __init__(self, path: Path, limits: MeshLimits, border: Path | None = None) -> None:
        self._folder = path.parent.resolve()
        self._border = self._folder.parent if border is None else border.resolve()
        self.limits = limits
        self._contents: dict[Path, bytes] = {}
        self._entries: dict[Path, dict[str, list[str]]] = {}  # of folders, by their names in one case and form

    def find(self, uri: str) -> Path:
        """Return the path that `uri` names, which may not exist, or refuse it where it leaves the folder."""
        name = unquote(uri).strip()
        is_foreign = "://" in name or name.startswith(("/", "\\", "~")) or ":" in name.split("/")[0] or "\0" in name
        if is_foreign or ".." in name.replace("\\", "/").split("/"):
            raise Refused(f"refers to {uri[:200]!r}, which is outside its own folder")
        target = (self._folder / name).resolve()
        if not target.is_relative_to(self._folder):
            raise Refused(f"refers to {uri[:200]!r}, which leads outside its own folder")
        return target

    def read(self, uri: str) -> bytes:
        """Read what a URI names: a file of the folder, or the data in the URI itself."""
        if uri[:5].lower() == "data:":
            return data_of(uri)
        path = self.find(uri)
        if path not in self._contents:
            self._contents[path] = read_whole_file(path, self.limits, f"needs its file {uri[:200]!r}, which ")
        return self._contents[path]

    def picture(self, path: Path) -> bytes:
        """Read a picture that `files` found, or raise `Refused`."""
        if path not in self._contents:
            content = read_whole_file(path, self.limits, f"needs its file {path.name[:200]!r}, which ")
            open_image(content, self.limits)  # trimesh would open images of any kind and size
            self._contents[path] = content
        return self._contents[path]

    def files(self, named: Named) -> list[Path]:
        """Return the files that a name stands for: none, one, or several material libraries."""
        for spelling in named.spellings:
            if (path := self._located(spelling, named)) is not None:
                return [path]
        if named.kind != "library":
            return []
        found = (self._located(word, named) for word in named.spellings[0].split()[:MAX_WORDS])
        return [path for path in found if path is not None]

    def _located(self, name: str, named: Named) -> Path | None:
        """Find a file by the spelling of another system: its separators, letter case and absolute paths."""
        if "\0" in name:
            return None
        if named.kind == "uri":
            candidates: Iterator[Path] = iter([self._folder / name])
        else:
            candidates = self._spelled(name)
        try:
            paths = (Path(os.path.normpath(path)) for path in candidates)
            return next((path for path in paths if self._may_read(path, named)), None)
        except (OSError, ValueError, RuntimeError):  # no name that a file can have, or links in a circle
            return None

    def _may_read(self, path: Path, named: Named) -> bool:
        if not path.is_file():  # nor is a pipe opened, which might never answer
            return False
        target = path.resolve()
        is_near = named.kind == "picture" and target.is_relative_to(self._border)
        return target.is_relative_to(self._folder) or (is_near and self._is_picture(path))

    def _spelled(self, name: str) -> Iterator[Path]:
        yield self._folder / name
        parts = name.replace("\\", "/").split("/")
        if _FOREIGN.match(name):
            parts = parts[-1:]  # what another machine calls the file may be beside the mesh
        yield self._folder.joinpath(*parts)
        path: Path | None = self._folder
        for part in parts:
            path = path and self._in_any_case(path, part)
        if path is not None:
            yield path

    def _in_any_case(self, folder: Path, name: str) -> Path | None:
        """Return the one entry of a folder whose name differs in nothing but letter case and Unicode form."""
        if name in ("", ".", "..") or (folder / name).exists():
            return folder / name
        if folder not in self._entries:
            self._entries[folder] = entries = {}
            with suppress(OSError):
                for entry in os.listdir(folder):
                    entries.setdefault(_alike(entry), []).append(entry)
        same = self._entries[folder].get(_alike(name), [])
        return folder / same[0] if len(same) == 1 else None

    def _is_picture(self, path: Path) -> bool:
        """Tell by its first bytes; nothing else outside of the mesh's own folder is read or copied."""
        try:
            with path.open("rb") as file:
                return file.read(8).startswith(_PICTURES)
        except OSError:
            return False


_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")
_FOREIGN = re.compile(r"[/\\~]|[A-Za-z]:|\w+://")


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def named_files(path: Path, names: Callable[[Path], list[Named]], border: Path | None = None) -> list[Path]:
    """Return a mesh file and the files that it names and those name, as far as they are there and may be read.

    What is beyond `MAX_FILES`, `MAX_LIBRARIES` or `MAX_LOOKUPS` is left out: no mesh needs as many.

    Args:
        names: reads the names in one file.
    """
    folder, found = Folder(path, MeshLimits(), border), [path]
    naming = [path]
    num_lookups = 0
    for current in naming:  # grows meanwhile
        for named in names(current):
            num_lookups += MAX_WORDS if named.kind == "library" else 1
            if len(found) >= MAX_FILES or num_lookups > MAX_LOOKUPS:
                return found
            new = [file for file in folder.files(named) if file not in found]
            found += new
            naming += [file for file in new if file.suffix.lower() == ".mtl"][: MAX_LIBRARIES + 1 - len(naming)]
    return found


def data_of(uri: str) -> bytes:
    """Decode a data URI (RFC 2397)."""
    head, _, data = uri.partition(",")
    if not head.endswith(";base64"):
        return unquote_to_bytes(data)
    try:
        return base64.b64decode(unquote(data), validate=True)
    except binascii.Error as error:
        raise Refused(f"has a data URI that is no base64 ({error})") from error
