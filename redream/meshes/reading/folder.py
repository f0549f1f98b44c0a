"""The files that a mesh file is made of: itself and what lies in its own folder, never anything outside."""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from redream.meshes.reading.refusal import Refused
from redream.meshes.reading.textures import open_image
from redream.settings import MeshLimits

logger = logging.getLogger(__name__)


def read_whole_file(path: Path, limits: MeshLimits, what: str = "") -> bytes:
    """Read a file of the allowed size; `what` names it where it is not the mesh file itself."""
    if not path.is_file():
        raise Refused(f"{what}is not a regular file" if path.exists() else f"{what}does not exist (looked for {path})")
    try:
        with path.open("rb") as file:
            content = file.read(limits.file_bytes + 1)
    except OSError as error:
        raise Refused(f"{what}cannot be read ({error.strerror})") from error
    if not content:
        raise Refused(f"{what}is empty (0 bytes)")
    if len(content) > limits.file_bytes:
        raise Refused(f"{what}has {path.stat().st_size:,} bytes, more than the allowed {limits.file_bytes:,}")
    return content


class Folder:
    """Serves the files beside a mesh file, to the glTF reader and, as its `resolver`, to trimesh."""

    def __init__(self, path: Path, limits: MeshLimits) -> None:
        self._folder = path.parent.resolve()
        self.limits = limits
        self._contents: dict[Path, bytes] = {}

    def find(self, uri: str) -> Path:
        """Return the path that `uri` names, which may not exist, or refuse it where it leaves the folder."""
        name = unquote(uri).strip()
        is_foreign = "://" in name or name.startswith(("/", "\\", "~")) or ":" in name.split("/")[0] or "\0" in name
        if is_foreign or ".." in name.replace("\\", "/").split("/"):
            raise Refused(f"refers to {uri[:200]!r}, which is outside its own folder")
        target = (self._folder / name).resolve()
        if not target.is_relative_to(self._folder):
            raise Refused(f"refers to {uri[:200]!r}, which leads outside its own folder")
        return target

    def read(self, uri: str) -> bytes:
        """Read what a URI names: a file of the folder, or the data in the URI itself."""
        if uri[:5].lower() == "data:":
            return data_of(uri)
        path = self.find(uri)
        if path not in self._contents:
            self._contents[path] = read_whole_file(path, self.limits, f"needs its file {uri[:200]!r}, which ")
        return self._contents[path]

    def get(self, name: str) -> bytes:
        """Read a file for trimesh, which asks for material libraries and for images."""
        try:
            content = self.read(name)
            if not name.lower().endswith(".mtl"):
                open_image(content, self.limits)  # trimesh would open images of any kind and size
        except Refused as error:
            logger.warning("%s; read without it", error)  # trimesh goes on and says nothing
            raise
        return content

    def __getitem__(self, name: str) -> bytes:
        return self.get(name)


def data_of(uri: str) -> bytes:
    """Decode a data URI (RFC 2397)."""
    head, _, data = uri.partition(",")
    if not head.endswith(";base64"):
        return unquote_to_bytes(data)
    try:
        return base64.b64decode(unquote(data), validate=True)
    except binascii.Error as error:
        raise Refused(f"has a data URI that is no base64 ({error})") from error
