"""One file over HTTP(S): locked between processes, resumed, verified, put in place atomically.

The content goes to ``<target>.part``, is synced, measured against the published SHA-256 and size, and
only then renamed to the target: whoever sees the target sees the whole, right file.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from solo_infer._version import __version__
from solo_infer.errors import CacheError, DownloadError, OfflineError
from solo_infer.runtime import environment

logger = logging.getLogger(__name__)

ATTEMPTS = 3
BACKOFF_SECONDS = (1.0, 3.0)
CHUNK_BYTES = 1 << 18
USER_AGENT = f"solo-infer/{__version__}"

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _InterruptedTransferError(Exception):
    """The network or the server failed in a way that may be over in a moment."""


class _WrongRangeError(Exception):
    """The server answered a Range request with another part of the file."""


def download_file(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    size: int | None = None,
    progress: bool = True,
    offline: bool | None = None,
) -> Path:
    """Download ``url`` to ``target``, unless the right file is there already.

    Processes and threads that want the same target wait for each other, and one of them downloads. A
    transfer that was cut off is resumed when ``sha256`` is known; without it nothing could prove that the
    halves belong together.

    Args:
        url: An ``http://`` or ``https://`` address.
        target: Where the file shall be; missing directories are made.
        sha256: The expected SHA-256 in hex, or its first digits, or "" when none is known.
        size: The expected size in bytes, when known.
        progress: Whether to show a progress bar on stderr, if that is a terminal.
        offline: Whether to refuse network use; None lets the environment decide.

    Returns:
        ``target``, which holds the verified content.

    Raises:
        DownloadError: The file cannot be had from ``url``, or what came is not the expected file.
        OfflineError: The file would have to be downloaded in offline mode.
        CacheError: The directory of ``target`` cannot be written.
        ConfigError: ``SOLO_INFER_TIMEOUT`` is not a positive number.
    """
    with writing(target):
        # Before the lock: a right file in a read-only cache needs none.
        if matches(target, sha256, size):
            return target
    if environment.is_offline() if offline is None else offline:
        raise OfflineError(
            f"Offline mode forbids to download {url}. Unset {environment.OFFLINE} (and HF_HUB_OFFLINE), "
            f"or put the file there by hand: {target}"
        )
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"Cannot download {url}: expected an http:// or https:// address.")
    transfer = _Transfer(url, target, sha256, size, progress)
    with locked(target):
        with writing(target):
            found = matches(target, sha256, size)
        if not found:
            transfer.run()
    return target


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 lower-case hex digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def content_problem(path: Path, sha256: str = "", size: int | None = None) -> str:
    """Say in what a file differs from the expected content; "" when it does not.

    Args:
        path: An existing file.
        sha256: The expected SHA-256 in hex, or its first digits, or "" when none is known.
        size: The expected size in bytes, when known.

    Raises:
        OSError: The file cannot be read.
    """
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        return f"expected {size} bytes, got {found_size}"
    if found_size == 0 and size is None:
        return "expected content, got an empty file"
    if not sha256:
        return ""
    digest = file_sha256(path)
    if digest.startswith(sha256.lower()):
        return ""
    return f"expected a SHA-256 that starts with {sha256}, got {digest}"


def matches(path: Path, sha256: str = "", size: int | None = None) -> bool:
    """Return whether ``path`` is a file with the expected content (arguments as ``content_problem``).

    Raises:
        OSError: The file exists but cannot be read.
    """
    return path.is_file() and not content_problem(path, sha256, size)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn every OSError of the block, which works on the disk around ``target``, into a CacheError."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"The directory {target.parent} cannot be used for {target.name}: {error}. Make it writable or "
            f"free space there, or choose another one (the cache is set by {environment.HOME})."
        ) from error


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of ``target`` against other processes and threads; wait for it if need be.

    The empty lock file stays behind: whoever removed it could do so between another's opening and
    locking it, and then two would hold "the" lock, on two files.

    Raises:
        CacheError: The lock file cannot be made, or its file system knows no locks.
    """
    lock_path = target.parent / ".locks" / f"{target.name}.lock"
    with writing(target):
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(lock_path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("Waiting for another process that is fetching %s.", target)
            lock.acquire()
        except NotImplementedError as error:
            raise CacheError(
                f"The file system of {target.parent} supports no file locks. "
                f"Set {environment.HOME} to a directory on another one."
            ) from error
    try:
        yield
    finally:
        lock.release()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, 308 included (urllib knows it from Python 3.11)."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPError(newurl, code, f"redirect to {newurl}, which is not HTTP", headers, fp)  # type: ignore[arg-type]
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)  # type: ignore[arg-type]

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


