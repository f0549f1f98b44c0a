"""Captions from CSV files that nobody vetted: Cap3D's own form, or a table with a header.

Cap3D's files (Luo et al., 2023, arXiv 2306.07279) have no header and two columns, an id and a caption, quoted where it
holds commas, CRLF. A table has a header with `caption`, with `uid` or `path`, and possibly with `license`, `author`,
`source`, `up_axis` and `front_axis`. Each row of either comes out once or is counted once, and a broken row takes no
other with it: a quote that is never closed costs its own line and not the rest of the file.

Spreadsheets write such tables with commas, semicolons or tabs, in UTF-8 or UTF-16, with line ends of any system.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from redream.records import FrontAxis, UpAxis
from redream.text_files import decoded_text, text_encoding

MAX_CAPTION = 1_000  # characters; CLIP reads 77 tokens, longer captions are cut
MAX_ROW_BYTES = 65_536
MAX_ROW_LINES = 64  # that one quoted caption may span

MAX_SHEET_BYTES = 256 * 2**20
MAX_SHOWN = 3  # rows in an error
SEPARATORS = ",;\t"

TOO_LONG = "row longer than 64 KiB"
NOT_UTF8 = "row not UTF-8"
MALFORMED = "malformed row"
EMPTY_ID = "empty id"
EMPTY_CAPTION = "empty caption"
REFUSAL = "refusal in place of a caption"
UNKNOWN_AXIS = "up axis other than +Y and +Z"
UNKNOWN_FRONT = "front axis that is no axis of the ground, nor keep"

# What pandas and other writers leave of a missing caption.
_MISSING = {"", "nan", "none", "null", "n/a"}
# A language model was asked for a caption and declined; its answer describes nothing.
_REFUSED = re.compile(r"(i'?m|i am) (sorry|unable)\b|sorry,|as an ai\b|i can(no|['’])t ", re.IGNORECASE)

_HEADER = {
    "uid": "uid",
    "id": "uid",
    "name": "uid",
    "path": "path",
    "file": "path",
    "filename": "path",
    "caption": "caption",
    "text": "caption",
    "description": "caption",
    "license": "license",
    "licence": "license",
    "author": "author",
    "attribution": "author",
    "source": "source",
    "url": "source",
    "up_axis": "up_axis",
    "front_axis": "front_axis",
}
_UP_AXES: dict[str, UpAxis | None] = {"": None, "+Y": "+Y", "Y": "+Y", "+Z": "+Z", "Z": "+Z"}
_FRONT_AXES: dict[str, FrontAxis] = {"": "", "KEEP": "keep", "X": "+X", "Y": "+Y", "Z": "+Z"}
_FRONT_AXES |= {"+X": "+X", "-X": "-X", "+Y": "+Y", "-Y": "-Y", "+Z": "+Z", "-Z": "-Z"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRow:
    """One usable row; what its file has no column for is empty."""

    uid: str
    caption: str
    path: str = ""
    license: str = ""
    author: str = ""
    source: str = ""
    up_axis: UpAxis | None = None
    front_axis: FrontAxis = ""


class _Wrong:
    """The rows of a file that do not apply, by reason, and the first of them."""

    def __init__(self, path: Path, dropped: Counter[str]) -> None:
        self._path, self._dropped = path, dropped
        self._shown: list[str] = []
        self._num_wrong = self.num_right = 0

    def count(self, reason: str, row: str) -> None:
        self._dropped[reason] += 1
        if reason not in (EMPTY_CAPTION, REFUSAL):  # which say nothing against the file's form
            self._num_wrong += 1
            if len(self._shown) < MAX_SHOWN:
                self._shown.append(f"{clean_text(row, 80)!r}: {reason}")

    def refuse_if_most(self) -> None:
        refuse_if_most(self._path, self._num_wrong, self.num_right, self._shown)


def refuse_if_most(path: Path, num_wrong: int, num_right: int, shown: list[str]) -> None:
    """Raise a `ValueError` with the first rows where most of a side file does not apply."""
    if num_wrong > num_right:
        raise ValueError(
            f"{path}: {num_wrong:,} of {num_wrong + num_right:,} rows do not apply; the first: {'; '.join(shown)}"
        )


@contextmanager
def _plain_lines(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file as UTF-8 with line feeds, whatever it is; only spreadsheets write others, which are small."""
    with path.open("rb") as file:
        start = file.read(MAX_ROW_BYTES)
        encoding, _ = text_encoding(start[:4096])
        is_plain = encoding == "utf-8" and not (b"\r" in start and b"\n" not in start)
        if not is_plain and path.stat().st_size <= MAX_SHEET_BYTES:
            text = decoded_text(start + file.read()) if encoding != "utf-8" else ""
            content = text.encode() if text else (start + file.read())
            yield io.BytesIO(content.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
            return
        file.seek(0)
        yield file


def read_captions(path: str | Path, dropped: Counter[str], up_axis: UpAxis = "+Y") -> Iterator[CaptionRow]:
    """Yield the usable rows of a caption file in its order, and count the others in `dropped` by reason.

    Args:
        up_axis: of the meshes for which a row names none.

    Raises:
        ValueError: no such file, a header without an id, or no usable row at all.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no caption file {path}; give a CSV in Cap3D's form or one with a header")
    is_empty = True
    with _plain_lines(path) as file:
        lines = _lines(file, dropped)
        start = next(lines, "")
        while start[:4] == "sep=" or (start and not start.strip()):
            start = next(lines, "")
        separator = _separator(start, path)
        wrong = _Wrong(path, dropped)
        rows = _rows(chain([start] if start else [], lines), separator, wrong)
        first = next(rows, [])
        columns, width = _header(first, path), len(first)
        if columns is None:
            columns, width, rows = {"uid": 0, "caption": 1}, 2, chain([first] if first else [], rows)
        for cells in rows:
            row = _checked(cells, columns, width, up_axis)
            if isinstance(row, str):
                wrong.count(row, separator.join(cells))
                continue
            is_empty = False
            wrong.num_right += 1
            yield row
    if is_empty:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.items()) or "it is empty"
        raise ValueError(f"{path} holds no usable caption ({reasons}); expected rows of an id and a caption")
    wrong.refuse_if_most()


def clean_text(text: str, limit: int) -> str:
    """Make text from outside one printable line: control, format and line characters become spaces, `limit` cuts."""
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())[:limit].rstrip()


def _checked(cells: list[str], columns: dict[str, int], width: int, default_up: UpAxis) -> CaptionRow | str:
    """Return the row, or the reason why it is dropped."""
    if len(cells) != width:
        return MALFORMED
    fields = {name: cells[index].strip() for name, index in columns.items()}
    if not fields.get("uid") and not fields.get("path"):
        return EMPTY_ID
    if not (fields.get("uid", "") + fields.get("path", "")).isprintable():
        return MALFORMED
    caption = clean_text(fields["caption"], MAX_CAPTION)
    if caption.lower() in _MISSING:
        return EMPTY_CAPTION
    if _REFUSED.match(caption):
        return REFUSAL
    up_axis = fields.get("up_axis", "").upper()
    if up_axis not in _UP_AXES:
        return UNKNOWN_AXIS
    front_axis = _FRONT_AXES.get(fields.get("front_axis", "").upper())
    if front_axis is None or front_axis[1:] == (up_axis or default_up)[-1]:
        return UNKNOWN_FRONT
    return CaptionRow(
        uid=fields.get("uid", ""),
        caption=caption,
        path=fields.get("path", ""),
        license=clean_text(fields.get("license", ""), 200),
        author=clean_text(fields.get("author", ""), 300),
        source=clean_text(fields.get("source", ""), 500),
        up_axis=_UP_AXES[up_axis],
        front_axis=front_axis,
    )


def _separator(start: str, path: Path) -> str:
    """Return the separator that makes the first line a header, or else the likeliest one.

    A tab is in no caption, and Cap3D's form, which has no header, has commas.
    """
    parsed = {separator: _parse(start, separator) for separator in SEPARATORS}
    for separator, (cells, _) in parsed.items():
        if _header(cells, path) is not None:
            return separator
    for separator in sorted(SEPARATORS, key="\t,;".index):
        cells, is_open = parsed[separator]
        if is_open or len(cells) > 1:
            return separator
    return SEPARATORS[0]


def _header(cells: list[str], path: Path) -> dict[str, int] | None:
    """Return the columns of a header by our names, or None for a first row that is data."""
    names = [cell.strip().lower() for cell in cells]
    kinds = {_HEADER.get(name) for name in names}
    if "caption" not in names and not ("caption" in kinds and kinds & {"uid", "path"}):
        return None
    columns = {_HEADER[name]: index for index, name in reversed(list(enumerate(names))) if name in _HEADER}
    if "uid" not in columns and "path" not in columns:
        shown = clean_text(", ".join(names), 200)
        raise ValueError(f"{path} has a header without an id ({shown}); expected uid or path in it")
    return columns


def _rows(lines: Iterator[str], separator: str, wrong: _Wrong) -> Iterator[list[str]]:
    """Split lines into rows of cells; blank lines are none."""
    ahead: deque[str] = deque()  # lines that were taken for the rest of a row and were not
    while (line := ahead.popleft() if ahead else next(lines, None)) is not None:
        if '"' not in line:  # most rows; the csv module says the same, slower
            if text := line.strip("\r\n"):
                yield text.split(separator)
            continue
        taken = [line]
        cells, is_open = _parse(line, separator)
        while is_open and len(taken) < MAX_ROW_LINES and sum(map(len, taken)) < MAX_ROW_BYTES:
            more = ahead.popleft() if ahead else next(lines, None)
            if more is None:
                break
            taken.append(more)
            cells, is_open = _parse("".join(taken), separator)
        if cells:
            yield cells
        else:
            wrong.count(MALFORMED, line)
            ahead.extendleft(reversed(taken[1:]))


def _parse(text: str, separator: str) -> tuple[list[str], bool]:
    """Parse one row. A row that cannot be parsed has no cells; the flag says whether a quote in it is still open."""
    try:
        return next(csv.reader([text], delimiter=separator, strict=True)), False
    except csv.Error as error:
        return [], "unexpected end of data" in str(error)


def _lines(file: io.BufferedIOBase, dropped: Counter[str]) -> Iterator[str]:
    encoding = "utf-8-sig"  # of the first line, which may begin with a mark
    while line := file.readline(MAX_ROW_BYTES):
        if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
            dropped[TOO_LONG] += 1
            while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
        else:
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError:
                dropped[NOT_UTF8] += 1
        encoding = "utf-8"
