"""Objects on demand: one file of Objaverse into the `objaverse` package's own cache, or one sentence why not.

The package itself downloads without retry, time-out or check. Here a file is fetched aside, checked, opened by the
caller's `verify` and then renamed, under a lock that concurrent processes share. What passes (a busy server, a cut or
stalled connection) is tried again with growing, jittered pauses until `total_timeout`; what stays (404, a web page in
place of the file, a file that is too large or cannot be opened) ends at once.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import logging
import os
import re
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import filelock
import httpx
import numpy as np

from redream.settings import DownloadConfig

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
_OBJECT_PATH = re.compile(r"glbs/[\w-]+/[\w-]+\.glb", re.ASCII)


class DownloadError(ValueError):
    """A file that cannot be had; the message names it and the cause in one sentence."""


class PassingError(Exception):
    """A failure that another attempt may not meet, and the pause in seconds that the server asks for."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


def fetch_mesh(mesh_path: str | Path, verify: Callable[[Path], object], config: DownloadConfig) -> Path:
    """Return a mesh file, downloaded first where it is an Objaverse object that the cache lacks or holds in part.

    Args:
        mesh_path: a catalog's path; Objaverse's are `<cache>/glbs/<shard>/<uid>.glb`, files elsewhere are left alone.
        verify: opens a whole file and raises `ValueError` where it cannot be used; called for new files only.

    Raises:
        DownloadError: there is no such file and none can be had.
    """
    path = Path(mesh_path)
    if not is_object_path("/".join(path.parts[-3:])):
        if path.is_file():
            return path
        raise DownloadError(f"mesh {path} does not exist; restore it, or rebuild the index from its folder")
    return fetch_file("/".join(path.parts[-3:]), path.parents[2], check_glb, verify, config)


def is_object_path(text: str) -> bool:
    """Tell whether a text is a path below Objaverse's cache and nothing else, such as `glbs/000-023/<uid>.glb`."""
    return _OBJECT_PATH.fullmatch(text) is not None


def fetch_file(
    name: str,
    root: Path,
    check: Callable[[Path], None],
    verify: Callable[[Path], object],
    config: DownloadConfig,
) -> Path:
    """Return `root / name`, downloaded from `base_url / name` unless it is there and passes `check`.

    Args:
        check: raises `PassingError` for a file that is cut off and `DownloadError` for one of another kind.
        verify: as in `fetch_mesh`.
    """
    target = root / name
    if _is_whole(target, check):
        return target
    try:
        (root / ".locks").mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / ".locks" / f"{target.name}.lock", timeout=config.total_timeout):
            if not _is_whole(target, check):  # another process may have fetched it meanwhile
                _fetch_aside(name, target, check, verify, config)
    except filelock.Timeout as error:
        raise DownloadError(f"{name}: another process holds its lock for over {config.total_timeout:g} s") from error
    except OSError as error:
        raise DownloadError(f"{name} cannot be written below {root} ({error.strerror or error})") from error
    return target


def check_glb(path: Path) -> None:
    """Check the twelve bytes that open a GLB: its magic, and its length against the file's."""
    with path.open("rb") as file:
        start = file.read(256)
    if start[:4] == b"glTF" and len(start) >= 12:
        length, size = struct.unpack_from("<I", start, 8)[0], path.stat().st_size
        if size < length:
            raise PassingError(f"cut off at {size:,} of {length:,} bytes")
    elif start.lstrip()[:64].lower().startswith((b"<!doctype", b"<html")):
        raise DownloadError("the server sent a web page in place of the file; base_url may be wrong")
    elif len(start) < 12:
        raise PassingError(f"cut off at {len(start)} bytes")
    else:
        raise DownloadError("the server sent something that is no GLB")


def _is_whole(path: Path, check: Callable[[Path], None]) -> bool:
    if not path.is_file():
        return False
    try:
        check(path)
    except (PassingError, DownloadError) as error:
        logger.warning("%s in the cache is damaged and fetched again: %s", path, error)
        return False
    return True


