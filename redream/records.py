"""The records of retrieval: an asset, what was found near a prompt. They cross task borders and load nothing heavy.

So a run whose stages are all in the store ends without torch, open_clip or trimesh being imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

UpAxis = Literal["+Y", "+Z"]
MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")  # of the files that can be read
# Of a mesh file, where its front faces; "keep" leaves the mesh as it stands, "" looks for its front.
FrontAxis = Literal["", "+X", "-X", "+Y", "-Y", "+Z", "-Z", "keep"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """One 3D object of the database."""

    asset_id: str
    mesh_path: str
    caption: str
    source: str
    license: str
    author: str = ""
    up_axis: UpAxis = "+Y"  # of the mesh file; +Z where its author ignored glTF's axes
    front_axis: FrontAxis = ""
    border: str = ""  # the outermost folder of pictures that the mesh may name; by default one level above its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbor:
    """An asset near a prompt. `azimuth_offset_deg` is where its front was found; turning it by minus that aligns it."""

    asset: Asset
    score: float  # cosine of the prompt with the mean of its renders, or with the best where every view is kept
    text_score: float  # cosine of the prompt with its caption
    lexical_score: float = 0.0  # of the prompt's words in its caption, in nats; 0 where it holds none of them
    is_weak: bool = False  # nothing says that it is what the prompt names
    fit: float = 0.0  # chance that it is what the prompt means, by words and renders, among as many kinds of things
    has_picture: bool = True  # False where the index knows only the caption as yet; `score` is 0 then
    azimuth_offset_deg: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    prompt: str
    neighbors: tuple[Neighbor, ...]  # nearest first

    def taken(self, take_weak: bool) -> tuple[Neighbor, ...]:
        """Return those that an object is made from."""
        return tuple(neighbor for neighbor in self.neighbors if take_weak or not neighbor.is_weak)
