"""Fuzzing of the mesh reader: seeded mutations of good files, each opened as any file from outside is.

Every mutant is one to four changes: bytes flipped, cut, repeated or overwritten with awkward numbers; in glTF also
values of the JSON replaced, removed or repeated; in text also words. Opened scenes are normalised and checked: finite,
of an extent, triangles on existing vertices. Results are appended to `--out` one by one, so a run that was stopped goes
on where it was. Run as `python -m benchmarks.fuzz_assets FOLDER_OF_GOOD_FILES [--count 10000] [--out FILE.csv]`.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import resource
import shutil
import struct
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from trimesh.visual import ColorVisuals

from redream.meshes.assets import AssetError, load_mesh, normalize_mesh
from redream.meshes.reading.client import stop_server
from redream.meshes.reading.gltf_container import split_glb
from redream.meshes.scenes import scene_parts, scene_vertices
from redream.records import MESH_SUFFIXES
from redream.settings import MeshLimits

LIMITS = MeshLimits(seconds=10, memory_bytes=2**30)
NUMBERS: list[Any] = [-1, 0, 1, 2, 3, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 10**30, 0.5, -0.0, 1e-40, 1e38, 1e308]
OTHERS: list[Any] = [None, True, "", "../x", "data:,", [], {}, [[]], "a" * 1000]
WORDS = [b"nan", b"inf", b"-1", b"0", b"99999999", b"1e400", b"x", b"", b"\xff\xfe", b"f 1 2 3 4 5", b"1/2/3", b"//"]
# What is stopped rather than refused; the rest of the sentences are causes.
STOPPED = {"takes longer": "over the time limit", "of memory to be read": "over the memory limit", "crashes": "crash"}


@dataclass(frozen=True, slots=True)
class Outcome:
    number: int
    source: str
    outcome: str  # opened, refused, crash, over the time limit, ...
    cause: str
    seconds: float


def mutate(content: bytes, suffix: str, generator: np.random.Generator) -> bytes:
    """Return a broken version of a file."""
    for _ in range(generator.integers(1, 5)):
        if suffix in (".glb", ".gltf") and generator.random() < 0.7:
            content = _mutate_json(content, generator)
        elif suffix in (".obj", ".gltf") and generator.random() < 0.5:
            content = _mutate_words(content, generator)
        else:
            content = _mutate_bytes(content, generator)
    return content


def _mutate_bytes(content: bytes, generator: np.random.Generator) -> bytes:
    data = bytearray(content)
    if len(data) < 8:
        return content
    # Heads and tables are at the beginning, and mean more than the middle of an array.
    reach = len(data) if generator.random() < 0.8 else min(len(data), 512)
    place = int(generator.integers(0, reach - 4))
    length = int(generator.integers(1, 64))
    match generator.integers(0, 6):
        case 0:
            data[place] ^= 1 << int(generator.integers(0, 8))
        case 1:
            del data[place:]
        case 2:
            del data[place : place + length]
        case 3:
            data[place:place] = data[place : place + length]
        case 4:
            data[place : place + length] = generator.bytes(length)
        case _:
            number = int(generator.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 0x7FC00000, 0x7F800000]))
            data[place : place + 4] = struct.pack("<I", number)
    return bytes(data)


def _mutate_words(content: bytes, generator: np.random.Generator) -> bytes:
    lines = content.split(b"\n")
    row = int(generator.integers(0, len(lines)))
    words = lines[row].split(b" ")
    words[int(generator.integers(0, len(words)))] = WORDS[int(generator.integers(0, len(WORDS)))]
    lines[row] = b" ".join(words)
    return b"\n".join(lines)


def _mutate_json(content: bytes, generator: np.random.Generator) -> bytes:
    try:
        tree, binary = split_glb(content) if content[:4] == b"glTF" else (json.loads(content), None)
    except Exception:  # broken by an earlier change
        return _mutate_bytes(content, generator)
    _change_value(tree, generator)
    text = json.dumps(tree).encode()
    if content[:4] != b"glTF":
        return text
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if binary is not None:
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _change_value(tree: Any, generator: np.random.Generator) -> None:
    """Walk down to a random place of the JSON and change what is there."""
    holder: Any = None
    key: Any = None
    value = tree
    while isinstance(value, (dict, list)) and value and (holder is None or generator.random() < 0.93):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        holder, key = value, keys[int(generator.integers(0, len(keys)))]
        value = holder[key]
    if holder is None:
        return
    match generator.integers(0, 4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.append(value)
        case 2:
            holder[key] = OTHERS[int(generator.integers(0, len(OTHERS)))]
        case _:
            holder[key] = NUMBERS[int(generator.integers(0, len(NUMBERS)))]


def try_file(number: int, good: list[Path], seed: int, work: Path) -> Outcome:
    """Mutate one file into `work`, open it and say what happened."""
    generator = np.random.default_rng([seed, number])
    sizes = np.array([path.stat().st_size for path in good], dtype=np.float64)
    weights = 1 / np.sqrt(sizes)  # small files break in as many ways as large ones, and faster
    source = good[generator.choice(len(good), p=weights / weights.sum())]
    folder = work / "mutant"
    shutil.copytree(source.parent, folder, ignore=_only_companions(source))
    try:
        main = folder / f"m{source.suffix}"
        content = source.read_bytes()
        companions = [path for path in folder.rglob("*") if path.is_file()]
        if companions and generator.random() < 0.3:
            victim = companions[int(generator.integers(0, len(companions)))]
            victim.chmod(0o644)
            victim.write_bytes(_mutate_bytes(victim.read_bytes(), generator))
            main.write_bytes(content)
        else:
            main.write_bytes(mutate(content, source.suffix, generator))
        started = time.monotonic()
        outcome, cause = _open(main)
        return Outcome(number, source.name, outcome, cause, round(time.monotonic() - started, 3))
    finally:
        shutil.rmtree(folder)


def _only_companions(source: Path) -> Any:
    """Copy what lies beside a glTF in a folder of its own; files that stand in one folder together need nothing."""

    def ignored(folder: str, names: list[str]) -> list[str]:
        is_shared = sum(name.lower().endswith(MESH_SUFFIXES) for name in names) > 1 and Path(folder) == source.parent
        return names if is_shared else [name for name in names if name == source.name]

    return ignored


def _open(path: Path) -> tuple[str, str]:
    try:
        scene = normalize_mesh(load_mesh(path, LIMITS))
    except AssetError as error:
        sentence = str(error)
        if not sentence.startswith(path.name) or "\n" in sentence:
            return "no clear sentence", sentence
        stopped = next((name for mark, name in STOPPED.items() if mark in sentence), None)
        return stopped or "refused", _cause(sentence.removeprefix(path.name).strip())
    except Exception as error:  # the bar: nothing but AssetError
        return "other exception", f"{type(error).__name__}: {error}"
    vertices = scene_vertices(scene)
    is_sound = np.isfinite(vertices).all() and abs(np.linalg.norm(vertices, axis=1).max() - 0.5) < 1e-4
    is_sound = is_sound and all(mesh.faces.max() < len(mesh.vertices) for mesh, _ in scene_parts(scene))
    return ("opened", "") if is_sound else ("opened, but unsound", "")


def _cause(sentence: str) -> str:
    """Leave out what differs from file to file, so that causes can be counted."""
    sentence = re.sub(r"'.*'|\[.*\]|\"[^\"]*\"", "…", sentence)
    sentence = re.sub(r"\(([A-Za-z]+Error).*", r"(\1)", sentence)
    return re.sub(r"-?\d[\d.,e+]*", "N", sentence)[:70]


def good_files(folder: Path, work: Path) -> list[Path]:
    """Return the mesh files of a folder, and a PLY and an STL of each kind, which real collections have fewer of."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in MESH_SUFFIXES]
    ball = trimesh.creation.icosphere(2)
    ball.visual = ColorVisuals(ball, vertex_colors=np.arange(4 * len(ball.vertices)).reshape(-1, 4) % 256)
    made = {"binary.ply": {"encoding": "binary"}, "text.ply": {"encoding": "ascii"}, "binary.stl": {}}
    for name, options in made.items():
        ball.export(work / name, **options)
    (work / "text.stl").write_text(str(ball.export(file_type="stl_ascii")))
    return files + [work / name for name in (*made, "text.stl")]


