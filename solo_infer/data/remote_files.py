"""Files of object stores, which fsspec reads: s3://, gs://, az://, and file:// and memory://."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection
from typing import Any

from solo_infer.errors import ImageError, OfflineError
from solo_infer.runtime import environment
from solo_infer.runtime.messages import escaped, quoted
from solo_infer.runtime.urls import redact_credentials

MAX_BYTES = 100_000_000  # of a file that is read
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# Object stores. Other protocols of fsspec, such as ftp and ssh, are not used: an input could name any host.
_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "file", "local", "memory")
_SCHEMES_WITHOUT_NETWORK = ("file", "local", "memory")


def is_remote(text: str) -> bool:
    """Return whether a text is the URI of an object store, or file:// or memory://. Chains are not."""
    return _scheme(text) in _STORES and "::" not in text


def match_remote(uri: str, suffixes: Collection[str]) -> list[str]:
    """Return the files of a URI: those that match its pattern, those of its folder, or the file itself.

    A URI that ends in one of the suffixes is a file, without a request. Patterns and folders give sorted
    files; of a folder, those with one of the suffixes that are not hidden and not in subfolders.

    Raises:
        ImageError: There is no such file, or the file system cannot be used.
        OfflineError: The file system is on the network, and offline mode is on.
    """
    is_pattern = glob.has_magic(uri)
    if not is_pattern and _suffix(uri) in suffixes:
        return [uri]
    try:
        files, path = file_system(uri)
        if is_pattern:
            found = [name for name, entry in files.glob(path, detail=True).items() if entry["type"] == "file"]
        elif files.isdir(path):
            entries = files.ls(path, detail=True)
            found = [entry["name"] for entry in entries if _is_visible_file(entry, suffixes)]
        else:
            return [uri]
        names = sorted(map(files.unstrip_protocol, found))
    except (ImageError, OfflineError):
        raise
    except Exception as error:  # packages of file systems raise errors of their own
        raise _access_error(uri, error) from error
    if not names:
        expected = "matches the pattern" if is_pattern else "with a suffix of an image is in the folder"
        raise ImageError(f"No file {expected} {_name(uri)}.")
    return names


def read_remote(uri: str) -> bytes:
    """Return the content of a file.

    Raises:
        ImageError: The file cannot be read, or is larger than ``MAX_BYTES``.
        OfflineError: The file system is on the network, and offline mode is on.
    """
    try:
        files, path = file_system(uri)
        with files.open(path, "rb", cache_type="none") as file:
            content: bytes = file.read(MAX_BYTES + 1)
    except (ImageError, OfflineError):
        raise
    except Exception as error:
        raise _access_error(uri, error) from error
    if len(content) > MAX_BYTES:
        raise ImageError(f"{_name(uri)} is larger than the limit of {MAX_BYTES:,} bytes: pass it as a file.")
    return content


def file_system(uri: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URI or of a local path, and the path in it.

    Raises:
        ImageError: The package of the file system is not installed.
        OfflineError: The file system is on the network, and offline mode is on.
    """
    from fsspec.core import url_to_fs

    if _scheme(uri) not in ("", *_SCHEMES_WITHOUT_NETWORK) and environment.is_offline():
        raise OfflineError(
            f"{_name(uri)} cannot be accessed because offline mode is on ({environment.OFFLINE} or "
            "HF_HUB_OFFLINE is set): pass a local path, or unset the variable."
        )
    try:
        files, path = url_to_fs(uri)
    except ImportError as error:
        raise ImageError(
            f"{_name(uri)} needs a package that is not installed: {escaped(str(error))[:200]}."
        ) from error
    return files, path


def _scheme(uri: str) -> str:
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_visible_file(entry: dict[str, Any], suffixes: Collection[str]) -> bool:
    name = entry["name"].rpartition("/")[2]
    return entry["type"] == "file" and not name.startswith(".") and _suffix(name) in suffixes


def _name(uri: str) -> str:
    return quoted(redact_credentials(uri), 200)


def _access_error(uri: str, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(f"File {_name(uri)} does not exist. Check the name.")
    reason = escaped(str(error) or type(error).__name__)[:200]
    return ImageError(f"{_name(uri)} cannot be read ({reason}): check the name and the access rights.")
