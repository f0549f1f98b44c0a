"""Lists of prompts in the forms in which people keep them, read as what they are, or refused by name.

| form | how it is told | what it holds |
|---|---|---|
| text | `.txt`, or no other form | a prompt a line; a line that begins with # is a comment |
| JSON lines | `.jsonl`, `.ndjson` | a line each: an object with `prompt`, or a prompt in quotes |
| JSON | `.json`, or text that begins with [ or { | an array of such, or lists of prompts by name (threestudio) |
| table | `.csv`, `.tsv` | a row of names, one of them `prompt`; commas, semicolons or tabs |

Encodings are those of `redream.text_files`; line ends may be those of Windows, Unix or the old Macintosh.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.requests.request import parsed_settings
from redream.text_files import decoded_text

FORMS = "text with a prompt a line (.txt), JSON lines (.jsonl), a JSON array (.json) or a table (.csv, .tsv)"
FOREIGN = {
    ".xlsx": "an Excel workbook", ".xls": "an Excel workbook", ".ods": "a LibreOffice sheet",
    ".numbers": "a Numbers sheet", ".docx": "a Word document", ".odt": "a LibreOffice document", ".rtf": "rich text",
    ".pdf": "a PDF", ".yaml": "YAML", ".yml": "YAML", ".toml": "TOML", ".xml": "XML", ".html": "a web page",
    ".md": "Markdown", ".parquet": "a Parquet table", ".py": "Python", ".zip": "an archive", ".gz": "an archive",
}  # fmt: skip
BINARY = {b"PK\x03\x04": "an archive or an office document", b"%PDF": "a PDF", b"{\\rtf": "rich text"}
SEPARATORS = ",;\t"
PROMPT_NAMES = ("prompt", "prompts", "text", "caption")
MAX_CELL_CHARS = 131_072
_PREAMBLE = re.compile(r"(#TYPE [^\n]*|sep=[,;\t]|[\s,;]*)\n")  # PowerShell's type, Excel's separator, blanks

Entry = dict[str, Any] | ValueError  # what a line asks for, or why it cannot be understood


def read_entries(path: Path, content: bytes) -> Iterator[tuple[int, Entry]]:
    """Yield what a file asks for, with its line or, in JSON, its place in the array, counted from 1.

    Raises:
        ValueError: it is of another form, or not text.
    """
    suffix = path.suffix.lower()
    kind = next((kind for start, kind in BINARY.items() if content.startswith(start)), FOREIGN.get(suffix, ""))
    if kind:
        raise ValueError(f"it is {kind}; save it as {FORMS}")
    text = decoded_text(content).replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise ValueError(f"it is not text; give {FORMS}")
    if suffix in (".csv", ".tsv", ".tab"):
        yield from _table(text)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(text)
    elif suffix == ".json" or text.lstrip()[:1] in ("[", "{"):
        yield from _json(text)
    else:
        lines = enumerate(text.split("\n"), start=1)
        yield from ((number, {"prompt": line}) for number, line in lines if line.strip() and line.lstrip()[0] != "#")


def _json_lines(text: str) -> Iterator[tuple[int, Entry]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                yield number, _entry(_loaded(line))
            except ValueError as error:
                yield number, error


def _json(text: str) -> Iterator[tuple[int, Entry]]:
    tree = _loaded(text)
    if isinstance(tree, dict) and tree and all(isinstance(group, list) for group in tree.values()):
        tree = [prompt for group in tree.values() for prompt in group]
    elif isinstance(tree, dict) and "prompt" in tree:
        tree = [tree]
    if not isinstance(tree, list):
        raise ValueError("it is JSON, but neither an array of prompts nor lists of prompts by name")
    for number, value in enumerate(tree, start=1):
        try:
            yield number, _entry(value)
        except ValueError as error:
            yield number, error


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is not valid JSON ({error})") from None


def _entry(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict) or "prompt" not in value:
        raise ValueError('it is not an object with a prompt, such as {"prompt": "a red cube", "seed": 1}')
    return value


def _table(text: str) -> Iterator[tuple[int, Entry]]:
    before = 0
    while match := _PREAMBLE.match(text):
        before, text = before + match[0].count("\n"), text[match.end() :]
    first = text.partition("\n")[0]
    separator = max(SEPARATORS, key=lambda each: (first.count(each), -SEPARATORS.index(each)))
    csv.field_size_limit(MAX_CELL_CHARS)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        prompt = next((name for name in PROMPT_NAMES if name in names), None)
        if prompt is None:
            raise ValueError(
                f"its first row ({', '.join(names)[:200]}) names no column 'prompt'; write one such as prompt,seed "
                "above the others"
            )
        names = ["prompt" if name == prompt else name for name in names]
        end = 1
        for row in rows:
            line, end = before + end + 1, rows.line_num
            if any(cell.strip() for cell in row) and not row[0].lstrip().startswith("#"):
                try:
                    yield line, _row(names, row)
                except ValueError as error:
                    yield line, error
    except csv.Error as error:
        raise ValueError(f"its row at line {before + rows.line_num} cannot be read ({error})") from None


def _row(names: list[str], cells: list[str]) -> dict[str, Any]:
    if any(cell.strip() for cell in cells[len(names) :]):
        raise ValueError(f"it has {len(cells)} cells under {len(names)} names; put a prompt that has commas in quotes")
    entry: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=False):
        text = cell.strip()
        if not name or name.startswith("unnamed:"):  # the row numbers that pandas writes
            continue
        if "." in name and text:
            entry.setdefault("settings", {}).update(parsed_settings([f"{name}={text}"]))
        elif text and not (text.lower() == "nan" and name != "prompt"):
            entry[name] = _value(name, text)
    return entry if "prompt" in entry else {**entry, "prompt": ""}


def _value(name: str, text: str) -> Any:
    """Read a cell as the field of a request that it is."""
    if name == "seed":
        match = re.fullmatch(r"(\d+)(\.0*)?", text)
        if match is None:
            raise ValueError(f"seed is {text!r}; it must be a whole number")
        return int(match[1])
    if name == "seeds":
        return [int(_value("seed", part)) for part in re.split(r"[\s,;]+", text.strip("[]"))]
    if name in ("settings", "assets"):
        return _loaded(text) if text[0] in "[{" else [text]
    return text
