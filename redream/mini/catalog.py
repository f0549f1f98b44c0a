"""The catalog of the miniature world: 24 categories x 8 colours of procedural assets with Cap3D-like captions.

`make_mesh` builds one object in canonical world axes (+z up, the true front towards +x, bounding sphere of radius 0.5
at the origin). `write_catalog` writes what stages may read, GLB files (glTF axes: y up, front +z; world (x, y, z) =
glTF (z, x, y)), each turned about the up axis by a random `yaw_deg`, and keeps the truth in a file that no stage reads.

`yaw_deg` is the azimuth, in the loaded asset's world axes, at which its true front points: 0 = +x, increasing towards
+y, in [-180, 180). The front faces (cos yaw, sin yaw, 0), a camera at `azimuth_deg == yaw_deg` looks it in the face,
and turning the asset by -yaw_deg about +z makes it canonical. Vertex colours are sRGB bytes in memory; glTF's COLOR_0
is linear.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Float, Int, UInt8
from trimesh.visual.color import ColorVisuals

from redream.mini.shapes import characters, household, plants, vehicles
from redream.mini.shapes.primitives import Part, Rgb

OBJECT_RADIUS = 0.5
LICENSE = "CC0-1.0"
AUTHOR = "ReDream miniature"
SOURCE = "redream.mini"


@dataclass(frozen=True)
class CategoryInfo:
    """What captions may say of a category, and how to build it; `parts` holds for every variant of the mesh."""

    name: str
    synonyms: tuple[str, ...]
    has_front: bool
    parts: tuple[str, ...]
    build: Callable[[Rgb, np.random.Generator], list[Part]]


@dataclass(frozen=True)
class ColorInfo:
    """A main body colour: sRGB in [0, 1] and the words for it."""

    name: str
    rgb: Rgb
    synonyms: tuple[str, ...]


_CATEGORIES = (
    CategoryInfo(
        "car", ("car", "automobile"), True, ("black wheels", "round headlights", "a dark windscreen"), vehicles.car
    ),
    CategoryInfo("bus", ("bus", "coach"), True, ("black wheels", "a row of windows", "a big windscreen"), vehicles.bus),
    CategoryInfo("truck", ("truck", "lorry"), True, ("a large cargo box", "six wheels", "a small cab"), vehicles.truck),
    CategoryInfo(
        "airplane",
        ("airplane", "plane", "aircraft"),
        True,
        ("two wings", "a propeller", "a tail fin"),
        vehicles.airplane,
    ),
    CategoryInfo(
        "boat", ("boat", "sailing boat", "sailboat"), True, ("a tall mast", "two sails", "a white cabin"), vehicles.boat
    ),
    CategoryInfo("chair", ("chair",), True, ("four brown legs", "a soft seat cushion", "wooden legs"), household.chair),
    CategoryInfo(
        "sofa", ("sofa", "couch"), True, ("soft cushions", "two armrests", "short brown legs"), household.sofa
    ),
    CategoryInfo("house", ("house", "cottage"), True, ("a brown door", "a chimney", "a pitched roof"), household.house),
    CategoryInfo(
        "robot", ("robot", "android"), True, ("big round eyes", "grey arms", "a white chest panel"), characters.robot
    ),
    CategoryInfo("dog", ("dog", "puppy"), True, ("floppy ears", "a black nose", "a curved tail"), characters.dog),
    CategoryInfo(
        "duck", ("duck", "duckling"), True, ("an orange beak", "folded wings", "orange feet"), characters.duck
    ),
    CategoryInfo("fish", ("fish",), True, ("a forked tail", "big round eyes", "fins"), characters.fish),
    CategoryInfo(
        "owl", ("owl",), True, ("huge round eyes", "pointed ear tufts", "a small orange beak"), characters.owl
    ),
    CategoryInfo("elephant", ("elephant",), True, ("a long trunk", "big ears", "white tusks"), characters.elephant),
    CategoryInfo(
        "teapot", ("teapot", "tea pot"), True, ("a spout", "a curved handle", "a knobbed lid"), household.teapot
    ),
    CategoryInfo(
        "clock", ("clock", "alarm clock"), True, ("a white dial", "two bells", "black hands"), household.clock
    ),
    CategoryInfo(
        "television", ("television", "tv"), True, ("a dark screen", "two antennas", "round knobs"), household.television
    ),
    CategoryInfo("snail", ("snail",), True, ("a spiral shell", "eyes on stalks", "a cream body"), characters.snail),
    CategoryInfo(
        "penguin", ("penguin",), True, ("a white belly", "an orange beak", "two flippers"), characters.penguin
    ),
    CategoryInfo(
        "rabbit", ("rabbit", "bunny"), True, ("long ears", "a white tail", "a white belly"), characters.rabbit
    ),
    CategoryInfo("tree", ("tree",), False, ("a brown trunk", "thick foliage", "a full crown"), plants.tree),
    CategoryInfo("table", ("table",), False, ("four legs", "a square top", "a thick top"), household.table),
    CategoryInfo(
        "mushroom", ("mushroom", "toadstool"), False, ("white spots", "a pale stem", "a domed cap"), plants.mushroom
    ),
    CategoryInfo("vase", ("vase", "pot"), False, ("a narrow neck", "a pale band", "a round belly"), household.vase),
)
CATEGORIES: dict[str, CategoryInfo] = {info.name: info for info in _CATEGORIES}

_COLORS = (
    ColorInfo("red", (0.86, 0.09, 0.09), ("red", "crimson", "scarlet")),
    ColorInfo("orange", (0.98, 0.47, 0.04), ("orange", "tangerine")),
    ColorInfo("yellow", (0.98, 0.86, 0.10), ("yellow", "lemon yellow", "golden")),
    ColorInfo("green", (0.13, 0.62, 0.16), ("green", "emerald", "grass green")),
    ColorInfo("turquoise", (0.10, 0.78, 0.76), ("turquoise", "teal", "cyan")),
    ColorInfo("blue", (0.10, 0.27, 0.86), ("blue", "cobalt", "royal blue")),
    ColorInfo("purple", (0.47, 0.14, 0.70), ("purple", "violet")),
    ColorInfo("pink", (0.98, 0.48, 0.72), ("pink", "rose", "rosy pink")),
)
COLORS: dict[str, ColorInfo] = {info.name: info for info in _COLORS}

# "{thing}" is an article, colour and category; "{bare}" the same without article; "{part}" something the object has.
_PLAIN_TEMPLATES = (
    "{thing}",
    "{thing}",
    "{bare}",
    "{bare} with {part}",
    "{thing} with {part}",
    "{thing} with {part}",
    "{thing} with {part} and {part2}",
    "{thing} with {part}, {part2}",
    "{thing} that has {part}",
    "{thing} having {part} and {part2}",
    "3d model of {thing}",
    "3d model of {thing} with {part}",
    "a 3d model of {thing}",
    "3d model of {thing} with {part} and {part2}",
    "{bare}, 3d model",
    "{bare}, 3d asset",
    "a 3d render of {thing}",
    "a 3d rendering of {thing} with {part}",
    "a low poly {bare}",
    "a low poly {bare} with {part}",
    "low poly model of {thing}",
    "a simple {bare}",
    "a simple {bare} with {part}",
    "a toy {bare}",
    "a cute {bare} with {part}",
    "a cartoon {bare}",
    "a small {bare} with {part}",
    "a stylized {bare} with {part}",
    "a plain {bare}",
    "a nice {bare} with {part}",
    "an image of {thing}",
    "a picture of {thing} with {part}",
    "a {category} in {color}",
    "a {category} painted {color}",
    "a {category} with {part}, {color}",
)
_VIEW_TEMPLATES = (
    "{view} view of {caption}",
    "{view} view of {caption}",
    "{view} view of {caption}",
    "{view} view, {caption}",
    "{caption}, {view} view",
    "{caption}, {view} view",
    "the {view} view of {caption}",
    "{caption} in {view} view",
    "{caption} {seen}",
)
_SEEN = {
    "front": ("seen from the front", "facing the viewer"),
    "side": ("seen from the side", "in profile"),
    "back": ("seen from behind", "seen from the back"),
    "overhead": ("seen from above", "from above"),
}
MAX_WORDS = 20


def make_mesh(category: str, color: str, generator: np.random.Generator) -> trimesh.Trimesh:
    """Build one object in canonical world axes, its bounding box centred and its farthest vertex at `OBJECT_RADIUS`."""
    return mesh_of_parts(make_parts(category, color, generator))


def make_parts(category: str, color: str, generator: np.random.Generator) -> list[Part]:
    """Build the closed solids of one object, centred and scaled; they overlap freely."""
    _check_pair(category, color)
    parts = CATEGORIES[category].build(_shade(COLORS[color].rgb, generator), generator)
    vertices = np.concatenate([part.vertices for part in parts])
    center = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    scale = OBJECT_RADIUS / np.linalg.norm(vertices - center, axis=-1).max()
    return [part._replace(vertices=(part.vertices - center) * scale) for part in parts]


def mesh_of_parts(parts: list[Part]) -> trimesh.Trimesh:
    """Join parts into one mesh with sRGB vertex colours; nothing is merged, so every part keeps its own flat colour."""
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    vertices = np.concatenate([part.vertices for part in parts])
    faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)])
    rgb = np.repeat([part.rgb for part in parts], [len(part.vertices) for part in parts], axis=0)
    rgba = np.concatenate([np.round(255 * rgb), np.full((len(rgb), 1), 255)], axis=-1).astype(np.uint8)
    normals = _vertex_normals(vertices, faces)
    return trimesh.Trimesh(vertices, faces, vertex_normals=normals, vertex_colors=rgba, process=False)


def make_caption(category: str, color: str, generator: np.random.Generator, view: str | None = None) -> str:
    """Describe an object as Cap3D would: true of every variant, lower case, silent about the view unless one is named.

    Args:
        view: "front", "side", "back", "overhead", or None for a caption without any word about the view.
    """
    if view is not None and view not in _SEEN:
        raise ValueError(f"unknown view {view!r}; choose one of {', '.join(_SEEN)} or None")
    _check_pair(category, color)
    info = CATEGORIES[category]
    noun = _pick(info.synonyms, generator) if generator.random() < 0.4 else info.name
    word = _pick(COLORS[color].synonyms, generator) if generator.random() < 0.4 else color
    part, part2 = (info.parts[i] for i in generator.permutation(len(info.parts))[:2])
    bare = f"{word} {noun}"
    caption = _pick(_PLAIN_TEMPLATES, generator).format(
        thing=f"{_article(bare)} {bare}", bare=bare, category=noun, color=word, part=part, part2=part2
    )
    caption = _mend_articles(caption)
    if view is None:
        return caption
    return _pick(_VIEW_TEMPLATES, generator).format(view=view, caption=caption, seen=_pick(_SEEN[view], generator))


def vocabulary() -> list[str]:
    """All words that captions use, sorted, without punctuation."""
    texts = [*_PLAIN_TEMPLATES, *_VIEW_TEMPLATES, *_SEEN, *(phrase for phrases in _SEEN.values() for phrase in phrases)]
    texts += [text for info in _CATEGORIES for text in (*info.synonyms, *info.parts)]
    texts += [text for info in _COLORS for text in info.synonyms]
    words = {word.strip(",") for text in texts for word in text.split() if "{" not in word}
    return sorted(words | {"a", "an"})


def catalog_pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Split the 192 (category, color) pairs into 128 of the catalog and 64 left out.

    A fixed shuffle and a Latin pattern leave out 2 or 3 colours of each category and 8 categories of each colour.
    """
    generator = np.random.default_rng(20240)
    category_rank = generator.permutation(len(CATEGORIES))
    color_rank = generator.permutation(len(COLORS))
    included, left_out = [], []
    for i, category in enumerate(CATEGORIES):
        for j, color in enumerate(COLORS):
            is_out = (category_rank[i] + color_rank[j]) % 3 == 0
            (left_out if is_out else included).append((category, color))
    return included, left_out


