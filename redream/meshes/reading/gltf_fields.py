"""The types of the fields of glTF's JSON that the readers use, checked before anything is read by them.

A wrong type is refused by the field's name. A `null`, which some exporters write, counts as a field that is not there.
"""

from __future__ import annotations

from typing import Any

from redream.meshes.reading.refusal import Refused

INTEGER, NUMBER, STRING, BOOLEAN = "an integer", "a number", "a string", "true or false"
OBJECT, ARRAY = "an object", "an array"
NUMBERS, INTEGERS = [NUMBER], [INTEGER]
EACH = "*"  # stands for every field of an object

_TEXTURE_TRANSFORM = {"offset": NUMBERS, "scale": NUMBERS, "rotation": NUMBER, "texCoord": INTEGER}
_SLOT = {"index": INTEGER, "texCoord": INTEGER, "extensions": {"KHR_texture_transform": _TEXTURE_TRANSFORM}}
_PLACE = {"bufferView": INTEGER, "byteOffset": INTEGER, "componentType": INTEGER}
_PACKED = {"buffer": INTEGER, "byteOffset": INTEGER, "byteLength": INTEGER, "byteStride": INTEGER, "count": INTEGER,
           "mode": STRING, "filter": STRING}  # fmt: skip
# Names that end in "!" must be there.
FIELDS: dict[str, Any] = {
    "asset": {"version": STRING},
    "extensionsRequired": [STRING],
    "scene": INTEGER,
    "scenes": [{"nodes": INTEGERS}],
    "nodes": [
        {
            "mesh": INTEGER, "skin": INTEGER, "children": INTEGERS, "weights": NUMBERS, "matrix": NUMBERS,
            "rotation": NUMBERS, "scale": NUMBERS, "translation": NUMBERS,
            "extensions": {"KHR_node_visibility": {"visible": BOOLEAN}},
        }
    ],
    "skins": [{"joints": INTEGERS, "inverseBindMatrices": INTEGER}],
    "meshes": [
        {
            "weights": NUMBERS,
            "primitives!": [
                {
                    "attributes!": {EACH: INTEGER}, "indices": INTEGER, "mode": INTEGER, "material": INTEGER,
                    "targets": [{EACH: INTEGER}],
                    "extensions": {
                        "KHR_draco_mesh_compression": {"bufferView": INTEGER, "attributes": {EACH: INTEGER}}
                    },
                }
            ],
        }
    ],
    "accessors": [
        {
            **_PLACE, "count": INTEGER, "type": STRING, "normalized": BOOLEAN,
            "sparse": {"count!": INTEGER, "indices!": _PLACE, "values!": _PLACE},
        }
    ],
    "bufferViews": [
        {
            "buffer": INTEGER, "byteOffset": INTEGER, "byteLength": INTEGER, "byteStride": INTEGER,
            "extensions": {"EXT_meshopt_compression": _PACKED, "KHR_meshopt_compression": _PACKED},
        }
    ],
    "buffers": [{"uri": STRING, "byteLength": INTEGER}],
    "images": [{"uri": STRING, "bufferView": INTEGER}],
    "textures": [{"source": INTEGER, "extensions": {"EXT_texture_webp": {"source": INTEGER}}}],
    "materials": [
        {
            "pbrMetallicRoughness": {"baseColorFactor": NUMBERS, "baseColorTexture": _SLOT},
            "emissiveFactor": NUMBERS, "emissiveTexture": _SLOT,
            "alphaMode": STRING, "alphaCutoff": NUMBER, "doubleSided": BOOLEAN,
            "extensions": {
                "KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": NUMBERS, "diffuseTexture": _SLOT}
            },
        }
    ],
}  # fmt: skip


def check_fields(tree: dict[str, Any]) -> None:
    """Raise `Refused` if a field that is read has a wrong type, or if the file is of glTF 1.0.

    Removes the fields that are `null`.
    """
    asset = tree.get("asset")
    version = asset.get("version") if isinstance(asset, dict) else None
    is_old = isinstance(version, str | int | float) and str(version).startswith(("0.", "1"))
    # Version 1.0 keeps what version 2.0 has in arrays by name.
    if is_old or (version is None and isinstance(tree.get("meshes"), dict) and isinstance(tree.get("buffers"), dict)):
        raise Refused(f"is glTF {str(version or '1.0')[:20]}; only 2.0 can be read")
    _check_object(tree, FIELDS, "")


def _check_object(value: dict[str, Any], fields: dict[str, Any], path: str) -> None:
    names = fields if EACH not in fields else dict.fromkeys(value, fields[EACH])
    for marked, expected in names.items():
        name = marked.removesuffix("!") if EACH not in fields else marked
        place = f"{path}.{name[:60]}" if path else name
        if value.get(name) is None:
            value.pop(name, None)
            if marked != name:
                raise Refused(f"has no {place}")
        else:
            _check(value[name], expected, place)


def _check(value: Any, expected: Any, place: str) -> None:
    """Raise `Refused` with a value's place if it is of another type."""
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            raise _wrong(value, OBJECT, place)
        _check_object(value, expected, place)
    elif isinstance(expected, list):
        if not isinstance(value, list):
            raise _wrong(value, ARRAY, place)
        for index, item in enumerate(value):
            _check(item, expected[0], f"{place}[{index}]")
    elif expected == INTEGER:
        if type(value) is not int:
            raise _wrong(value, expected, place)
    elif expected == NUMBER:
        if type(value) not in (int, float):
            raise _wrong(value, expected, place)
    elif not isinstance(value, str if expected == STRING else bool):
        raise _wrong(value, expected, place)


def _wrong(value: Any, expected: str, place: str) -> Refused:
    return Refused(f"has {_kind(value)} in {place}, which must be {expected}")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: ARRAY, dict: OBJECT}
    return kinds[type(value)]
