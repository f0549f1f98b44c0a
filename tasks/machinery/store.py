"""The content-addressed store: where finished stages lie, and how one is recognised.

A stage's key is the hash of what can change its result: its name and version, its settings, and the digests of its
inputs; never a path, a device or a thread count. Its output lies in `<root>/<stage>/<aa>/<key>/`. It is made in
`<root>/partial/<stage>/<key>/`, the manifest is written last, and one rename publishes it, so that a folder there is
either complete or absent, whatever was killed when. Complete means: manifest present, every file there in its size.

    store/partial/<stage>/<key>/output/      being made; emptied when the stage starts again
    store/partial/<stage>/<key>/checkpoint/  what a long stage resumes from; dropped once the output is published
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from redream.files import put_in_place, sync
from redream.versions import package_versions

MANIFEST = "manifest.json"
RECORDED_PACKAGES = ("redream", "torch", "numpy", "diffusers", "peft", "open_clip_torch", "trimesh", "pyrender2")
LOCK_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class StageKey:
    """The identity of a stage's output; `identity` is what was hashed, kept for those who ask why a key changed."""

    stage: str
    digest: str
    identity: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A finished stage: a record that crosses task borders.

    `digest` is the hash of its content, by which later stages name it as their input. `result` holds what it found, as
    JSON; `metrics` are its final figures.
    """

    stage: str
    key: str
    folder: str
    digest: str
    result: dict[str, Any]
    metrics: dict[str, float]
    mlflow_run_id: str
    seconds: float

    def path(self, *names: str) -> Path:
        return Path(self.folder, *names)


def stage_key(stage: str, stage_version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> StageKey:
    """Hash what can change a stage's result.

    Args:
        settings: numbers, texts, settings dataclasses and containers of them; a path is refused.
        inputs: content digests by name.
    """
    identity = {"stage": stage, "version": stage_version, "settings": _plain(settings), "inputs": dict(inputs)}
    return StageKey(stage=stage, digest=_hash_json(identity), identity=identity)


def salted(key: StageKey, salt: str) -> StageKey:
    """Return another key for the same work: how a stage is made again although its output is there."""
    identity = {**key.identity, "salt": salt}
    return StageKey(stage=key.stage, digest=_hash_json(identity), identity=identity)


def file_digest(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    root: Path

    def folder(self, key: StageKey) -> Path:
        return self.root / key.stage / key.digest[:2] / key.digest

    def find(self, key: StageKey) -> Output | None:
        """Return a stage's output where it is complete."""
        return read_output(self.folder(key))

    @contextmanager
    def lock(self, key: StageKey, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the key's lock, which dies with its holder; `on_wait` is called while another has it."""
        path = self.root / "locks" / f"{key.digest}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        while True:
            try:
                lock.acquire(timeout=LOCK_POLL_SECONDS, poll_interval=LOCK_POLL_SECONDS / 4)
                break
            except Timeout:
                on_wait()
        try:
            yield
        finally:
            lock.release()

    def begin(self, key: StageKey) -> tuple[Path, Path]:
        """Return an empty output folder and the checkpoint folder, as an earlier attempt left it."""
        partial = self.root / "partial" / key.stage / key.digest
        output, checkpoint = partial / "output", partial / "checkpoint"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        checkpoint.mkdir(exist_ok=True)
        return output, checkpoint

    def publish(
        self,
        key: StageKey,
        result: Mapping[str, Any],
        metrics: Mapping[str, float],
        seconds: float,
        mlflow_run_id: str,
        facts: Mapping[str, Any],
    ) -> Output:
        """Make what lies in the output folder of `begin` the stage's output.

        Args:
            facts: whatever else should be known of the attempt: the run, the device. Not part of its digest.
        """
        partial = self.root / "partial" / key.stage / key.digest
        output, target = partial / "output", self.folder(key)
        files = {path.relative_to(output).as_posix(): _sealed(path) for path in sorted(_files(output))}
        result = _plain(result)
        manifest = {
            "stage": key.stage,
            "key": key.digest,
            "digest": _hash_json({"files": {name: entry["sha256"] for name, entry in files.items()}, "result": result}),
            "result": result,
            "metrics": dict(metrics),
            "seconds": round(seconds, 3),
            "mlflow_run_id": mlflow_run_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "packages": package_versions(RECORDED_PACKAGES),
            **facts,
            "identity": key.identity,
            "files": files,
        }
        write_json(output / MANIFEST, manifest)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Only what is not complete can stand in the way: under the key's lock, a complete output is never made again.
        shutil.rmtree(target, ignore_errors=True)
        for folder in [output, *(path for path in output.rglob("*") if path.is_dir())]:
            sync(folder)
        os.rename(output, target)
        for folder in (target.parent, target.parent.parent):  # which may be new as well
            sync(folder)
        shutil.rmtree(partial)
        published = self.find(key)
        assert published is not None
        return published


def read_output(folder: Path | str) -> Output | None:
    """Return the output that lies in a folder, or nothing where it is not complete."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        if any(sizes[name] != entry["size"] for name, entry in manifest["files"].items()):
            return None
        names = ("stage", "key", "digest", "result", "metrics", "mlflow_run_id", "seconds")
        return Output(folder=str(folder), **{name: manifest[name] for name in names})
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is either the old or the whole new one."""
    text = json.dumps(_plain(content), indent=1)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    aside.write_text(text)
    put_in_place(aside, path)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _sealed(path: Path) -> dict[str, Any]:
    """Return a file's hash and size once the disk has it: a rename must not reach the disk before the content."""
    sync(path)
    return {"sha256": file_digest(path), "size": path.stat().st_size}


def _hash_json(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return a value as JSON would give it back; paths are refused, for they are no content."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} has no place in a stage key or record")
