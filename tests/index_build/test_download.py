"""Downloads from a server that stalls, truncates, lies and refuses: a whole file or one sentence, nothing between."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import objaverse
import pytest
import trimesh

from index_build.download import DownloadError, fetch_mesh, is_object_path
from redream.meshes.assets import load_mesh
from redream.settings import DownloadConfig
from tests.index_build.hostile_server import (
    Answer,
    HostileServer,
    content,
    first,
    hang_up,
    serving,
    stall,
    status,
    trickle,
    trickle_headers,
)

UID = "kiDgUIcaC7c4YaIcLCJeq4kS7rK"  # one of Objaverse's own that are not hexadecimal
NAME = f"glbs/000-130/{UID}.glb"
PAGE = b"<!DOCTYPE html><html><body>Too many requests</body></html>"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def glb() -> bytes:
    data = trimesh.Scene(trimesh.creation.icosphere(2)).export(file_type="glb")
    assert isinstance(data, bytes)
    return data


def fast(server: HostileServer, **changes: object) -> DownloadConfig:
    config = DownloadConfig(
        base_url=server.url, num_retries=2, first_pause=0.01, max_pause=2.0, stall_timeout=0.3, total_timeout=20.0
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def fetch(server: HostileServer, root: Path, **changes: object) -> Path:
    return fetch_mesh(root / NAME, load_mesh, fast(server, **changes))


def left_behind(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and ".locks" not in p.parts)


def test_an_object_is_downloaded_once_into_the_place_where_the_objaverse_package_looks(
    server: HostileServer, glb: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.answers[f"/{NAME}"] = content(glb)
    path = fetch(server, tmp_path)
    assert path == tmp_path / NAME and path.read_bytes() == glb
    assert fetch(server, tmp_path) == path and server.asked == [f"/{NAME}"]
    monkeypatch.setattr(objaverse, "_VERSIONED_PATH", str(tmp_path))
    monkeypatch.setattr(objaverse, "_load_object_paths", lambda: {UID: NAME})
    assert objaverse.load_objects([UID]) == {UID: str(path)}
    assert left_behind(tmp_path) == [NAME]


def test_what_the_objaverse_package_has_downloaded_is_used_without_a_request(
    server: HostileServer, glb: bytes, tmp_path: Path
):
    (tmp_path / NAME).parent.mkdir(parents=True)
    (tmp_path / NAME).write_bytes(glb)
    assert fetch(server, tmp_path) == tmp_path / NAME
    assert not server.asked and not (tmp_path / ".locks").exists()


def test_a_cached_object_that_is_cut_off_is_fetched_again(server: HostileServer, glb: bytes, tmp_path: Path):
    server.answers[f"/{NAME}"] = content(glb)
    (tmp_path / NAME).parent.mkdir(parents=True)
    (tmp_path / NAME).write_bytes(glb[:1000])
    assert fetch(server, tmp_path).read_bytes() == glb


@pytest.mark.parametrize(
    "trouble",
    [
        status(429),
        status(500),
        status(503, Retry_After="0"),
        hang_up,
        "truncated",
        "half without a stated length",
        "stated length too short",
        "stall",
        "wrong content",
    ],
)
def test_what_passes_is_tried_again(server: HostileServer, glb: bytes, tmp_path: Path, trouble: Answer | str):
    other = bytes(reversed(glb))
    troubles: dict[object, Answer] = {
        "truncated": content(glb[:2000], stated=len(glb)),
        "half without a stated length": content(glb[:2000], stated=-1),
        "stated length too short": content(glb, stated=2000),
        "stall": stall(glb, 1.0),
        "wrong content": content(glb[:12] + other[12:], X_Linked_Etag=f'"{hashlib.sha256(glb).hexdigest()}"'),
    }
    answer = troubles[trouble] if isinstance(trouble, str) else trouble
    server.answers[f"/{NAME}"] = first(answer, content(glb))
    assert fetch(server, tmp_path).read_bytes() == glb
    assert len(server.asked) == 2 and left_behind(tmp_path) == [NAME]


@pytest.mark.parametrize(
    ("answer", "num_asked", "complaint"),
    [
        (status(404), 1, "it is not there (the server answers 404)"),
        (status(403), 1, "the server answers 403"),
        (content(PAGE, Content_Type="text/html"), 1, "a web page in place of the file"),
        (content(b"{\"error\": \"no such object\"}"), 1, "no GLB"),
        (content(b"", stated=2**40), 1, "1,099,511,627,776 bytes, more than the allowed"),
        (content(b"x" * 200_000, stated=-1), 1, "more than the allowed 100,000 bytes"),
        (status(429, Retry_After="3600"), 1, "asks to wait 3600 s; try again later"),
        (status(500), 3, "the server answers 500 (3 attempts)"),
        (content(b"glTF"), 3, "cut off at 4 bytes (3 attempts)"),
        (hang_up, 3, "connection failed"),
        (stall(b"x" * 1000, 1.0), 3, "nothing came for 0.3 s (3 attempts)"),
        (status(302, Location="http://169.254.169.254/latest/meta-data"), 1, "redirects to 169.254.169.254"),
        (status(302, Location="file:///etc/passwd"), 1, "no usable address"),
        (status(302, Location=f"/{NAME}"), 6, "more than 5 redirects"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_ends_in_one_sentence_and_leaves_nothing(
    server: HostileServer, tmp_path: Path, answer: Answer, num_asked: int, complaint: str
):
    server.answers[f"/{NAME}"] = answer
    with pytest.raises(DownloadError) as failure:
        fetch(server, tmp_path, max_bytes=100_000)
    message = str(failure.value)
    assert complaint in message and message.startswith(f"{NAME} from 127.0.0.1: ") and "\n" not in message
    assert len(server.asked) == num_asked and left_behind(tmp_path) == []


def test_a_whole_file_that_cannot_be_opened_is_refused_with_its_cause(
    server: HostileServer, tmp_path: Path, glb: bytes
):
    numbers = (2, 24, 4)  # version, length of the file, length of the JSON
    empty = b"glTF" + b"".join(number.to_bytes(4, "little") for number in numbers) + b"JSON{}  "
    server.answers[f"/{NAME}"] = content(empty)
    with pytest.raises(DownloadError, match=f"downloaded whole and cannot be used: {UID}.glb"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1 and left_behind(tmp_path) == []


@pytest.mark.parametrize("answer", [trickle(b"glTF" + b"x" * 5000, 0.05), trickle_headers(0.05)])
def test_a_server_that_never_stalls_and_never_ends_is_left_at_the_total_timeout(
    server: HostileServer, tmp_path: Path, answer: Answer
):
    server.answers[f"/{NAME}"] = answer
    start = time.monotonic()
    with pytest.raises(DownloadError, match="not had within 1 s"):
        fetch(server, tmp_path, total_timeout=1.0)
    assert 0.9 < time.monotonic() - start < 5


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_the_pause_that_a_server_asks_for_is_kept(server: HostileServer, glb: bytes, tmp_path: Path, kind: str):
    asked = "1" if kind == "seconds" else formatdate(time.time() + 2, usegmt=True)
    server.answers[f"/{NAME}"] = first(status(429, Retry_After=asked), content(glb))
    fetch(server, tmp_path)
    assert server.times[1] - server.times[0] > 0.9


def test_pauses_grow_and_are_the_same_in_every_run(server: HostileServer, tmp_path: Path):
    server.answers[f"/{NAME}"] = status(500)
    gaps = []
    for _ in range(2):
        server.times.clear()
        with pytest.raises(DownloadError):
            fetch(server, tmp_path, num_retries=3, first_pause=0.2)
        gaps.append([late - early for early, late in zip(server.times, server.times[1:], strict=False)])
    for number, (one, other) in enumerate(zip(*gaps, strict=True)):
        assert 0.5 * 0.2 * 2**number < one < 0.2 * 2**number + 0.2
        assert abs(one - other) < 0.15


def test_a_redirect_to_a_host_that_the_settings_name_is_followed(server: HostileServer, glb: bytes, tmp_path: Path):
    other = f"http://localhost:{server.server_port}/elsewhere"
    server.answers[f"/{NAME}"] = status(302, Location=other)
    server.answers["/elsewhere"] = content(glb)
    with pytest.raises(DownloadError, match=r"redirects to localhost, which download\.redirect_hosts does not name"):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path, redirect_hosts=("localhost",)).read_bytes() == glb


# A process of its own, not a fork: what the tests before have left in this one is nothing a user's process has.
FETCH = """
import sys
from pathlib import Path
from index_build.download import fetch_mesh
from redream.meshes.assets import load_mesh
from redream.settings import DownloadConfig
fetch_mesh(Path(sys.argv[1]), load_mesh, DownloadConfig(base_url=sys.argv[2], stall_timeout=5.0))
"""


def fetch_in_process(root: Path, url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", FETCH, str(root / NAME), url], cwd=Path(__file__).parents[2])


def test_processes_that_want_the_same_object_share_one_download(server: HostileServer, glb: bytes, tmp_path: Path):
    server.answers[f"/{NAME}"] = trickle(glb, 1.0 / len(glb))  # takes a second, so that they meet
    processes = [fetch_in_process(tmp_path, server.url) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4 and server.asked == [f"/{NAME}"]
    assert (tmp_path / NAME).read_bytes() == glb


def test_a_process_killed_in_the_middle_leaves_nothing_that_stops_the_next(
    server: HostileServer, glb: bytes, tmp_path: Path
):
    server.answers[f"/{NAME}"] = first(stall(glb, 20.0), content(glb))
    process = fetch_in_process(tmp_path, server.url)
    deadline = time.monotonic() + 120
    while not any(tmp_path.rglob(f"{UID}.glb")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait(10)
    assert left_behind(tmp_path) and not (tmp_path / NAME).exists()
    assert fetch(server, tmp_path).read_bytes() == glb
    assert left_behind(tmp_path) == [NAME]


def test_a_missing_mesh_that_is_no_object_of_objaverse_is_not_looked_for(server: HostileServer, tmp_path: Path):
    with pytest.raises(DownloadError, match=r"mesh .*chair\.glb does not exist"):
        fetch_mesh(tmp_path / "chair.glb", load_mesh, fast(server))
    assert not server.asked


@pytest.mark.parametrize(
    "path", ["glbs/000-001/../../x.glb", "/glbs/000-001/x.glb", "glbs/x.glb", "glbs/000-001/x.glb\n", "glbs/a b/x.glb"]
)
def test_only_paths_below_the_cache_are_object_paths(path: str):
    assert not is_object_path(path) and is_object_path(NAME)
