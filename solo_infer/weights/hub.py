"""Files from the Hugging Face Hub, through ``huggingface_hub`` and its cache.

``huggingface_hub`` is imported inside the functions: it is slow, and a cached file needs it not.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from solo_infer._version import __version__
from solo_infer.errors import DownloadError
from solo_infer.runtime import environment
from solo_infer.weights.download import content_problem
from solo_infer.weights.manifest import Source

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_KNOCK_SECONDS = 10.0


def fetch_from_hub(
    source: Source, *, sha256: str = "", size: int | None = None, offline: bool = False, progress: bool = True
) -> Path:
    """Return the path of a verified Hub file in the Hub's own cache, downloading it if need be.

    A cached file that has the expected SHA-256 is used without asking the Hub. Files that the Hub stores
    under their SHA-256 (LFS) are verified against that too.

    Args:
        source: A source of kind "hub".
        sha256: The expected SHA-256 in hex, or its first digits, or "" when none is known.
        size: The expected size in bytes, when known.
        offline: Whether to look only in the cache, without touching the network.
        progress: Whether to let ``huggingface_hub`` show its progress bar.

    Raises:
        DownloadError: The Hub cannot deliver the file, or it is another one than expected. The message is
            one line.
    """
    name = f"Hub file {source.repo}/{source.filename} ({source.revision})"
    timeout = min(environment.network_timeout(), _KNOCK_SECONDS)
    try:
        cached = cached_hub_file(source)
        problem = _problem(cached, sha256, size) if cached else f"it is not in {hub_cache_directory()}"
        if cached and not problem and (offline or sha256):
            return cached
        if offline:
            raise DownloadError(f"{name}: {problem}.")
        try:
            _knock(timeout)
            problem_there = _probe(source, sha256, size, timeout)
        except _hub_errors() as error:
            if cached and not problem:
                logger.warning("%s: using the cached copy, as the Hub fails: %s", name, _one_line(error))
                return cached
            raise
        if problem_there:
            raise DownloadError(f"{name}: {problem_there}.")
        path, problem = _download(source, sha256, size, progress, timeout)
    except _hub_errors() as error:
        raise DownloadError(f"{name}: {_one_line(error)}") from error
    if problem:
        raise DownloadError(f"{name}: {problem}.")
    return path


def cached_hub_file(source: Source) -> Path | None:
    """Return where the Hub's cache holds a file, or None; without network and without hashing.

    Raises:
        ValueError: ``source.repo`` is no valid repo id.
        OSError: The cache cannot be read.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repo, source.filename, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def hub_cache_directory() -> Path:
    """Return the directory of the Hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _knock(timeout: float) -> None:
    """Raise ConnectionError if the Hub cannot be reached, at once.

    ``huggingface_hub`` alone tries, in its newer versions, a silent host for minutes.
    """
    from huggingface_hub import constants

    if set(getproxies()) - {"no"}:
        return  # the way goes through a proxy, of a kind that only the library may know
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname, port), timeout=timeout):
            pass
    except OSError as error:
        raise ConnectionError(f"{constants.ENDPOINT} cannot be reached") from error


def _probe(source: Source, sha256: str, size: int | None, timeout: float) -> str:
    """Ask for the file's metadata and say if it is another file, before that is downloaded."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import HfHubHTTPError

    url = hf_hub_url(source.repo, source.filename, revision=source.revision)
    try:
        metadata = get_hf_file_metadata(url, timeout=timeout)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status >= 500 or status in (408, 429):
            return ""  # hf_hub_download knows how to wait for a busy Hub
        raise
    etag = metadata.etag or ""
    if _SHA256.fullmatch(etag) and not etag.startswith(sha256.lower()):
        return f"expected a SHA-256 that starts with {sha256}, the Hub has {etag}"
    if size is not None and metadata.size not in (None, size):
        return f"expected {size} bytes, the Hub has {metadata.size}"
    return ""


def _download(
    source: Source, sha256: str, size: int | None, progress: bool, timeout: float
) -> tuple[Path, str]:
    """Return the file's path and what is wrong with it ("" for nothing)."""
    from huggingface_hub import hf_hub_download

    # The second round replaces a blob that was damaged on the disk: the Hub never looks at it again.
    for force in (False, True):
        with _progress_bars(progress):
            path = hf_hub_download(
                source.repo,
                source.filename,
                revision=source.revision,
                library_name="solo-infer",
                library_version=__version__,
                etag_timeout=timeout,
                force_download=force,
            )
        problem = _problem(Path(path), sha256, size)
        if not problem:
            break
        if not force:
            logger.warning("%s is not as expected and is fetched again: %s.", path, problem)
    return Path(path), problem


def _problem(path: Path, sha256: str, size: int | None) -> str:
    blob_sha256 = _blob_sha256(path)
    if blob_sha256 and not blob_sha256.startswith(sha256.lower()):
        return f"expected a SHA-256 that starts with {sha256}, the Hub's cache has {blob_sha256}"
    return content_problem(path, blob_sha256 or sha256, size)


def _blob_sha256(path: Path) -> str:
    """Return the SHA-256 that a cached file's blob is named by, "" for files stored otherwise."""
    if not path.is_symlink():
        return ""
    # One step only: the blob itself may be a link into a store of other names.
    blob = os.path.basename(os.readlink(path))
    return blob if _SHA256.fullmatch(blob) else ""


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return what ``huggingface_hub`` raises when the Hub, the network or its cache fails.

    ``HfHubHTTPError`` descends from the error base of the HTTP library in use, which has changed between
    versions (requests, httpx): its ancestors cover that library's connection errors. RuntimeError is what
    ``hf_xet`` raises, ImportError what a proxy of a kind without installed support ends in.
    """
    from huggingface_hub.utils import EntryNotFoundError, HfHubHTTPError

    ancestors = [kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception)]
    library_errors = [kind for kind in ancestors if kind is not Exception]
    return (EntryNotFoundError, *library_errors, OSError, ValueError, RuntimeError, ImportError)


def _one_line(error: Exception) -> str:
    cause = f" ({_one_line(error.__cause__)})" if isinstance(error.__cause__, Exception) else ""
    text = textwrap.shorten(str(error), 300, placeholder=" ...")
    return f"{type(error).__name__}: {text}{cause}"
