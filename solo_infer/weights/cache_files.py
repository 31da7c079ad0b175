"""Checksums, locks and errors of the files in a cache directory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from solo_infer.errors import CacheError
from solo_infer.runtime import environment

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hex digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def checksum_error(path: Path, sha256: str = "", size: int | None = None) -> str:
    """Return how a file differs from the expected content, "" if it does not.

    Args:
        path: Path of an existing file.
        sha256: Expected SHA-256 in hex, or its first digits. Defaults to "", an unknown one.
        size: Expected size in bytes. Defaults to any size above 0.

    Raises:
        OSError: The file cannot be read.
    """
    file_size = path.stat().st_size
    if size is not None and file_size != size:
        return f"expected {size} bytes, got {file_size}"
    if file_size == 0 and size is None:
        return "expected content, got an empty file"
    if not sha256:
        return ""
    digest = file_sha256(path)
    if digest.startswith(sha256.lower()):
        return ""
    return f"expected a SHA-256 that starts with {sha256}, got {digest}"


def matches(path: Path, sha256: str = "", size: int | None = None) -> bool:
    """Return whether a file exists and has the expected content; see ``checksum_error``.

    Raises:
        OSError: The file exists but cannot be read.
    """
    return path.is_file() and not checksum_error(path, sha256, size)


@contextmanager
def as_cache_error(target: Path) -> Iterator[None]:
    """Raise each OSError of the block as a CacheError.

    Args:
        target: Path of the file that the block reads or writes.
    """
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"The directory {target.parent} cannot be used for {target.name}: {error}. Make it writable, "
            f"free up disk space, or choose another directory ({environment.HOME} sets the cache)."
        ) from error


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of a file against other processes and threads; wait until it is free.

    The empty lock file is never removed. If it were, another process could open it before the removal and
    lock it afterwards, and a third one could lock a new file of the same name at the same time.

    Raises:
        CacheError: The lock file cannot be created, or its file system does not support locks.
    """
    lock_path = target.parent / ".locks" / f"{target.name}.lock"
    with as_cache_error(target):
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(lock_path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("Waiting for another process that is fetching %s.", target)
            lock.acquire()
        except NotImplementedError as error:
            raise CacheError(
                f"The file system of {target.parent} does not support file locks. "
                f"Set {environment.HOME} to a directory on another one."
            ) from error
    try:
        yield
    finally:
        lock.release()
