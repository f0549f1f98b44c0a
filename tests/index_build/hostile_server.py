"""A web server on this machine that misbehaves on request, for tests of downloads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler, int], None]  # the handler, and how often its path was asked for, from 1


class HostileServer(ThreadingHTTPServer):
    """Answers each path as `answers` says; `asked` lists the paths in the order in which they came."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.times: list[float] = []
        self.count_lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up, as the tests make them do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, HostileServer)
        with server.count_lock:
            server.asked.append(self.path)
            server.times.append(time.monotonic())
            count = server.asked.count(self.path)
        self.close_connection = True
        server.answers.get(self.path, status(404))(self, count)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[HostileServer]:
    server = HostileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def content(body: bytes, stated: int | None = None, **headers: str) -> Answer:
    """Send a body, with a `Content-Length` of `stated` bytes where that is given; negative: without one."""

    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        handler.send_response(200)
        length = len(body) if stated is None else stated
        if length >= 0:
            handler.send_header("Content-Length", str(length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        handler.send_response(code)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


def trickle(body: bytes, pause: float) -> Answer:
    """Send one byte at a time."""

    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for byte in body:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def trickle_headers(pause: float) -> Answer:
    """Send headers without end, one byte at a time."""

    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
        while True:
            handler.wfile.write(b"a")
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def stall(body: bytes, seconds: float) -> Answer:
    """Send half of a body, then nothing."""

    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        time.sleep(seconds)

    return answer


def hang_up(handler: BaseHTTPRequestHandler, count: int) -> None:
    handler.connection.close()


def first(*answers: Answer) -> Answer:
    """Give these answers in turn, the last for ever."""

    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        answers[min(count, len(answers)) - 1](handler, count)

    return answer
