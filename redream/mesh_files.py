"""A mesh file and the files that it names: what must be copied or hashed together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote


def mesh_files(path: Path) -> list[Path]:
    """Return a mesh file and the files that it names, such as buffers and textures, as far as they lie below it."""
    path = path.resolve()
    named: list[str] = []
    if path.suffix.lower() == ".gltf":
        named = _gltf_uris(path)
    elif path.suffix.lower() == ".obj":
        libraries = _named_after(path, ("mtllib",))
        named = libraries + [
            texture
            for library in libraries
            if (path.parent / library).is_file()
            for texture in _named_after(path.parent / library, ("map_", "norm", "bump"))
        ]
    root = path.parent
    files = [root / name for name in dict.fromkeys(named)]
    return [path, *(file for file in files if file.resolve().is_relative_to(root) and file.is_file())]


def mesh_digest(path: Path) -> str:
    """Hash the content of a mesh file and of the files that it names."""
    digest = hashlib.sha256()
    for file in mesh_files(path):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _gltf_uris(path: Path) -> list[str]:
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for kind in ("buffers", "images") for entry in tree.get(kind, [])]
        uris = [entry.get("uri", "data:") for entry in entries]
        return [unquote(uri) for uri in uris if not uri.startswith("data:")]
    except (ValueError, AttributeError, TypeError, RecursionError):
        return []  # no glTF, as `load_mesh` will say


def _named_after(path: Path, keywords: tuple[str, ...]) -> list[str]:
    """Return the file names in lines of OBJ and MTL files that start with a keyword; options stand before a name."""
    lines = (line.strip().partition(" ") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    rests = [rest.strip() for word, _, rest in lines if word.lower().startswith(keywords) and rest.strip()]
    return [rest if (path.parent / rest).is_file() else rest.split()[-1] for rest in rests]
