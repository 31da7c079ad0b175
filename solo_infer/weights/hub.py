"""Files from the Hugging Face Hub, through ``huggingface_hub`` and its cache.

``huggingface_hub`` is imported inside the functions, because its import is slow and a file in our own cache
does not need it.
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
from solo_infer.weights.cache_files import checksum_error
from solo_infer.weights.manifest import Source

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONNECT_SECONDS = 10.0


def fetch_from_hub(
    source: Source, *, sha256: str = "", size: int | None = None, offline: bool = False, progress: bool = True
) -> Path:
    """Return the path of a verified file in the Hub's cache; download it if it is not there.

    A cached file with the expected SHA-256 is used without a request to the Hub. Files that the Hub stores
    under their SHA-256 (LFS) are also verified against it.

    Args:
        source: Source of kind "hub".
        sha256: Expected SHA-256 in hex, or its first digits. Defaults to "", an unknown one.
        size: Expected size in bytes. Defaults to an unknown one.
        offline: Whether to use only the cache, without network.
        progress: Whether ``huggingface_hub`` may show its progress bar.

    Raises:
        DownloadError: The Hub does not provide the file, or its content is not the expected one. The message
            has one line.
    """
    name = f"Hub file {source.repo}/{source.filename} ({source.revision})"
    timeout = min(environment.network_timeout(), _CONNECT_SECONDS)
    try:
        cached = cached_hub_file(source)
        problem = (
            _cached_file_error(cached, sha256, size) if cached else f"it is not in {hub_cache_directory()}"
        )
        if cached and not problem and (offline or sha256):
            return cached
        if offline:
            raise DownloadError(f"{name}: {problem}.")
        try:
            _check_reachable(timeout)
            remote_problem = _metadata_error(source, sha256, size, timeout)
        except hub_errors() as error:
            if cached and not problem:
                logger.warning("%s: using the cached copy, as the Hub failed: %s", name, one_line(error))
                return cached
            raise
        if remote_problem:
            raise DownloadError(f"{name}: {remote_problem}.")
        path, problem = _download(source, sha256, size, progress, timeout)
    except hub_errors() as error:
        raise DownloadError(f"{name}: {one_line(error)}") from error
    if problem:
        raise DownloadError(f"{name}: {problem}.")
    return path


def cached_hub_file(source: Source) -> Path | None:
    """Return the path of a file in the Hub's cache, None if it is not there.

    No network is used, and the content is not verified.

    Raises:
        ValueError: ``source.repo`` is not a valid repo id.
        OSError: The cache cannot be read.
    """
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(
        source.repo, source.filename, cache_dir=hub_cache_directory(), revision=source.revision
    )
    return Path(path) if isinstance(path, str) else None


def hub_cache_directory() -> Path:
    """Return the directory of the Hub's cache.

    For a user without a home directory it is in our cache: ``huggingface_hub`` would use a folder that is
    named "~" in the working directory.
    """
    from huggingface_hub import constants

    path = Path(constants.HF_HUB_CACHE)
    return path if environment.has_home() or path.is_absolute() else environment.cache_home() / "hub"


def _check_reachable(timeout: float) -> None:
    """Raise ConnectionError if no connection to the Hub can be opened.

    Recent versions of ``huggingface_hub`` retry an unresponsive host for minutes.
    """
    from huggingface_hub import constants

    if set(getproxies()) - {"no"}:
        return  # connections go through a proxy, whose protocol only the library may support
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname, port), timeout=timeout):
            pass
    except OSError as error:
        raise ConnectionError(f"{constants.ENDPOINT} cannot be reached") from error


def _metadata_error(source: Source, sha256: str, size: int | None, timeout: float) -> str:
    """Return how the file's metadata differ from the expected ones, "" if they do not."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import HfHubHTTPError

    url = hf_hub_url(source.repo, source.filename, revision=source.revision)
    try:
        metadata = get_hf_file_metadata(url, timeout=timeout)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status >= 500 or status in (408, 429):
            return ""  # hf_hub_download waits for a busy Hub
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
    """Return the path of the file and how it differs from the expected content ("" if it does not)."""
    from huggingface_hub import hf_hub_download

    # The second round replaces a blob that is damaged on the disk, which the library does not check.
    for force in (False, True):
        with _progress_bars(progress):
            path = hf_hub_download(
                source.repo,
                source.filename,
                cache_dir=hub_cache_directory(),
                revision=source.revision,
                library_name="solo-infer",
                library_version=__version__,
                etag_timeout=timeout,
                force_download=force,
            )
        problem = _cached_file_error(Path(path), sha256, size)
        if not problem:
            break
        if not force:
            logger.warning("%s is damaged and is downloaded again: %s.", path, problem)
    return Path(path), problem


def _cached_file_error(path: Path, sha256: str, size: int | None) -> str:
    blob_sha256 = _blob_sha256(path)
    if blob_sha256 and not blob_sha256.startswith(sha256.lower()):
        return f"expected a SHA-256 that starts with {sha256}, the Hub's cache has {blob_sha256}"
    return checksum_error(path, blob_sha256 or sha256, size)


def _blob_sha256(path: Path) -> str:
    """Return the SHA-256 in the name of a cached file's blob, "" for files that are not stored by SHA-256."""
    if not path.is_symlink():
        return ""
    # Follow one link only: the blob may itself be a link to a file with another name.
    blob = os.path.basename(os.readlink(path))
    return blob if _SHA256.fullmatch(blob) else ""


@contextmanager
def _progress_bars(enabled: bool) -> Iterator[None]:
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if enabled or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that ``huggingface_hub`` raises when the Hub, the network or its cache fails.

    ``HfHubHTTPError`` derives from the base error of the HTTP library, which differs between versions
    (requests, httpx). Its base classes cover the connection errors of that library. ``hf_xet`` raises
    RuntimeError. A proxy whose protocol needs a package that is not installed raises ImportError.
    """
    from huggingface_hub.utils import EntryNotFoundError, HfHubHTTPError

    ancestors = [base for base in HfHubHTTPError.__mro__ if issubclass(base, Exception)]
    library_errors = [base for base in ancestors if base is not Exception]
    return (EntryNotFoundError, *library_errors, OSError, ValueError, RuntimeError, ImportError)


def one_line(error: Exception) -> str:
    """Return the type and message of an error and its causes on one line, cut to a maximum length."""
    cause = f" ({one_line(error.__cause__)})" if isinstance(error.__cause__, Exception) else ""
    text = textwrap.shorten(str(error), 300, placeholder=" ...")
    return f"{type(error).__name__}: {text}{cause}"
