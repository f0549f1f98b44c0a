"""Lists of prompts, byte for byte as other programs write them: right members or one sentence."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from flows.requests.prompt_lists import read_entries

ROWS = [("a red cube", 1), ("ein gr\u00fcner W\u00fcrfel, klein", 2), ('a "quoted" chair', 3)]
PROMPTS = [prompt for prompt, _ in ROWS]


def table(separator: str = ",", end: str = "\r\n", header: str = "prompt", quoting: Any = csv.QUOTE_MINIMAL) -> str:
    """A table as spreadsheets write it."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([(header, "seed"), *ROWS])
    return out.getvalue()


def numbered(rows: list[list[str]]) -> str:
    """A table as pandas' `to_csv` writes it with its row numbers."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [["", *rows[0]], *([str(i), *row] for i, row in enumerate(rows[1:]))]
    )
    return out.getvalue()


OBJECTS = [{"prompt": prompt, "seed": seed} for prompt, seed in ROWS]
LINES = "\n".join(PROMPTS)
# What wrote it, the file's name, its bytes, and whether it has seeds.
WRITTEN: list[tuple[str, str, bytes, bool]] = [
    ("an editor on Linux", "p.txt", (LINES + "\n").encode(), False),
    ("an editor on Linux, no last line end", "p.txt", LINES.encode(), False),
    ("an editor without a suffix", "prompts", LINES.encode(), False),
    ("Notepad, UTF-8 with BOM", "p.txt", LINES.replace("\n", "\r\n").encode("utf-8-sig"), False),
    ("Notepad, Unicode", "p.txt", LINES.replace("\n", "\r\n").encode("utf-16"), False),
    ("Notepad, Unicode big endian", "p.txt", b"\xfe\xff" + LINES.encode("utf-16-be"), False),
    ("a Macintosh of old", "p.txt", LINES.replace("\n", "\r").encode(), False),
    ("comments and blank lines", "p.txt", f"# chairs\n\n{LINES}\n  # end\n".encode(), False),
    ("PowerShell 5, Out-File", "p.txt", (LINES.replace("\n", "\r\n") + "\r\n").encode("utf-16"), False),
    ("PowerShell 7, Out-File", "p.txt", (LINES.replace("\n", "\r\n") + "\r\n").encode(), False),
    ("PowerShell 5, Export-Csv", "p.csv",
     b"#TYPE System.Management.Automation.PSCustomObject\r\n" + table(quoting=csv.QUOTE_ALL).encode(), True),
    ("PowerShell 7, Export-Csv", "p.csv", table(quoting=csv.QUOTE_ALL).encode(), True),
    ("PowerShell, ConvertTo-Json", "p.json", json.dumps(OBJECTS, indent=4).encode("utf-16"), True),
    ("Excel, CSV UTF-8", "p.csv", table().encode("utf-8-sig"), True),
    ("Excel in Germany, CSV UTF-8", "p.csv", table(";").encode("utf-8-sig"), True),
    ("Excel with its separator named", "p.csv", ("sep=;\r\n" + table(";")).encode("utf-8-sig"), True),
    ("Excel, Unicode Text", "p.txt.tsv", table("\t").encode("utf-16"), True),
    ("Excel, CSV with empty columns and rows", "p.csv", (
        "prompt,seed,,\r\n" + "".join(f'"{p.replace(chr(34), chr(34) * 2)}",{s},,\r\n' for p, s in ROWS) + ",,,\r\n"
    ).encode("utf-8-sig"), True),
    ("Excel, CSV (Macintosh)", "p.csv", table(end="\r").encode("utf-8-sig"), True),
    ("Numbers", "p.csv", table(end="\n").encode(), True),
    ("Numbers in Germany", "p.csv", table(";", end="\n").encode(), True),
    ("LibreOffice", "p.csv", table(end="\n", quoting=csv.QUOTE_NONNUMERIC).encode(), True),
    ("LibreOffice, tabs and UTF-16", "p.csv", table("\t", end="\n").encode("utf-16"), True),
    ("Google Sheets, TSV", "p.tsv", table("\t").encode(), True),
    ("a header in capitals", "p.csv", table(header=" Prompt").encode(), True),
    ("pandas, to_csv", "p.csv", numbered([["prompt", "seed"], *([p, str(s)] for p, s in ROWS)]).encode(), True),
    ("pandas, to_csv of floats", "p.csv", table().replace(",1", ",1.0").encode(), True),
    ("pandas, to_json of records", "p.json", json.dumps(OBJECTS).encode(), True),
    ("pandas, to_json of lines", "p.jsonl", "\n".join(json.dumps(each) for each in OBJECTS).encode(), True),
    ("Python, json.dump of a list", "p.json", json.dumps(PROMPTS, indent=1).encode(), False),
    ("a JSON array by another name", "p.txt", json.dumps(PROMPTS).encode(), False),
    ("threestudio's prompt library", "p.json", json.dumps({"a": PROMPTS[:2], "b": PROMPTS[2:]}).encode(), False),
    ("JSON lines of texts", "p.jsonl", "\r\n".join(json.dumps(each) for each in PROMPTS).encode("utf-8-sig"), False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "has_seeds"), [row[1:] for row in WRITTEN], ids=[row[0] for row in WRITTEN]
)
def test_lists_are_read_as_they_were_meant(name: str, content: bytes, has_seeds: bool) -> None:
    entries: list[Any] = [entry for _, entry in read_entries(Path(name), content)]
    assert [entry["prompt"] for entry in entries] == PROMPTS
    assert [entry.get("seed") for entry in entries] == ([1, 2, 3] if has_seeds else [None] * 3)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.xlsx", b"PK\x03\x04", "an archive or an office document; save it as"),
        ("p.xlsx", b"odd", "an Excel workbook"),
        ("p.yaml", b"- a red cube", "it is YAML"),
        ("p.txt", b"%PDF-1.7", "a PDF"),
        ("p.csv", "a red cube\r\nein gr\u00fcner".encode("cp1252"), "line 2 is not valid UTF-8; save it as UTF-8"),
        ("p.csv", b"a red cube\na blue cube\n", "its first row (a red cube) names no column 'prompt'"),
        ("p.csv", b"prompt\n\"a red cube\n", "its row at line 2 cannot be read"),
        ("p.json", b'{"prompts": "a red cube"}', "neither an array of prompts nor lists of prompts by name"),
        ("p.json", b'{"value": ["a"], "Count": 1}', "neither an array of prompts nor"),
        ("p.json", b'["a red cube",', "not valid JSON"),
        ("p.txt", b"a red\0cube", "it is not text"),
    ],
)  # fmt: skip
def test_other_forms_are_refused_by_name(name: str, content: bytes, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        list(read_entries(Path(name), content))
    assert words in str(refused.value)


def test_cells_are_fields_of_a_request_and_bad_ones_are_named_with_their_line() -> None:
    header = "prompt,seeds,method,distill.num_steps,assets\n"
    rows = 'a,"1, 2",sds,700,\nb,x,,,\nc,,,,chair.glb\nd,1,sds,7,,and e\n"f\ng",,,,\n'
    entries = dict(read_entries(Path("p.csv"), (header + rows).encode()))
    assert entries[2] == {"prompt": "a", "seeds": [1, 2], "method": "sds", "settings": {"distill.num_steps": 700}}
    assert "seed is 'x'" in str(entries[3])
    assert entries[4] == {"prompt": "c", "assets": ["chair.glb"]}
    assert "in quotes" in str(entries[5])
    assert entries[6] == {"prompt": "f\ng"}