class _Transfer:
    """Brings one URL to its target; the caller holds the lock."""

    def __init__(self, url: str, target: Path, sha256: str, size: int | None, progress: bool) -> None:
        self.url, self.target, self.sha256, self.size = url, target, sha256, size
        self.part = target.with_name(f"{target.name}.part")
        self.progress = progress
        self.timeout = environment.network_timeout()
        self.may_resume = self.keep_part = bool(sha256)

    def run(self) -> None:
        """Receive, verify and put in place; leave nothing else behind than a part that can be resumed."""
        try:
            self._receive_and_verify()
            with writing(self.target):
                os.replace(self.part, self.target)
        except CacheError:
            self.keep_part = False
            raise
        finally:
            if not (self.keep_part and self._part_size()):
                self._discard_part()

    def _receive_and_verify(self) -> None:
        failures = 0
        while True:
            try:
                offset = self._receive(self._resume_offset())
            except _WrongRangeError as error:
                logger.info("%s: %s; starting again from zero.", self.url, error)
                self.may_resume = False
                continue
            except _InterruptedTransferError as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise self._failure(f"{error} ({failures} attempts)") from error
                pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
                logger.info("%s: %s; trying again in %g s.", self.url, error, pause)
                time.sleep(pause)
                continue
            with writing(self.target):
                problem = content_problem(self.part, self.sha256, self.size)
            if not problem:
                return
            self._discard_part()
            if offset == 0:
                raise self._failure(problem)
            logger.info("%s: the resumed file is wrong (%s); starting again from zero.", self.url, problem)
            self.may_resume = False

    def _receive(self, offset: int) -> int:
        """Fill the part file from ``offset`` on; return the offset from which the server really sent."""
        if offset and offset == self.size:
            return offset
        headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={offset}-"} if offset else {})
        try:
            request = urllib.request.Request(self.url, headers=headers)
            response = urllib.request.build_opener(_Redirects).open(request, timeout=self.timeout)
        except HTTPError as error:
            with error:
                if error.code == 416 and offset:
                    return offset  # nothing follows: the part is the whole file, or not a part of it
                raise self._http_failure(error) from error
        except (http.client.InvalidURL, ValueError) as error:
            raise self._failure(f"this is no valid address ({error})") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._network_failure(error) from error
        with response:
            start, total = self._check_answer(response, offset)
            self._store(response, start, total)
        return start

    def _check_answer(self, response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
        """Return where the sent bytes start and how long the whole file is, if the server says so."""
        if response.status == 206 and offset:
            content_range = response.headers.get("Content-Range", "")
            match = _CONTENT_RANGE.fullmatch(content_range.strip())
            total = int(match[2]) if match and match[2] != "*" else self.size
            if not match or int(match[1]) != offset or (self.size is not None and total != self.size):
                raise _WrongRangeError(f"asked for bytes from {offset} on, got {content_range!r}")
            return offset, total
        if response.status != 200:
            raise self._failure(f"the server answered with HTTP status {response.status}, expected 200")
        if not self.sha256 and response.headers.get_content_type() == "text/html":
            raise self._failure("got an HTML page instead of a file (a login page of this network?)")
        if self.size is not None and response.length not in (None, self.size):
            raise self._failure(f"expected {self.size} bytes, the server announces {response.length}")
        return 0, response.length

    def _store(self, response: http.client.HTTPResponse, start: int, total: int | None) -> None:
        limit = total if self.size is None else self.size
        received = start
        bar = tqdm(
            total=limit,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=self.target.name,
            disable=None if self.progress else True,
        )
        # Of the OSErrors in here only the disk's are left: _chunks translates the network's.
        with bar, writing(self.target), open(self.part, "ab" if start else "wb") as file:
            for chunk in self._chunks(response):
                if limit is not None and received + len(chunk) > limit:
                    self.keep_part = False
                    raise self._failure(f"expected {limit} bytes, the server sends more")
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if limit is not None and received < limit:
            raise _InterruptedTransferError(f"the connection was closed after {received} of {limit} bytes")

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            try:
                # read1 hands over what is there, so that a stall loses nothing of what came before it.
                chunk = response.read1(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise self._network_failure(error) from error
            if not chunk:
                return
            yield chunk

    def _part_size(self) -> int:
        with writing(self.target):
            return self.part.stat().st_size if self.part.is_file() else 0

    def _resume_offset(self) -> int:
        if not self.may_resume:
            return 0
        offset = self._part_size()
        return 0 if self.size is not None and offset > self.size else offset

    def _discard_part(self) -> None:
        try:
            self.part.unlink(missing_ok=True)
        except OSError as error:
            # The failure that led here is raised already, and is the one to be told.
            logger.debug("Cannot remove %s: %s", self.part, error)

    def _failure(self, cause: str) -> DownloadError:
        return DownloadError(f"Cannot download {self.url}: {cause}.")

    def _http_failure(self, error: HTTPError) -> DownloadError | _InterruptedTransferError:
        reason = str(error.reason).splitlines()[0] if error.reason else ""
        cause = f"the server answered HTTP {error.code} {reason}".rstrip(" .")
        if error.code >= 500 or error.code in (408, 429):
            return _InterruptedTransferError(cause)
        return self._failure(cause)

    def _network_failure(self, error: Exception) -> DownloadError | _InterruptedTransferError:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            silence = f"silent for {self.timeout:g} s ({environment.TIMEOUT})"
            if isinstance(error, URLError):
                # The connection itself: TCP has knocked for that long already, so once is enough.
                return self._failure(f"the server was {silence} when connecting")
            return _InterruptedTransferError(f"the server was {silence}")
        cause = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
        unknown_host = isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
        if unknown_host or isinstance(reason, (ssl.SSLCertVerificationError, str)):
            return self._failure(cause)
        return _InterruptedTransferError(cause)