def _fetch_aside(
    name: str,
    target: Path,
    check: Callable[[Path], None],
    verify: Callable[[Path], object],
    config: DownloadConfig,
) -> None:
    """Fetch under the lock: a folder aside holds the file under its own name, which messages of `verify` mention."""
    folder = target.parent / f".{target.name}.part"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir(parents=True)
    aside = folder / target.name
    try:
        asyncio.run(_download(name, aside, check, config))
        try:
            verify(aside)
        except ValueError as error:
            raise DownloadError(f"{name} was downloaded whole and cannot be used: {error}") from error
        os.replace(aside, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _download(name: str, aside: Path, check: Callable[[Path], None], config: DownloadConfig) -> None:
    url = f"{config.base_url.rstrip('/')}/{quote(name)}"
    place = f"{name} from {httpx.URL(url).host}"
    failures = ["no answer"]
    try:
        async with asyncio.timeout(config.total_timeout):
            await _attempts(url, aside, check, config, failures)
    except TimeoutError as error:
        raise DownloadError(f"{place}: not had within {config.total_timeout:g} s (last: {failures[-1]})") from error
    except DownloadError as error:
        raise DownloadError(f"{place}: {error}") from error


async def _attempts(
    url: str, aside: Path, check: Callable[[Path], None], config: DownloadConfig, failures: list[str]
) -> None:
    """Try until the file is whole, and note what failed in `failures`."""
    rng = np.random.default_rng(zlib.crc32(url.encode()))  # other objects, other pauses
    for attempt in range(config.num_retries + 1):
        try:
            await _attempt(url, aside, config)
            check(aside)
            return
        except PassingError as error:
            failures.append(str(error))
            if error.pause > config.max_pause:
                raise DownloadError(f"{error} and asks to wait {error.pause:.0f} s; try again later") from error
            if attempt == config.num_retries:
                raise DownloadError(f"{error} ({config.num_retries + 1} attempts)") from error
            await asyncio.sleep(max(error.pause, _pause(attempt, rng, config)))


def _pause(attempt: int, rng: np.random.Generator, config: DownloadConfig) -> float:
    return min(config.first_pause * 2.0**attempt, config.max_pause) * rng.uniform(0.5, 1.0)


async def _attempt(url: str, aside: Path, config: DownloadConfig) -> None:
    headers = {"Accept-Encoding": "identity", "User-Agent": "redream"}
    try:
        async with httpx.AsyncClient(timeout=config.stall_timeout, headers=headers) as client:
            response, sha256 = await _open(client, url, config)
            try:
                await _save(response, aside, sha256, config)
            finally:
                await response.aclose()
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise DownloadError(f"no usable address ({error})") from error
    except httpx.TimeoutException as error:
        raise PassingError(f"nothing came for {config.stall_timeout:g} s") from error
    except httpx.RequestError as error:
        raise PassingError(f"connection failed ({' '.join(str(error).split()) or type(error).__name__})") from error


async def _open(client: httpx.AsyncClient, url: str, config: DownloadConfig) -> tuple[httpx.Response, str]:
    """Follow redirects to the body. Returns the response, and the file's SHA-256 where the hub states it, else ""."""
    request, sha256 = client.build_request("GET", url), ""
    for _ in range(MAX_REDIRECTS + 1):
        response = await client.send(request, stream=True)
        stated = response.headers.get("x-linked-etag", "").strip('"')
        sha256 = stated if re.fullmatch("[0-9a-f]{64}", stated) else sha256
        if response.next_request is None:
            _check_status(response)
            return response, sha256
        await response.aclose()
        request = response.next_request
        _check_redirect(request.url, httpx.URL(config.base_url), config)
    raise DownloadError(f"more than {MAX_REDIRECTS} redirects")


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in PASSING_STATUS:
        raise PassingError(f"the server answers {status}", _asked_pause(response.headers.get("retry-after", "")))
    if status in (404, 410):
        raise DownloadError(f"it is not there (the server answers {status})")
    raise DownloadError(f"the server answers {status}")


def _asked_pause(text: str) -> float:
    """Read `Retry-After`: seconds or a date; 0 for anything else."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _check_redirect(url: httpx.URL, base: httpx.URL, config: DownloadConfig) -> None:
    is_known = url.host == base.host or any(
        url.host == host or url.host.endswith(f".{host}") for host in config.redirect_hosts
    )
    if not is_known:
        raise DownloadError(f"the server redirects to {url.host}, which download.redirect_hosts does not name")
    if base.scheme == "https" and url.scheme != "https":
        raise DownloadError(f"the server redirects to {url.scheme}://{url.host}, which is not encrypted")


async def _save(response: httpx.Response, aside: Path, sha256: str, config: DownloadConfig) -> None:
    stated = response.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > config.max_bytes:
        raise DownloadError(f"it has {int(stated):,} bytes, more than the allowed {config.max_bytes:,}")
    digest, size = hashlib.sha256(), 0
    with aside.open("wb") as file:
        async for piece in response.aiter_bytes():
            size += len(piece)
            if size > config.max_bytes:
                raise DownloadError(f"it has more than the allowed {config.max_bytes:,} bytes")
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if sha256 and digest.hexdigest() != sha256:
        raise PassingError("the content differs from the SHA-256 that the server states")
