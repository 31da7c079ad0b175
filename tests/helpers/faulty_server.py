"""A loopback HTTP server for tests whose paths misbehave as scripted, and which remembers its requests."""

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
    """What a client asked for; ``range`` is its Range header, "" if there was none."""

    method: str
    path: str
    range: str
    user_agent: str


class Handler(BaseHTTPRequestHandler):
    """Lets the behavior scripted for the path answer; 404 where there is none."""

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
            pass  # the client has had enough: often what a test wants

    do_HEAD = do_GET

    @property
    def range_start(self) -> int:
        """The first byte of the Range that was asked for."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))

    def head(self, code: int, **headers: object) -> None:
        """Send the status line and headers; ``Content_Length=5`` is the header Content-Length."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def body(self, content: bytes) -> None:
        """Send content, if the method has an answer with any."""
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """The server: ``behaviors`` maps paths to what happens there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviors: dict[str, Behavior] = {}
        self.requests: list[Request] = []
        self.guard = threading.Lock()
        self.stopping = threading.Event()

    @property
    def base(self) -> str:
        """The address without a path."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def at(self, path: str, *behaviors: Behavior) -> str:
        """Script a path: its first request meets the first behavior, and so on; the last one stays."""
        self.behaviors[path] = in_turn(*behaviors) if len(behaviors) > 1 else behaviors[0]
        return self.base + path

    def ranges(self, path: str) -> list[str]:
        """The Range headers of all requests for a path so far."""
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
    """Shield a test from this machine's proxies, mirrors, tokens and caches; make waiting short."""
    for name in (*PROXY_VARIABLES, *map(str.upper, PROXY_VARIABLES), *OUR_VARIABLES, *OFFLINE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("SOLO_INFER_HOME", str(home))
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "5")
    monkeypatch.setattr("solo_infer.weights.download.BACKOFF_SECONDS", (0.0,))


def forbid_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every use of the network an error of a kind that nothing expects."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was touched")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{name}", refuse)


def files_at(directory: Path) -> list[str]:
    """Names in a cache directory, but for the lock directory, which may hold nothing but empty files."""
    locks = directory / ".locks"
    assert all(lock.stat().st_size == 0 for lock in locks.glob("*"))
    return sorted(path.name for path in directory.glob("*") if path != locks)


def in_turn(*behaviors: Behavior) -> Behavior:
    """Meet the requests one after the other with these behaviors, the rest with the last one."""
    left = list(behaviors)
    guard = threading.Lock()

    def behave(handler: Handler) -> None:
        with guard:
            behavior = left.pop(0) if len(left) > 1 else left[0]
        behavior(handler)

    return behave


def content(body: bytes, *, ranges: bool = True, kind: str = "application/octet-stream") -> Behavior:
    """Serve a file as it should be, with or without support for Range."""

    def behave(handler: Handler) -> None:
        start = handler.range_start if ranges else 0
        if not start:
            handler.head(200, Content_Length=len(body), Content_Type=kind)
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
    """As ``cut_off``, but stay silent instead of closing."""

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
    """Wait for the event before behaving."""

    def behave(handler: Handler) -> None:
        release.wait(20)
        behavior(handler)

    return behave


def slow(behavior: Behavior, seconds: float) -> Behavior:
    """Wait a while before behaving."""

    def behave(handler: Handler) -> None:
        time.sleep(seconds)
        behavior(handler)

    return behave


def chunked(body: bytes, *, complete: bool = True) -> Behavior:
    """Serve without a length, in chunks; ``complete=False`` leaves out the end mark."""

    def behave(handler: Handler) -> None:
        handler.head(200, Transfer_Encoding="chunked")
        half = len(body) // 2
        for piece in (body[:half], body[half:]):
            handler.body(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if complete:
            handler.body(b"0\r\n\r\n")

    return behave


def until_closed(body: bytes) -> Behavior:
    """Serve without any length: the end is where the connection closes."""

    def behave(handler: Handler) -> None:
        handler.head(200)
        handler.body(body)

    return behave


def redirect(location: str, code: int = 302) -> Behavior:
    """Redirect elsewhere."""

    def behave(handler: Handler) -> None:
        handler.head(code, Location=location, Content_Length=0)

    return behave


def reset() -> Behavior:
    """Close without any answer."""
    return lambda handler: None


def hub_file(server: Server, repo: str, filename: str, body: bytes, *, lfs: bool = True) -> str:
    """Serve a file as the Hub does, at the paths of its branch "main" and of its commit; return the path.

    An LFS file has its SHA-256 as linked ETag, any other a 40-digit git hash.
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
    """Refuse as the Hub does: the header says whether the repo or the file is missing."""

    def behave(handler: Handler) -> None:
        handler.head(code, X_Error_Code=error_code, Content_Length=0)

    return behave
