"""The JSON of a glTF or GLB file, for what it says of itself; nothing in it is trusted, and no geometry is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

MAX_JSON = 16 * 2**20  # bytes, of which some hundred MB of lists can come; a longer one says nothing here


def gltf_json(path: Path) -> dict[str, Any]:
    """Return the top-level object, or an empty one for a file without it."""
    try:
        with path.open("rb") as file:
            start = file.read(20)
            if start[:4] == b"glTF" and len(start) == 20:
                size = struct.unpack_from("<I", start, 12)[0]
                text = file.read(size) if size <= MAX_JSON else b""
            else:
                text = start + file.read(MAX_JSON)
        tree = json.loads(text.decode("utf-8-sig")) if len(text) < MAX_JSON else {}
    except (OSError, ValueError, RecursionError, MemoryError):
        return {}
    return tree if isinstance(tree, dict) else {}
