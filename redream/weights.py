"""Where weights are: one resolver for model ids, and the digest that identifies them in stage keys and manifests.

A model id is `mini:NAME` (the embedded miniature, inside this package), a local folder, or a hub id, which may carry a
revision as `owner/name@revision`. Only the first two have files whose content can be hashed here.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

LARGE_BYTES = 64 * 2**20  # what takes a moment to hash
MINI_WEIGHTS = Path(__file__).parent / "mini" / "weights"


def weights_path(model_id: str) -> str:
    """Return the local folder of a model id, or the hub id itself.

    Raises:
        ValueError: a `mini:` name that does not exist.
    """
    if not model_id.startswith("mini:"):
        return model_id
    folder = MINI_WEIGHTS / model_id.removeprefix("mini:")
    if not folder.is_dir():
        known = ", ".join(sorted(p.name for p in MINI_WEIGHTS.glob("*") if p.is_dir()))
        raise ValueError(
            f"no miniature weights named {model_id!r}; there are: {known or 'none'} (remake them with "
            "`python -m redream.mini.train`)"
        )
    return str(folder)


def clip_identity(model_id: str) -> str:
    """Return the name of a CLIP model's weights (`clip.py` has the forms of its id), free of paths.

    Local ones are named by a hash of their files, so that the same weights are the same model wherever they lie.
    """
    if model_id.startswith("mini:"):
        return f"{model_id}@{weights_digest(model_id)}"
    if Path(model_id).is_dir():
        return f"{Path(model_id).resolve().name}@{weights_digest(model_id)}"
    architecture, _, pretrained = model_id.partition("/")
    if Path(pretrained).is_file():
        return f"{architecture}@{_file_digest(Path(pretrained)).hex()[:16]}"
    return model_id


def weights_digest(model_id: str, config_folder: str = "") -> str:
    """Return a short content hash of a local model's files, or the hub id, which names its own revision.

    Args:
        config_folder: of the configs that go with a single file.
    """
    folder = Path(weights_path(model_id))
    if folder.is_file():
        configs = weights_digest(config_folder) if config_folder else ""
        return hashlib.sha256(_file_digest(folder) + configs.encode()).hexdigest()[:16]
    if not folder.is_dir():
        return model_id
    stamp = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file())
    return _digest(folder, stamp)


@lru_cache(maxsize=64)
def _digest(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in stamp:
        path = Path(name)
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(_file_digest(path))
    return digest.hexdigest()[:16]


def _file_digest(path: Path) -> bytes:
    """Hash a file; the hash of a large one is kept in the cache by the file's place, size and time."""
    stat = path.stat()
    stamp = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    kept = default_cache_dir() / "digests" / hashlib.sha256(stamp.encode()).hexdigest()
    is_large = stat.st_size >= LARGE_BYTES
    if is_large and kept.is_file() and len(digest := kept.read_bytes()) == hashlib.sha256().digest_size:
        return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    if is_large:
        with suppress(OSError):  # a cache that cannot be written only costs time
            kept.parent.mkdir(parents=True, exist_ok=True)
            aside = kept.with_suffix(f".{os.getpid()}")
            aside.write_bytes(digest)
            os.replace(aside, kept)
    return digest


def default_cache_dir() -> Path:
    """Return where the user's machine keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "redream"