def write_catalog(folder: Path | str, seed: int = 0, num_variants: int = 3) -> None:
    """Write `assets/<uid>.glb`, `catalog.jsonl` and, apart from them, `truth.json`; a seed always gives the same bytes.

    Each of the 128 pairs gets `num_variants` assets. Every file appears under its name only when complete, the catalog
    last.
    """
    folder = Path(folder)
    (folder / "assets").mkdir(parents=True, exist_ok=True)
    lines, truth = [], {}
    categories, colors = list(CATEGORIES), list(COLORS)
    for category, color in catalog_pairs()[0]:
        for variant in range(num_variants):
            key = [seed, categories.index(category), colors.index(color), variant]
            generator = np.random.default_rng(key)
            uid = hashlib.sha256("/".join(map(str, key)).encode()).hexdigest()[:32]
            mesh = make_mesh(category, color, generator)
            yaw_deg = round(float(generator.uniform(-180, 180)), 3)
            record = {
                "uid": uid,
                "caption": make_caption(category, color, generator),
                "license": LICENSE,
                "author": AUTHOR,
                "source": SOURCE,
            }
            file = f"assets/{uid}.glb"
            _write_atomically(folder / file, glb_bytes(mesh, yaw_deg, record))
            lines.append(json.dumps({"file": file, **record}))
            truth[uid] = {
                "category": category,
                "color": color,
                "yaw_deg": yaw_deg,
                "has_front": CATEGORIES[category].has_front,
            }
    _write_atomically(folder / "truth.json", (json.dumps(truth, indent=1) + "\n").encode())
    # Sorted by uid, so that the order tells nothing about the category.
    _write_atomically(folder / "catalog.jsonl", ("\n".join(sorted(lines)) + "\n").encode())


