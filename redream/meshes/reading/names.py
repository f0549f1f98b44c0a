"""The files that a mesh file names, as it spells them: one reading for what is drawn, copied and digested.

OBJ names material libraries, which name pictures; glTF names buffers and images; PLY may name one picture. Only what
this program draws counts: of a material's maps the one of its colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from redream.meshes.reading.gltf_container import gltf_tree
from redream.meshes.reading.refusal import Refused
from redream.text_files import WESTERN, decoded_text

MAX_NAMES = 1_000  # that one file may name
MAX_CHARS = 1_000  # of a name, which may be a path

OBJ_LIBRARY = re.compile(rb"^[ \t]*mtllib[ \t]+(\S.*?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
_MTL_LINE = re.compile(r"\s*(\w+)\s+(\S.*?)\s*$")
_PLY_TEXTURE = re.compile(rb"^comment[ \t]+TextureFile[ \t]+(\S.*?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
# Options of a map, with the most values that each takes.
_OPTIONS = {
    "-blendu": 1, "-blendv": 1, "-cc": 1, "-clamp": 1, "-imfchan": 1, "-texres": 1, "-type": 1, "-boost": 1, "-bm": 1,
    "-mm": 2, "-o": 3, "-s": 3, "-t": 3,
}  # fmt: skip
_VALUE = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


@dataclass(frozen=True, slots=True)
class Named:
    """A name in a file: what it is of, the spellings to try in this order, and the line, counted from 1."""

    kind: Literal["library", "picture", "uri"]
    spellings: tuple[str, ...]
    line: int = 0


def names_in(content: bytes, suffix: str) -> list[Named]:
    """Return what a file of this suffix names; nothing for one that cannot be understood."""
    found = NAMING[suffix](content) if suffix in NAMING else iter(())
    kept: dict[tuple[str, tuple[str, ...]], Named] = {}  # many materials may name one picture
    for named in found:
        if all(0 < len(spelling) < MAX_CHARS for spelling in named.spellings):
            kept.setdefault((named.kind, named.spellings), named)
        if len(kept) == MAX_NAMES:
            break
    return list(kept.values())


def obj_libraries(content: bytes) -> Iterator[Named]:
    """Yield what the lines of an OBJ name as libraries: one with blanks in its name, or several."""
    line, counted = 1, 0
    for match in OBJ_LIBRARY.finditer(content):
        line, counted = line + content.count(b"\n", counted, match.start()), match.start()
        yield Named("library", (line_text(match[1]),), line)


def mtl_lines(content: bytes) -> Iterator[tuple[int, str, str]]:
    """Yield the lines of a material library: number, keyword in lower case, the rest."""
    for number, line in enumerate(line_text(content).splitlines(), start=1):
        if match := _MTL_LINE.match(line):
            yield number, match[1].lower(), match[2]


def picture_named(text: str, line: int = 0) -> Named:
    """Read the name of a map: all of it, or what its options leave; either may stand in quotes."""
    rest = text
    while (word := rest.split(None, 1)[0].lower() if rest else "") in _OPTIONS:
        rest = rest[len(word) :].lstrip()
        for _ in range(_OPTIONS[word]):
            value, _, after = rest.partition(" ")
            if not (_VALUE.match(value) or _OPTIONS[word] == 1):
                break
            rest = after.lstrip()
    spellings = [spelling.strip("\"'") for spelling in (text, rest)]
    return Named("picture", tuple(dict.fromkeys(filter(None, spellings))), line)


def line_text(content: bytes) -> str:
    """Decode text whose program nobody knows: UTF-8 or UTF-16, else as Windows in Western languages writes it."""
    try:
        return decoded_text(content)
    except ValueError:
        return content.decode(WESTERN, errors="replace")


def _mtl_pictures(content: bytes) -> Iterator[Named]:
    return (picture_named(rest, line) for line, keyword, rest in mtl_lines(content) if keyword == "map_kd")


def _ply_texture(content: bytes) -> Iterator[Named]:
    head = content.partition(b"end_header")[0]
    return (picture_named(line_text(match[1])) for match in _PLY_TEXTURE.finditer(head))


def _gltf_uris(content: bytes) -> Iterator[Named]:
    try:
        tree = gltf_tree(content)
    except Refused:
        return
    for kind in ("buffers", "images"):
        entries = tree.get(kind)
        for entry in entries if isinstance(entries, list) else ():
            uri = entry.get("uri") if isinstance(entry, dict) else None
            if isinstance(uri, str) and uri[:5].lower() != "data:":
                yield Named("uri", (unquote(uri).strip(),))


NAMING = {".obj": obj_libraries, ".mtl": _mtl_pictures, ".ply": _ply_texture, ".glb": _gltf_uris, ".gltf": _gltf_uris}
