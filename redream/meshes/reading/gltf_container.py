"""The container of glTF 2.0: a GLB's chunks, or JSON by itself."""

from __future__ import annotations

import json
import struct
from typing import Any

from redream.meshes.reading.refusal import Refused


def gltf_tree(content: bytes) -> dict[str, Any]:
    """Return the JSON of a GLB or a glTF file, or raise `Refused`."""
    return split_glb(content)[0] if content[:4] == b"glTF" else parse_json(content)


def split_glb(content: bytes) -> tuple[dict[str, Any], bytes | None]:
    """Split a GLB container into its JSON and its binary chunk (glTF 2.0, section 4.4)."""
    if len(content) < 20:
        raise Refused("is cut off inside its GLB header")
    version, length = struct.unpack_from("<II", content, 4)
    if version != 2:
        raise Refused(f"is a GLB of version {version}; only version 2 can be read")
    if length > len(content):
        raise Refused(f"is cut off: it says {length:,} bytes and has {len(content):,}")
    chunks: dict[bytes, bytes] = {}
    offset = 12
    while offset + 8 <= length:
        size, kind = struct.unpack_from("<I4s", content, offset)
        if offset + 8 + size > length:
            raise Refused(f"has a GLB chunk of {size:,} bytes that runs over the file's end")
        chunks.setdefault(kind, content[offset + 8 : offset + 8 + size])
        offset += 8 + size
    if b"JSON" not in chunks:
        raise Refused("has no JSON chunk")
    return parse_json(chunks[b"JSON"]), chunks.get(b"BIN\0")


def parse_json(content: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"holds broken JSON ({error})") from error
    if not isinstance(tree, dict):
        raise Refused("is JSON, but not glTF: its top level is no object")
    return tree