def glb_bytes(mesh: trimesh.Trimesh, yaw_deg: float, extras: dict[str, str]) -> bytes:
    """Encode a canonical mesh as binary glTF, turned by `yaw_deg` about up, with `extras` in `asset.extras`."""
    assert isinstance(mesh.visual, ColorVisuals), "make_mesh colours vertices"
    positions = _to_gltf(_turn(np.asarray(mesh.vertices), yaw_deg))
    normals = _to_gltf(_turn(np.asarray(mesh.vertex_normals), yaw_deg))
    indices = np.asarray(mesh.faces, dtype="<u2").ravel()
    assert len(positions) < 2**16, "16-bit indices"
    # 16 bits, because linear bytes would merge dark sRGB values.
    colors = np.round(65535 * _linear(np.asarray(mesh.visual.vertex_colors))).astype("<u2")
    blocks = [positions.tobytes(), normals.tobytes(), colors.tobytes()]
    blocks.append(indices.tobytes() + b"\0" * (-indices.nbytes % 4))
    starts = np.cumsum([0] + [len(block) for block in blocks]).tolist()
    num_vertices = len(positions)
    document = {
        "asset": {"version": "2.0", "generator": SOURCE, "extras": extras},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {
                "primitives": [
                    {"attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}, "indices": 3, "material": 0, "mode": 4}
                ]
            }
        ],
        "materials": [
            {
                "pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 1], "metallicFactor": 0, "roughnessFactor": 1},
                "doubleSided": False,
            }
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5126,
                "count": num_vertices,
                "type": "VEC3",
                "min": positions.min(axis=0).tolist(),
                "max": positions.max(axis=0).tolist(),
            },
            {"bufferView": 1, "componentType": 5126, "count": num_vertices, "type": "VEC3"},
            {"bufferView": 2, "componentType": 5123, "normalized": True, "count": num_vertices, "type": "VEC4"},
            {"bufferView": 3, "componentType": 5123, "count": len(indices), "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": len(block), "target": 34962 + (i == 3)}
            for i, (start, block) in enumerate(zip(starts, blocks, strict=False))
        ],
        "buffers": [{"byteLength": starts[-1]}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", starts[-1], b"BIN\0") + b"".join(blocks)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def _check_pair(category: str, color: str) -> None:
    if category not in CATEGORIES:
        raise ValueError(f"unknown category {category!r}; choose one of {', '.join(CATEGORIES)}")
    if color not in COLORS:
        raise ValueError(f"unknown color {color!r}; choose one of {', '.join(COLORS)}")


def _turn(vectors: Float[np.ndarray, "num 3"], azimuth_deg: float) -> Float[np.ndarray, "num 3"]:
    cos, sin = np.cos(np.radians(azimuth_deg)), np.sin(np.radians(azimuth_deg))
    return vectors @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]).T


