"""The arrays of a glTF 2.0 file (specification, section 3.6), each checked against what the file holds before use.

Readable besides plain buffers: sparse accessors, KHR_mesh_quantization (any component type, normalised or not),
KHR_draco_mesh_compression and EXT_meshopt_compression.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from redream.meshes.reading.folder import Folder
from redream.meshes.reading.refusal import Refused
from redream.settings import MeshLimits

COMPONENT_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
MAX_STRIDE = 256  # bytes; glTF allows 252, meshopt 256


class GltfArrays:
    """The JSON tree of a glTF file with its buffers; everything is fetched by index, as glTF refers to it."""

    def __init__(self, tree: dict[str, Any], binary: bytes | None, folder: Folder, limits: MeshLimits) -> None:
        self.tree = tree
        self.limits = limits
        self._binary = binary
        self.folder = folder
        self._buffers: dict[int, bytes] = {}
        self._unpacked: dict[int, bytes] = {}
        self._accessors: dict[int, np.ndarray] = {}

    def entry(self, kind: str, index: Any) -> dict[str, Any]:
        """Return one object of a top-level array; Python would take -1 for the last."""
        entries = self.tree.get(kind, [])
        if type(index) is not int or not 0 <= index < len(entries):
            raise Refused(f"refers to {kind}[{_shown(index)}] and has {len(entries)} of them")
        if not isinstance(entries[index], dict):
            raise Refused(f"has something else than an object in {kind}[{index}]")
        return entries[index]

    def uri_content(self, uri: Any) -> bytes:
        if not isinstance(uri, str):
            raise Refused(f"has a URI that is no text: {_shown(uri)}")
        return self.folder.read(uri)

    def view(self, index: Any) -> tuple[bytes | memoryview, int | None]:
        """Return a buffer view's bytes, decompressed, and its stride where it states one."""
        view = self.entry("bufferViews", index)
        stride = view.get("byteStride")
        extensions = view.get("extensions", {})
        packed = next((extensions[name] for name in MESHOPT if name in extensions), None)
        if packed is None:
            return self._slice(view), stride
        if index not in self._unpacked:
            self._unpacked[index] = self._unpack(packed)
        if len(self._unpacked[index]) < _natural(view.get("byteLength"), "byteLength"):
            raise Refused("has a compressed buffer view that is shorter than declared")
        return self._unpacked[index], stride

    def raw(self, index: Any) -> np.ndarray:
        """Return an accessor's elements as stored, [count, width]."""
        accessor = self.entry("accessors", index)
        if index not in self._accessors:
            self._accessors[index] = self._read_accessor(accessor)
        return self._accessors[index]

    def values(self, index: Any, *widths: int) -> np.ndarray:
        """Return an accessor's elements as float32, normalised integers in [0, 1] or [-1, 1]."""
        array = self.raw(index)
        if array.shape[1] not in widths:
            raise Refused(f"has an attribute of {array.shape[1]} numbers where {' or '.join(map(str, widths))} belong")
        return as_floats(array, self.entry("accessors", index))

    def draco(self, extension: dict[str, Any], attributes: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Decode a KHR_draco_mesh_compression primitive into attributes by name, as floats, and vertex indices."""
        try:
            import DracoPy
        except ImportError as error:
            raise Refused("is compressed with Draco, which cannot be decoded (is DracoPy installed?)") from error
        content, _ = self.view(extension.get("bufferView"))
        try:
            mesh = DracoPy.decode(bytes(content))
        except MemoryError:
            raise
        except Exception as error:
            raise Refused("has Draco data that cannot be decoded") from error
        faces = np.asarray(getattr(mesh, "faces", None))
        if faces.ndim != 2 or faces.shape[1] != 3:
            raise Refused("has Draco data without triangles")
        decoded = {}
        for name, unique_id in extension.get("attributes", {}).items():
            attribute = mesh.get_attribute_by_unique_id(unique_id)
            if attribute is None or name not in attributes:
                raise Refused(f"names the Draco attribute {_shown(unique_id)}, which its data lack")
            array = np.asarray(attribute["data"])
            decoded[name] = as_floats(array.reshape(len(array), -1), self.entry("accessors", attributes[name]))
        return decoded, faces.reshape(-1)

    def _buffer(self, index: Any) -> bytes:
        buffer = self.entry("buffers", index)
        if index not in self._buffers:
            if "uri" in buffer:
                self._buffers[index] = self.uri_content(buffer["uri"])
            elif index == 0 and self._binary is not None:
                self._buffers[index] = self._binary
            else:
                raise Refused(f"keeps its data in a binary chunk that it lacks (buffer {index})")
        declared = _natural(buffer.get("byteLength"), "byteLength")
        if declared > len(self._buffers[index]):
            raise Refused(f"declares {declared:,} bytes in buffer {index} and has {len(self._buffers[index]):,}")
        return self._buffers[index]

    def _slice(self, view: dict[str, Any]) -> memoryview:
        buffer = self._buffer(view.get("buffer"))
        offset = _natural(view.get("byteOffset", 0), "byteOffset")
        length = _natural(view.get("byteLength"), "byteLength")
        if offset + length > len(buffer):
            raise Refused(f"has a buffer view that ends {offset + length - len(buffer):,} bytes behind its buffer")
        return memoryview(buffer)[offset : offset + length]

    def _unpack(self, packed: dict[str, Any]) -> bytes:
        try:
            import meshopt
        except ImportError as error:
            raise Refused("needs EXT_meshopt_compression, which cannot be read (is meshopt installed?)") from error
        count = _natural(packed.get("count"), "count")
        stride = _natural(packed.get("byteStride"), "byteStride")
        self._check_count(count)
        if not 0 < stride <= MAX_STRIDE:
            raise Refused(f"has a compressed buffer view with a stride of {stride}")
        try:
            rows = meshopt.decode_gltf_buffer(
                bytes(self._slice(packed)), count, stride, packed.get("mode", ""), packed.get("filter")
            )
        except MemoryError:
            raise
        except Exception as error:
            raise Refused("has meshopt data that cannot be decoded") from error
        return rows.tobytes()

    def _read_accessor(self, accessor: dict[str, Any]) -> np.ndarray:
        count = _natural(accessor.get("count"), "count")
        self._check_count(count)
        if accessor.get("type") not in WIDTHS:
            raise Refused(f"has an accessor of the type {_shown(accessor.get('type'))}")
        width = WIDTHS[accessor["type"]]
        dtype = _dtype(accessor)
        if "bufferView" in accessor:
            array = self._elements(accessor, count, width, dtype)
        else:
            array = np.zeros((count, width), dtype)  # by the standard, to be filled in by `sparse`
        if (sparse := accessor.get("sparse")) is not None:
            array = array.copy()
            entries = _natural(sparse["count"], "count")
            if entries > count:
                raise Refused(f"replaces {entries:,} elements of an accessor that has {count:,}")
            rows = self._elements(sparse["indices"], entries, 1, _dtype(sparse["indices"])).reshape(-1)
            if entries and rows.max() >= count:
                raise Refused("has a sparse accessor whose indices run over its end")
            array[rows] = self._elements(sparse["values"], entries, width, dtype)
        return array

    def _elements(self, place: dict[str, Any], count: int, width: int, dtype: np.dtype) -> np.ndarray:
        content, stride = self.view(place.get("bufferView"))
        offset = _natural(place.get("byteOffset", 0), "byteOffset")
        size = width * dtype.itemsize
        stride = size if stride is None else _natural(stride, "byteStride")
        if not size <= stride <= MAX_STRIDE:
            raise Refused(f"has a stride of {stride} bytes for elements of {size}")
        if count and offset + stride * (count - 1) + size > len(content):
            raise Refused("has an accessor that runs over the end of its buffer view")
        rows = np.ndarray((count, width), dtype, content, offset, (stride, dtype.itemsize))
        return rows.astype(dtype.newbyteorder("="))

    def _check_count(self, count: int) -> None:
        if count > 3 * self.limits.triangles:
            raise Refused(
                f"declares an array of {count:,} elements; up to {self.limits.triangles:,} triangles are allowed"
            )


def as_floats(array: np.ndarray, accessor: dict[str, Any]) -> np.ndarray:
    # The accessor says what 1.0 is, not the array, because Draco's decoder widens what was stored.
    dtype = _dtype(accessor)
    if dtype.kind == "f" or not accessor.get("normalized", False):
        return array.astype(np.float32)
    top = np.iinfo(dtype).max
    return np.maximum(array.astype(np.float32) / np.float32(top), -1.0)


def _dtype(place: dict[str, Any]) -> np.dtype:
    if place.get("componentType") not in COMPONENT_TYPES:
        raise Refused(f"has an accessor of the component type {_shown(place.get('componentType'))}")
    return np.dtype(COMPONENT_TYPES[place["componentType"]])


def _natural(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise Refused(f"has {_shown(value)} for a {name}")
    return value


def _shown(value: Any) -> str:
    """Write a value as JSON has it, or say that it is not there."""
    return "nothing" if value is None else json.dumps(value, default=str)[:60]


def numbers(values: Any, count: int, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """Return `count` finite numbers of the JSON, clipped to a range."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except OverflowError as error:
        raise Refused("has a number that is too large to compute with") from error
    if array.shape != (count,) or not np.isfinite(array).all():
        raise Refused(f"has {_shown(values)} where {count} numbers belong")
    return np.clip(array, low, high)
