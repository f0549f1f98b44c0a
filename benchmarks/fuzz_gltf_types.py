"""Fuzzing of the types in glTF's JSON: seeded mutations of one file that uses all that the reader knows.

Each mutant has one to three values replaced by one of another type, removed, or repeated. It opens or is refused by a
sentence without Python in it. Run as `python -m benchmarks.fuzz_gltf_types [--count 10000] [--seed 0]`.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import json
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from redream.meshes.reading.reader import read_mesh
from redream.meshes.reading.refusal import Refused
from redream.settings import MeshLimits

VALUES: list[Any] = [
    None,
    True,
    False,
    "",
    "x",
    0,
    1,
    -1,
    7,
    2.0,
    0.5,
    2**40,
    10**400,
    [],
    [1],
    ["x"],
    [[]],
    {},
    {"a": 1},
]
PYTHON = re.compile(
    r"\w+(Error|Exception|Warning)\b|NoneType|Traceback|'(str|int|list|dict|float|bool|tuple)'|attribute '|"
    r"subscriptable|unhashable|iterable|positional|numpy|\bNone\b|\bTrue\b|\bFalse\b|ndarray|dtype|must be real"
)
VAGUE = "is damaged or cut off"


def rich_gltf() -> dict[str, Any]:
    """Return a glTF file with a textured, morphed, skinned and sparsely stored square."""
    arrays = {
        "position": np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.5]], np.float32),
        "uv": np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32),
        "joints": np.zeros((4, 4), np.uint8),
        "weights": np.tile(np.array([1, 0, 0, 0], np.float32), (4, 1)),
        "indices": np.array([0, 1, 2, 0, 2, 3], np.uint16),
        "offsets": np.full((4, 3), 0.1, np.float32),
        "bind": np.eye(4, dtype=np.float32).reshape(1, 16),
        "rows": np.array([1], np.uint16),
        "row": np.array([[1.5, 0, 0]], np.float32),
        "colors": np.ones((4, 4), np.float32),
    }
    content, views, places = b"", [], {}
    for name, array in arrays.items():
        content += bytes(-len(content) % 4)
        places[name] = len(views)
        views.append({"buffer": 0, "byteOffset": len(content), "byteLength": array.nbytes})
        content += array.tobytes()
    kinds = {"position": (5126, 4, "VEC3"), "uv": (5126, 4, "VEC2"), "joints": (5121, 4, "VEC4"),
             "weights": (5126, 4, "VEC4"), "indices": (5123, 6, "SCALAR"), "offsets": (5126, 4, "VEC3"),
             "bind": (5126, 1, "MAT4"), "colors": (5126, 4, "VEC4")}  # fmt: skip
    accessors, numbers = [], {}
    for name, (component, count, kind) in kinds.items():
        numbers[name] = len(accessors)
        accessors.append({"bufferView": places[name], "componentType": component, "count": count, "type": kind})
    accessors[numbers["position"]]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": places["rows"], "componentType": 5123},
        "values": {"bufferView": places["row"]},
    }
    slot = {"index": 0, "texCoord": 0, "extensions": {"KHR_texture_transform": {"offset": [0, 0], "rotation": 0.1}}}
    attributes = {"POSITION": "position", "TEXCOORD_0": "uv", "JOINTS_0": "joints", "WEIGHTS_0": "weights",
                  "COLOR_0": "colors"}  # fmt: skip
    primitive = {
        "attributes": {name: numbers[array] for name, array in attributes.items()},
        "indices": numbers["indices"],
        "material": 0,
        "mode": 4,
        "targets": [{"POSITION": numbers["offsets"]}],
    }
    return {
        "asset": {"version": "2.0"},
        "extensionsRequired": ["KHR_texture_transform"],
        "scene": 0,
        "scenes": [{"nodes": [0, 1]}],
        "nodes": [
            {"mesh": 0, "skin": 0, "weights": [0.5]},
            {"children": [2], "translation": [0, 1, 0], "extensions": {"KHR_node_visibility": {"visible": True}}},
            {"rotation": [0, 0, 0, 1], "scale": [1, 1, 1], "mesh": 0},
        ],
        "skins": [{"joints": [1], "inverseBindMatrices": numbers["bind"]}],
        "meshes": [{"primitives": [primitive], "weights": [0.2]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [
            {"byteLength": len(content), "uri": "data:;base64," + base64.b64encode(content).decode()},
        ],
        "images": [{"uri": _pixel()}],
        "textures": [{"source": 0}],
        "materials": [
            {
                "pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 1], "baseColorTexture": slot},
                "emissiveFactor": [0, 0, 0], "emissiveTexture": {"index": 0}, "alphaMode": "MASK", "alphaCutoff": 0.5,
                "doubleSided": True,
            }
        ],
    }  # fmt: skip


def _pixel() -> str:
    file = io.BytesIO()
    Image.new("RGBA", (1, 1), "red").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def mutant(tree: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """Return a copy with one to three values of other types."""
    changed = copy.deepcopy(tree)
    for _ in range(generator.integers(1, 4)):
        places = list(_places(changed))
        holder, key = places[generator.integers(len(places))]
        match generator.integers(0, 8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case 2 if isinstance(holder[key], list):
                holder[key] = {str(i): value for i, value in enumerate(holder[key])}
            case _:
                holder[key] = copy.deepcopy(VALUES[generator.integers(len(VALUES))])
    return changed


def _places(value: Any) -> Any:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def sentence_of(tree: dict[str, Any], path: Path) -> str:
    """Open a mutant; return the sentence by which it is refused, or nothing if it opens."""
    path.write_text(json.dumps(tree))
    try:
        read_mesh(path, MeshLimits(), "+Y")
    except Refused as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tree, sentences, started = rich_gltf(), Counter[str](), time.monotonic()
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mutant.gltf")
        assert not sentence_of(tree, path), "the file itself must open"
        for number in range(arguments.count):
            generator = np.random.default_rng([arguments.seed, number])
            sentences[sentence_of(mutant(tree, generator), path)] += 1
    pythonic = [sentence for sentence in sentences if PYTHON.search(sentence)]
    vague = sum(count for sentence, count in sentences.items() if VAGUE in sentence)
    print(f"{arguments.count:,} mutated JSONs in {time.monotonic() - started:.0f} s: {sentences['']:,} open")
    print(f"refused by a sentence with Python in it: {len(pythonic)}; without the cause: {vague}")
    for sentence in pythonic[:10]:
        print(" ", sentence)
    plain = Counter({re.sub(r"\[\d+\]", "[N]", text): count for text, count in sentences.items() if text})
    for sentence, count in plain.most_common(12):
        print(f"{count:7,}  {sentence}")


if __name__ == "__main__":
    main()
