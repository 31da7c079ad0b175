"""HTTP requests, and parts of URLs for messages and reports."""

from __future__ import annotations

import functools
import http.client
import io
import re
import socket
import time
import urllib.request
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

TOTAL_TIMEOUTS = 10  # total time of an answer, in timeouts of silence
MIN_BYTES_PER_SECOND = 10_000  # of an answer that takes longer
_SCHEMES = ("http", "https")


def origin(address: str) -> str:
    """Return "https://host:port" of an HTTP address without credentials, "" for other addresses."""
    match = re.match(r"(https?://)(?:[^/@]*@)?([^/?#]+)", address)
    return match[1] + match[2] if match else ""


def redact_credentials(text: str) -> str:
    """Return a text with the user name and password of each URL replaced by "***"."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects to http and https only, including status 308 (which urllib follows since Python 3.11)."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in _SCHEMES:
            raise HTTPError(newurl, code, f"redirect to {newurl}, which is not HTTP", headers, fp)  # type: ignore[arg-type]
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)  # type: ignore[arg-type]

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


class SlowServerError(OSError):
    """An answer that takes longer than its total time."""


class _LimitedReader(io.RawIOBase):
    """Bytes of a connection, within a total time.

    Args:
        raw: Unbuffered stream of the socket.
        connection: Socket.
        seconds: Total time, to which each ``MIN_BYTES_PER_SECOND`` bytes add a second.
    """

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, seconds: float) -> None:
        self._raw, self._socket, self._seconds = raw, connection, seconds
        self._start, self._count = time.monotonic(), 0
        self._silence = connection.gettimeout() or seconds

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes, and return their number."""
        limit = self._seconds + self._count / MIN_BYTES_PER_SECOND
        remaining = self._start + limit - time.monotonic()
        message = f"the server is too slow: {self._count} bytes within {limit:.3g} s"
        if remaining <= 0:
            raise SlowServerError(message)
        self._socket.settimeout(min(self._silence, remaining))
        try:
            count = self._raw.readinto(buffer) or 0
        except TimeoutError as error:
            if remaining < self._silence:
                raise SlowServerError(message) from error
            raise
        self._count += count
        return count

    def close(self) -> None:
        """Close the stream."""
        self._raw.close()
        super().close()


class _LimitedResponse(http.client.HTTPResponse):
    """Answer whose header and body arrive within a total time."""

    def __init__(self, sock: socket.socket, *arguments: Any, seconds: float, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_LimitedReader(raw, sock, seconds))


class _LimitedHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Connections whose answers arrive within a total time in seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> Any:
        """Open a connection."""

        def connect(*arguments: Any, **settings: Any) -> Any:
            connection = http_class(*arguments, **settings)
            connection.response_class = functools.partial(_LimitedResponse, seconds=self._seconds)
            return connection

        return super().do_open(connect, req, **options)


def open_http(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    """Open an http(s) request; no other scheme is opened, neither directly nor by a redirect.

    Reading an answer, with its header, takes at most ``TOTAL_TIMEOUTS`` times the timeout, plus a second for
    each ``MIN_BYTES_PER_SECOND`` bytes received.

    Args:
        request: Request.
        timeout: Seconds of silence after which the connection is given up.

    Raises:
        HTTPError: The server answered with an error, or with a redirect to another scheme.
        SlowServerError: The answer takes too long; also raised while it is read.
        OSError: The connection failed.
        http.client.HTTPException: The answer is not HTTP.
        ValueError: The address is not valid, or not one of http(s).
    """
    if urlsplit(request.full_url).scheme not in _SCHEMES:
        raise ValueError(f"expected an http:// or https:// address, got {request.full_url!r}")
    opener = urllib.request.build_opener(_HttpRedirects, _LimitedHandler(TOTAL_TIMEOUTS * timeout))
    response: http.client.HTTPResponse = opener.open(request, timeout=timeout)
    return response
