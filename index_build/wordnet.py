"""Derive the table of nouns that `redream.retrieval.nouns` reads from WordNet's database files (Miller, 1995).

Run as `python -m index_build.wordnet DICT`, with the folder that holds WordNet 3.1's `data.noun` and `index.noun`. Kept
are the nouns of one or two words that name what can be seen: animals, artefacts, bodies, food, natural objects,
persons, plants, shapes. Each has its senses, the most frequent first, and each sense the senses above it: a truck is a
vehicle. Names are left out, of persons and places as of species.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

from redream.retrieval.nouns import TABLE

VISIBLE = {"03": "top", "05": "animal", "06": "artifact", "08": "body", "13": "food", "17": "object", "18": "person"}
VISIBLE |= {"20": "plant", "25": "shape"}
SLANG = ("informal", "(informal", "slang", "(slang", "offensive", "(offensive", "disparaging", "(disparaging")
MAX_SENSES = 3  # rarer senses of a word relate it to things that nobody means by it


def read_senses(dict_folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the senses of each word, most frequent first, and the senses above each sense."""
    above: dict[str, list[str]] = {}
    common: set[str] = set()  # words that are not names
    for line in (dict_folder / "data.noun").read_text(encoding="ascii").splitlines():
        entry, _, gloss = line.partition(" | ")
        cells = entry.split()
        if line.startswith(" ") or cells[1] not in VISIBLE or gloss.startswith(SLANG):
            continue
        first = 4 + 2 * int(cells[3], 16) + 1
        pointers = [cells[i : i + 3] for i in range(first, first + 4 * int(cells[first - 1]), 4)]
        if not any(kind == "@i" for kind, _, _ in pointers):  # an instance, such as a person by name
            above[cells[0]] = [sense for kind, sense, _ in pointers if kind == "@"]
            common.update(word for word in cells[4 : first - 1 : 2] if word.islower())
    senses = {}
    for line in (dict_folder / "index.noun").read_text(encoding="ascii").splitlines():
        cells = line.split()
        if line.startswith(" ") or cells[0] not in common or cells[0].count("_") > 1:
            continue
        of_word = cells[4 + int(cells[3]) + 2 :]
        if visible := [sense for sense in of_word if sense in above][:MAX_SENSES]:
            senses[cells[0].replace("_", " ")] = visible
    return senses, above


def write_nouns(dict_folder: Path, table: Path) -> None:
    """Write the words and the graph of their senses, numbered, as compressed JSON."""
    senses, above = read_senses(dict_folder)
    pending = [sense for of_word in senses.values() for sense in of_word]
    numbers: dict[str, int] = {}
    while pending:
        sense = pending.pop()
        if sense not in numbers:
            numbers[sense] = len(numbers)
            pending += [parent for parent in above[sense] if parent in above]
    graph = [[numbers[parent] for parent in above[sense] if parent in numbers] for sense in numbers]
    words = {word: [numbers[sense] for sense in of_word] for word, of_word in sorted(senses.items())}
    text = json.dumps({"words": words, "above": graph}, separators=(",", ":"))
    table.write_bytes(gzip.compress(text.encode("ascii"), 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("dict", type=Path)
    write_nouns(parser.parse_args().dict, TABLE)


if __name__ == "__main__":
    main()