def report(outcomes: list[Outcome]) -> str:
    kinds = Counter(outcome.outcome for outcome in outcomes)
    causes = Counter(outcome.cause for outcome in outcomes if outcome.outcome == "refused")
    lines = [f"{len(outcomes):,} mutated files"]
    wanted = ["opened", "refused", "crash", "over the time limit", "over the memory limit"]
    lines += [f"  {kinds.get(name, 0):6,}  {name}" for name in [*wanted, *sorted(set(kinds) - set(wanted))]]
    seconds = np.array([outcome.seconds for outcome in outcomes])
    lines += [f"seconds per file on the clock: median {np.median(seconds):.3f}, most {seconds.max():.1f}"]
    lines += ["refused because the file", *(f"  {count:6,}  {cause}" for cause, count in causes.most_common(25))]
    rest = sum(count for _, count in causes.most_common()[25:])
    return "\n".join([*lines, f"  {rest:6,}  for {max(len(causes) - 25, 0)} other reasons"])


def read_outcomes(path: Path) -> list[Outcome]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [Outcome(int(n), source, kind, cause, float(s)) for n, source, kind, cause, s in csv.reader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path, help="good mesh files")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz_assets.csv"), help="results so far, and where to add")
    arguments = parser.parse_args()
    outcomes = read_outcomes(arguments.out)
    done = {outcome.number for outcome in outcomes}
    with tempfile.TemporaryDirectory() as folder, arguments.out.open("a", encoding="utf-8", newline="") as file:
        good = good_files(arguments.folder, Path(folder))
        for number in sorted(set(range(arguments.count)) - done):
            outcome = try_file(number, good, arguments.seed, Path(folder))
            outcomes.append(outcome)
            csv.writer(file).writerow([outcome.number, outcome.source, outcome.outcome, outcome.cause, outcome.seconds])
            file.flush()
            if len(outcomes) % 500 == 0:
                print(f"{len(outcomes):,} of {arguments.count:,}", flush=True)
    print(report(outcomes))
    stop_server()
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(
        f"largest reader process in this run: {largest:,} MiB; allowed {LIMITS.memory_bytes // 2**20:,} MiB and itself"
    )


if __name__ == "__main__":
    main()
