"""The colours of OBJ, PLY and STL files, put into the one form that trimesh reads without losing any.

trimesh reads one material library, whose lines may hold no options and whose names must be those of files here. What
it gets is an OBJ whose materials are numbered and a library of our own, read from all that the file names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from redream.meshes.reading.folder import Folder, read_whole_file
from redream.meshes.reading.names import line_text, mtl_lines, obj_libraries, picture_named
from redream.meshes.reading.refusal import Refused

logger = logging.getLogger(__name__)

LIBRARY = "library"  # our own, which trimesh asks for
PICTURE = "picture"  # in front of the number of a material
MAX_NAMED = 3  # materials in one warning

_OBJ_LINE = re.compile(rb"^[ \t]*(?:(usemtl)[ \t]*(.*?)[ \t\r]*|(?:mtllib\b|#).*)$", re.IGNORECASE | re.MULTILINE)
_FACE = np.dtype([("corners", "<f4", 12), ("color", "<u2")])  # of a binary STL
_COLOR = rb"(?m)^(property[ \t]+\S+[ \t]+)%s([ \t\r]*)$"  # a line of a PLY's head
_LONG = {b"r": b"red", b"g": b"green", b"b": b"blue", b"a": b"alpha"}
GREY = (179, 179, 179, 255)  # sRGB of what has no colour of its own, beside others that have
_MAGICS = re.compile(rb"COLOR=(....)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """A material as far as it is drawn; colours are those of the file, in [0, 1]."""

    name: str
    diffuse: tuple[float, ...] | None = None
    picture: Path | None = None

    @property
    def is_plain(self) -> bool:
        return self.diffuse is None and self.picture is None


class ObjColors:
    """The materials of an OBJ, as trimesh's `resolver`."""

    def __init__(self, content: bytes, folder: Folder) -> None:
        self._folder = folder
        self._materials: dict[str, Material] = {}
        for library in _libraries(content, folder):
            for material in _materials(library, folder):
                self._materials.setdefault(material.name, material)
        self._numbers = {name: number for number, name in enumerate(self._materials)}
        self._by_case = {name.casefold(): name for name in self._materials}
        self._unknown: dict[str, int] = {}

    def plain(self, content: bytes) -> bytes:
        """Return the OBJ with numbered materials and one library."""

        def numbered(match: re.Match[bytes]) -> bytes:
            if not match[1]:
                return b""
            name = line_text(match[2])
            known = name if name in self._numbers else self._by_case.get(name.casefold())
            if known is None:
                if name not in self._unknown:
                    self._unknown[name] = content.count(b"\n", 0, match.start()) + 1
                return b"usemtl none"
            return b"usemtl %d" % self._numbers[known]

        plain = _OBJ_LINE.sub(numbered, content)
        if self._unknown:
            line = min(self._unknown.values())
            shown = ", ".join(repr(name) for name in list(self._unknown)[:MAX_NAMED])
            logger.warning(
                "line %d: no library here has the material %s; what uses it is drawn grey%s",
                line, shown, f" ({len(self._unknown)} such materials)" if len(self._unknown) > 1 else "",
            )  # fmt: skip
        return f"mtllib {LIBRARY}\n".encode() + plain

    def get(self, name: str) -> bytes:
        """Give trimesh our library, or the picture of a material."""
        if name == LIBRARY:
            return "".join(self._lines()).encode()
        material = list(self._materials.values())[int(name.removeprefix(PICTURE))]
        assert material.picture is not None
        return self._folder.picture(material.picture)

    def __getitem__(self, name: str) -> bytes:
        return self.get(name)

    def _lines(self) -> Iterator[str]:
        for number, material in enumerate(self._materials.values()):
            if material.is_plain:
                continue
            red, green, blue = material.diffuse or (1.0, 1.0, 1.0)
            yield f"newmtl {number}\nKd {red} {green} {blue}\n"
            if material.picture is not None:
                yield f"map_Kd {PICTURE}{number}\n"


