"""Download of one file over HTTP(S): locked between processes, resumed, verified and renamed atomically.

The content is written to ``<target>.part``, flushed to disk, compared with the published SHA-256 and size,
and then renamed. The target therefore never holds an incomplete or wrong file.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError

from solo_infer.errors import CacheError, DownloadError, OfflineError
from solo_infer.runtime import environment
from solo_infer.runtime.progress import progress_bar
from solo_infer.runtime.urls import SlowServerError, open_http
from solo_infer.weights.cache_files import as_cache_error, checksum_error, locked, matches

logger = logging.getLogger(__name__)

ATTEMPTS = 3
BACKOFF_SECONDS = (1.0, 3.0)
CHUNK_BYTES = 1 << 18

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _InterruptedTransferError(Exception):
    """A failure of the network or the server that may be temporary."""


class _WrongRangeError(Exception):
    """An answer to a Range request with another range."""


def download_file(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    size: int | None = None,
    progress: bool = True,
    offline: bool | None = None,
) -> Path:
    """Download a file, unless the target has the expected content already.

    Processes and threads that need the same target wait for each other, and one of them downloads. An
    interrupted transfer is resumed if ``sha256`` is known. Without it, nothing proves that both parts come
    from the same file.

    Args:
        url: ``http://`` or ``https://`` address.
        target: Path of the downloaded file. Missing directories are created.
        sha256: Expected SHA-256 in hex, or its first digits. Defaults to "", an unknown one.
        size: Expected size in bytes. Defaults to an unknown one.
        progress: Whether to show a progress bar on stderr, if stderr is a terminal.
        offline: Whether to refuse network use. Defaults to the environment's setting.

    Returns:
        ``target``, which holds the verified content.

    Raises:
        DownloadError: The server does not provide the file, or its content is not the expected one.
        OfflineError: The file would have to be downloaded in offline mode.
        CacheError: The directory of ``target`` cannot be written.
        ConfigError: ``SOLO_INFER_TIMEOUT`` is not a positive number.
    """
    with as_cache_error(target):
        # Before the lock, which a read-only cache would refuse.
        if matches(target, sha256, size):
            return target
    if environment.is_offline() if offline is None else offline:
        raise OfflineError(
            f"Offline mode: {url} was not downloaded. Unset {environment.OFFLINE_NAMES}, or "
            f"copy the file to {target}."
        )
    if not url.lower().startswith(("http://", "https://")):
        raise DownloadError(f"Cannot download {url}: expected an http:// or https:// address.")
    transfer = _Transfer(url, target, sha256, size, progress)
    with locked(target):
        with as_cache_error(target):
            is_complete = matches(target, sha256, size)
        if not is_complete:
            transfer.run()
    return target


class _Transfer:
    """Transfer of one URL to its target; the caller holds the lock."""

    def __init__(self, url: str, target: Path, sha256: str, size: int | None, progress: bool) -> None:
        self.url, self.target, self.sha256, self.size = url, target, sha256, size
        self.part = target.with_name(f"{target.name}.part")
        self.progress = progress
        self.timeout = environment.network_timeout()
        self.may_resume = self.keep_part = bool(sha256)

    def run(self) -> None:
        """Receive, verify and rename the file; after a failure, keep only a part that can be resumed."""
        try:
            self._receive_and_verify()
            with as_cache_error(self.target):
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
                logger.info("%s: %s; restarting from zero.", self.url, error)
                self.may_resume = False
                continue
            except _InterruptedTransferError as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise self._failure(f"{error} ({failures} attempts)") from error
                pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
                logger.info("%s: %s; retrying in %g s.", self.url, error, pause)
                time.sleep(pause)
                continue
            with as_cache_error(self.target):
                problem = checksum_error(self.part, self.sha256, self.size)
            if not problem:
                return
            self._discard_part()
            if offset == 0:
                raise self._failure(problem)
            logger.info("%s: the resumed file is wrong (%s); restarting from zero.", self.url, problem)
            self.may_resume = False

    def _receive(self, offset: int) -> int:
        """Fill the part file from an offset on; return the offset of the first byte that the server sent."""
        if offset and offset == self.size:
            return offset
        headers = {"User-Agent": environment.USER_AGENT} | ({"Range": f"bytes={offset}-"} if offset else {})
        try:
            request = urllib.request.Request(self.url, headers=headers)
            response = open_http(request, self.timeout)
        except HTTPError as error:
            with error:
                if error.code == 416 and offset:
                    return offset  # the part is complete, or belongs to another file: the checksum decides
                raise self._http_failure(error) from error
        except (http.client.InvalidURL, ValueError) as error:
            raise self._failure(f"the address is not valid ({error})") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._network_failure(error) from error
        with response:
            start, total = self._check_response(response, offset)
            self._store(response, start, total)
        return start

    def _check_response(self, response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
        """Return the offset of the first byte sent, and the size of the whole file, None if it is unknown."""
        if response.status == 206 and offset:
            content_range = response.headers.get("Content-Range", "")
            match = _CONTENT_RANGE.fullmatch(content_range.strip())
            total = int(match[2]) if match and match[2] != "*" else self.size
            if not match or int(match[1]) != offset or (self.size is not None and total != self.size):
                raise _WrongRangeError(f"requested bytes from {offset} on, got {content_range!r}")
            return offset, total
        if response.status != 200:
            raise self._failure(f"the server answered with HTTP status {response.status}, expected 200")
        if not self.sha256 and response.headers.get_content_type() == "text/html":
            raise self._failure("got an HTML page instead of a file (a login page of this network?)")
        if self.size is not None and response.length not in (None, self.size):
            raise self._failure(f"expected {self.size} bytes, the server announced {response.length}")
        return 0, response.length

    def _store(self, response: http.client.HTTPResponse, start: int, total: int | None) -> None:
        limit = total if self.size is None else self.size
        received = start
        bar = progress_bar(
            enabled=self.progress,
            total=limit,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=self.target.name,
        )
        # An OSError in this block is the disk's; _chunks translates those of the network.
        with bar, as_cache_error(self.target), open(self.part, "ab" if start else "wb") as file:
            for chunk in self._chunks(response):
                if limit is not None and received + len(chunk) > limit:
                    self.keep_part = False
                    raise self._failure(f"expected {limit} bytes, the server sent more")
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
                # read1 returns the bytes received so far, so a stall does not lose them.
                chunk = response.read1(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise self._network_failure(error) from error
            if not chunk:
                return
            yield chunk

    def _part_size(self) -> int:
        with as_cache_error(self.target):
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
            # An error that is being raised already takes precedence.
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
        if isinstance(reason, SlowServerError):
            return self._failure(str(reason))
        if isinstance(reason, TimeoutError):
            silence = f"silent for {self.timeout:g} s ({environment.TIMEOUT})"
            if isinstance(error, URLError):
                # TCP has retried the connection for that long already.
                return self._failure(f"the server was {silence} when connecting")
            return _InterruptedTransferError(f"the server was {silence}")
        cause = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
        unknown_host = isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
        if unknown_host or isinstance(reason, (ssl.SSLCertVerificationError, str)):
            return self._failure(cause)
        return _InterruptedTransferError(cause)
