"""HTTP requests, and parts of URLs for messages and reports."""

from __future__ import annotations

import http.client
import re
import urllib.request
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit

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


def open_http(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    """Open an http(s) request; no other scheme is opened, neither directly nor by a redirect.

    Args:
        request: Request.
        timeout: Seconds of silence after which the connection is given up.

    Raises:
        HTTPError: The server answered with an error, or with a redirect to another scheme.
        OSError: The connection failed.
        http.client.HTTPException: The answer is not HTTP.
        ValueError: The address is not valid, or not one of http(s).
    """
    if urlsplit(request.full_url).scheme not in _SCHEMES:
        raise ValueError(f"expected an http:// or https:// address, got {request.full_url!r}")
    response: http.client.HTTPResponse = urllib.request.build_opener(_HttpRedirects).open(
        request, timeout=timeout
    )
    return response