def _libraries(content: bytes, folder: Folder) -> list[Path]:
    found: list[Path] = []
    for named in obj_libraries(content):
        libraries = folder.files(named)
        if not libraries:
            logger.warning("line %d: its materials %r are not here; drawn without them", named.line, named.spellings[0])
        found += [library for library in libraries if library not in found]
    return found


def _materials(library: Path, folder: Folder) -> Iterator[Material]:
    """Read a library, with a warning for each line whose colour is lost."""
    material: Material | None = None
    for number, keyword, rest in mtl_lines(read_whole_file(library, folder.limits, f"its {library.name} ")):
        if keyword == "newmtl":
            if material is not None:
                yield material
            material = Material(name=rest)
        elif material is not None and keyword == "kd":
            diffuse = _color(rest)
            if diffuse is None:
                logger.warning("%s line %d: the colour 'Kd %s' cannot be read", library.name, number, rest)
            material = replace(material, diffuse=diffuse)
        elif material is not None and keyword == "map_kd":
            material = replace(material, picture=_picture(library, number, rest, folder))
    if material is not None:
        yield material


def _color(text: str) -> tuple[float, ...] | None:
    try:
        values = [min(max(float(word), 0.0), 1.0) for word in text.split()]
    except ValueError:  # a spectrum, which nobody writes
        return None
    return tuple(values * 3) if len(values) == 1 else tuple(values[:3]) if len(values) >= 3 else None


def _picture(library: Path, number: int, rest: str, folder: Folder) -> Path | None:
    found = folder.files(picture_named(rest, number))
    cause = "there is no such picture here"
    try:
        if found and folder.picture(found[0]):
            return found[0]
    except Refused as error:
        cause = str(error)
    logger.warning("%s line %d: 'map_Kd %s': %s; drawn without it", library.name, number, rest, cause)
    return None


class PlyColors:
    """The picture of a PLY, as trimesh's `resolver`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def get(self, name: str) -> bytes:
        found = self._folder.files(picture_named(name))
        try:
            if found:
                return self._folder.picture(found[0])
            raise Refused("does not exist here")
        except Refused as error:
            logger.warning("its picture %r: %s; drawn without it", name, error)  # trimesh goes on and says nothing
            raise

    def __getitem__(self, name: str) -> bytes:
        return self.get(name)


def plain_ply(content: bytes) -> bytes:
    """Rename a PLY's colours to what most programs call them, such as `diffuse_red` to `red`."""
    head, mark, body = content.partition(b"end_header")
    if not re.search(_COLOR % b"red", head):
        head = re.sub(_COLOR % b"(?:diffuse_|vertex_)?(red|green|blue|alpha)", rb"\1\2\3", head)
        head = re.sub(_COLOR % b"([rgba])", lambda match: match[1] + _LONG[match[2]] + match[3], head)
    return head + mark + body


def stl_colors(content: bytes) -> UInt8[np.ndarray, "faces 4"] | None:
    """Return the colours of a binary STL's triangles, or None where it has none.

    15 bits beside each triangle hold them in two dialects. VisCAM and SolidView: blue in the low bits, the highest bit
    set where there is a colour. Materialise Magics: the header names the whole object's colour, red is in the low bits,
    the highest bit is set where the object's holds.
    """
    header, count = content[:80], int.from_bytes(content[80:84], "little")
    if len(content) != 84 + count * _FACE.itemsize or count == 0:
        return None
    bits = np.frombuffer(content, dtype=_FACE, offset=84)["color"].astype(np.int64)
    is_marked = (bits >> 15) == 1
    low, middle, high = ((bits >> shift & 31) * 255 // 31 for shift in (0, 5, 10))
    whole = _MAGICS.search(header)
    channels = (low, middle, high) if whole else (high, middle, low)
    colors = np.stack([*channels, np.full(count, 255)], axis=1)
    if whole:
        colors[is_marked if bits.any() else slice(None)] = [*whole[1][:3], 255]
        return colors.astype(np.uint8)
    if not is_marked.any():
        return None
    colors[~is_marked] = GREY
    return colors.astype(np.uint8)
