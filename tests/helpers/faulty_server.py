"""Loopback HTTP server with a scripted behavior per path; it records its requests."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OUR_VARIABLES = ("SOLO_INFER_HOME", "SOLO_INFER_MIRROR", "SOLO_INFER_OFFLINE", "SOLO_INFER_TIMEOUT")
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

Behavior = Callable[["Handler"], None]


@dataclass(frozen=True)
class Request:
    """Request of a client; ``range`` is its Range header, "" if it has none."""

    method: str
    path: str
    range: str
    user_agent: str


class Handler(BaseHTTPRequestHandler):
    """Handler that runs the behavior of the path, or answers 404."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        headers = self.headers
        request = Request(self.command, self.path, headers.get("Range", ""), headers.get("User-Agent", ""))
        self.close_connection = True
        with self.server.guard:
            self.server.requests.append(request)
        try:
            self.server.behaviors.get(self.path, status(404))(self)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has closed the connection, as many tests expect

    do_HEAD = do_GET

    @property
    def range_start(self) -> int:
        """First byte of the requested Range."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))

    def head(self, code: int, **headers: object) -> None:
        """Send the status line and headers; ``Content_Length=5`` is the header Content-Length."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def body(self, content: bytes) -> None:
        """Send content, except for HEAD."""
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """Server with a behavior for each path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviors: dict[str, Behavior] = {}
        self.requests: list[Request] = []
        self.guard = threading.Lock()
        self.stopping = threading.Event()

    @property
    def base(self) -> str:
        """Address without a path."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def at(self, path: str, *behaviors: Behavior) -> str:
        """Set the behaviors of successive requests for a path; the last one is repeated. Return the URL."""
        self.behaviors[path] = in_sequence(*behaviors) if len(behaviors) > 1 else behaviors[0]
        return self.base + path

    def ranges(self, path: str) -> list[str]:
        """Return the Range headers of all requests for a path so far."""
        return [request.range for request in self.requests if request.path == path]


@contextmanager
def running_server() -> Iterator[Server]:
    """Run a server in a thread."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


def isolate(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Isolate a test from the proxies, mirrors, tokens and caches of the machine; shorten waits."""
    for name in (*PROXY_VARIABLES, *map(str.upper, PROXY_VARIABLES), *OUR_VARIABLES, *OFFLINE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("SOLO_INFER_HOME", str(home))
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "5")
    monkeypatch.setattr("solo_infer.weights.download.BACKOFF_SECONDS", (0.0,))


def forbid_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise AssertionError on every use of the network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was touched")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{name}", refuse)


def files_at(directory: Path) -> list[str]:
    """Return the names in a cache directory without the lock directory, whose files must be empty."""
    locks = directory / ".locks"
    assert all(lock.stat().st_size == 0 for lock in locks.glob("*"))
    return sorted(path.name for path in directory.glob("*") if path != locks)


def in_sequence(*behaviors: Behavior) -> Behavior:
    """Use one behavior per request, and the last one for all further requests."""
    remaining = list(behaviors)
    guard = threading.Lock()

    def behave(handler: Handler) -> None:
        with guard:
            behavior = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        behavior(handler)

    return behave


def content(body: bytes, *, ranges: bool = True, content_type: str = "application/octet-stream") -> Behavior:
    """Serve a file correctly, with or without support for Range."""

    def behave(handler: Handler) -> None:
        start = handler.range_start if ranges else 0
        if not start:
            handler.head(200, Content_Length=len(body), Content_Type=content_type)
        elif start >= len(body):
            handler.head(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
            return
        else:
            content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            handler.head(206, Content_Length=len(body) - start, Content_Range=content_range)
        handler.body(body[start:])

    return behave


def wrong_range(body: bytes, content_range: str) -> Behavior:
    """Answer with status 206, the whole body and this Content-Range."""

    def behave(handler: Handler) -> None:
        handler.head(206, Content_Length=len(body), Content_Range=content_range)
        handler.body(body)

    return behave


def status(code: int) -> Behavior:
    """Answer with this status and a short body."""

    def behave(handler: Handler) -> None:
        handler.head(code, Content_Length=4)
        handler.body(b"sad\n")

    return behave


def cut_off(body: bytes, after: int) -> Behavior:
    """Announce the whole (rest of the) body, send ``after`` bytes of it and close."""

    def behave(handler: Handler) -> None:
        start = handler.range_start
        extra = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        handler.head(206 if start else 200, Content_Length=len(body) - start, **extra)
        handler.body(body[start : start + after])

    return behave


def stall(body: bytes, after: int) -> Behavior:
    """Like ``cut_off``, but stay silent instead of closing the connection."""

    def behave(handler: Handler) -> None:
        cut_off(body, after)(handler)
        handler.server.stopping.wait(20)

    return behave


def talkative(body: bytes, more: bytes) -> Behavior:
    """Announce the body, but send more and keep the connection open."""

    def behave(handler: Handler) -> None:
        handler.head(200, Content_Length=len(body))
        handler.body(body + more)
        handler.server.stopping.wait(20)

    return behave


def held(behavior: Behavior, release: threading.Event) -> Behavior:
    """Wait for an event before the behavior."""

    def behave(handler: Handler) -> None:
        release.wait(20)
        behavior(handler)

    return behave


def slow(behavior: Behavior, seconds: float) -> Behavior:
    """Wait some seconds before the behavior."""

    def behave(handler: Handler) -> None:
        time.sleep(seconds)
        behavior(handler)

    return behave


def chunked(body: bytes, *, complete: bool = True) -> Behavior:
    """Serve without a length, in chunks; ``complete=False`` omits the end mark."""

    def behave(handler: Handler) -> None:
        handler.head(200, Transfer_Encoding="chunked")
        half = len(body) // 2
        for piece in (body[:half], body[half:]):
            handler.body(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if complete:
            handler.body(b"0\r\n\r\n")

    return behave


def until_closed(body: bytes) -> Behavior:
    """Serve without a length: closing the connection marks the end."""

    def behave(handler: Handler) -> None:
        handler.head(200)
        handler.body(body)

    return behave


def redirect(location: str, code: int = 302) -> Behavior:
    """Redirect to another location."""

    def behave(handler: Handler) -> None:
        handler.head(code, Location=location, Content_Length=0)

    return behave


def reset() -> Behavior:
    """Close the connection without an answer."""
    return lambda handler: None


def hub_file(server: Server, repo: str, filename: str, body: bytes, *, lfs: bool = True) -> str:
    """Serve a file as the Hub does, at the paths of its branch "main" and of its commit; return the path.

    An LFS file has its SHA-256 as linked ETag, other files have a 40-digit git hash.
    """
    commit = "c0ffee" * 6 + "c0ff"
    etag = hashlib.sha256(body).hexdigest() if lfs else hashlib.sha1(body).hexdigest()

    def behave(handler: Handler) -> None:
        linked = {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": len(body)} if lfs else {}
        handler.head(200, Content_Length=len(body), ETag=f'"{etag}"', X_Repo_Commit=commit, **linked)
        handler.body(body)

    for revision in ("main", commit):
        server.at(f"/{repo}/resolve/{revision}/{filename}", behave)
    return f"/{repo}/resolve/main/{filename}"


def hub_error(code: int, error_code: str) -> Behavior:
    """Answer with an error of the Hub: a header names the missing repo or file."""

    def behave(handler: Handler) -> None:
        handler.head(code, X_Error_Code=error_code, Content_Length=0)

    return behave