def _to_gltf(vectors: Float[np.ndarray, "num 3"]) -> Float[np.ndarray, "num 3"]:
    return np.ascontiguousarray(vectors[:, [1, 2, 0]], dtype="<f4")


def _shade(rgb: Rgb, generator: np.random.Generator) -> Rgb:
    """Vary a colour a little: hue by its channels, brightness as a whole."""
    varied = (np.asarray(rgb) + generator.uniform(-0.025, 0.025, 3)) * generator.uniform(0.93, 1.03)
    return tuple(np.clip(varied, 0, 1).tolist())


def _linear(rgba: UInt8[np.ndarray, "num 4"]) -> Float[np.ndarray, "num 4"]:
    """sRGB bytes to linear values in [0, 1] (IEC 61966-2-1); alpha stays."""
    srgb = rgba / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear[:, 3] = srgb[:, 3]
    return linear


def _vertex_normals(
    vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]
) -> Float[np.ndarray, "num_vertices 3"]:
    """Average the normals of the faces at each vertex, weighted by area; unused vertices point up."""
    corners = vertices[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    index, weights = faces.ravel(), np.repeat(face_normals, 3, axis=0)
    sums = [np.bincount(index, weights=weights[:, axis], minlength=len(vertices)) for axis in range(3)]
    normals = np.stack(sums, axis=-1)
    lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.where(lengths > 0, normals / np.maximum(lengths, 1e-30), [0.0, 0.0, 1.0])


def _pick(options: tuple[str, ...], generator: np.random.Generator) -> str:
    return options[int(generator.integers(len(options)))]


def _article(text: str) -> str:
    return "an" if text[0] in "aeiou" else "a"


def _mend_articles(caption: str) -> str:
    """Make "a" before a vowel "an": templates write "a {category}"."""
    words = caption.split(" ")
    for i in range(len(words) - 1):
        if words[i] in ("a", "an"):
            words[i] = _article(words[i + 1])
    return " ".join(words)


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)
