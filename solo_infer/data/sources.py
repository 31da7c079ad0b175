"""Image sources: paths, URLs, folders, glob patterns and iterables."""

from __future__ import annotations

import glob
import http.client
import itertools
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import TypeAlias
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
import PIL.Image
import torch

from solo_infer.config.suggestions import did_you_mean
from solo_infer.errors import ImageError, OfflineError
from solo_infer.runtime import environment

ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image | np.ndarray | torch.Tensor
)

IMAGE_SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tga .tif "
    ".tiff .webp".split()
)
MAX_DOWNLOAD_BYTES = 100_000_000
ENCODED_TYPES = (bytes, bytearray, memoryview)
ACCEPTED_SOURCES = (
    "a path (str or PathLike), an http(s) URL, encoded bytes, a PIL image, a numpy array (H, W, 3) uint8 "
    "or float 0..1, or a torch tensor (3, H, W) uint8 or float 0..1"
)

_SINGLE_TYPES = (str, os.PathLike, *ENCODED_TYPES, PIL.Image.Image, np.ndarray, torch.Tensor)
_MAX_NAMES_COMPARED = 10_000


def is_single_source(source: object) -> bool:
    """Return whether a source is, by its type, a single image that ``load_image`` accepts.

    Folders and glob patterns count as well, because they are paths. Only ``iterate_sources`` expands them.
    """
    return isinstance(source, _SINGLE_TYPES)


def is_url(text: str) -> bool:
    """Return whether a text is an http(s) URL."""
    return text.lower().startswith(("http://", "https://"))


def iterate_sources(source: object) -> Iterator[ImageSource]:
    """Iterate over the single images of a source, without decoding them.

    Args:
        source: A folder (its files with one of ``IMAGE_SUFFIXES``, sorted, without hidden files and
            subfolders), a glob pattern such as "photos/**/*.jpg" (all matching files, sorted), an iterable of
            sources (in its order, one at a time), or a single source.

    Raises:
        ImageError: The folder contains no image, the pattern matches no file, or the source is of an unknown
            type.
    """
    if isinstance(source, str | os.PathLike):
        return iter(_expand_path(source))
    if is_single_source(source):
        return iter([source])  # type: ignore[list-item]
    if isinstance(source, Iterable):
        return iter(source)
    raise ImageError(
        f"Unknown source of type {type(source).__name__}: expected {ACCEPTED_SOURCES}, a folder, a glob "
        "pattern or an iterable of these."
    )


def _expand_path(source: str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
    """Return the files of a folder or a glob pattern, or a list of the path or URL itself."""
    text = os.fsdecode(source)
    path = os.path.expanduser(text)
    if is_url(text) or os.path.isfile(path):
        return [source]
    if os.path.isdir(path):
        names = sorted(
            entry.name
            for entry in os.scandir(path)
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
            and not entry.name.startswith(".")
            and entry.is_file()
        )
        if not names:
            raise ImageError(
                f"No image in folder {text!r}: expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}. "
                f"For subfolders use a glob pattern, e.g. {os.path.join(text, '**', '*.jpg')!r}."
            )
        return [os.path.join(path, name) for name in names]
    if glob.has_magic(path):
        files = sorted({match for match in glob.iglob(path, recursive=True) if os.path.isfile(match)})
        if not files:
            raise ImageError(f"No file matches the pattern {text!r} (in {os.getcwd()!r}).")
        return list(files)
    return [source]


def check_source(source: str | os.PathLike[str]) -> None:
    """Check that the file of a path exists, without opening it. URLs are not checked.

    Raises:
        ImageError: The file does not exist; the message suggests a fix.
    """
    text = os.fsdecode(source)
    if is_url(text):
        return
    try:
        os.stat(os.path.expanduser(text))
    except (OSError, ValueError) as error:
        raise path_error(text, error) from error


def path_error(path: str, error: OSError | ValueError) -> ImageError:
    """Return the error to raise for a path that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return ImageError(f"File {shorten(path)} does not exist. {_suggestion(os.path.expanduser(path))}")
    reason = getattr(error, "strerror", None) or error
    return ImageError(f"{shorten(path)} cannot be opened ({reason}): expected an image file.")


def _suggestion(path: str) -> str:
    """Suggest a fix for a path that does not exist."""
    folder, name = os.path.split(path)
    if glob.has_magic(path):
        return "If it is a glob pattern, pass it to stream()."
    if "://" in path:
        return "Only URLs with http:// or https:// are supported."
    if not os.path.isdir(folder or "."):
        return f"Folder {shorten(folder)} does not exist either (working directory: {os.getcwd()!r})."
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in itertools.islice(entries, _MAX_NAMES_COMPARED)]
    except OSError as error:
        return f"Its folder cannot be read: {error}."
    suggestion = did_you_mean(name, names).rstrip()
    return suggestion or f"Check the name. Relative paths start at {os.getcwd()!r}."


def fetch_url(url: str) -> tuple[bytes, str]:
    """Return the content of an http(s) URL and its content type.

    Raises:
        ImageError: The URL cannot be fetched, or its content is larger than ``MAX_DOWNLOAD_BYTES``.
        OfflineError: Offline mode is on.
    """
    name = shorten(url)
    if environment.is_offline():
        raise OfflineError(
            f"{name} cannot be fetched because offline mode is on ({environment.OFFLINE} or HF_HUB_OFFLINE "
            "is set): pass a local file, or unset the variable."
        )
    headers = {"User-Agent": environment.USER_AGENT}
    timeout = environment.network_timeout()
    try:
        request = urllib.request.Request(_percent_encode(url), headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            too_large = int(response.headers.get("Content-Length") or 0) > MAX_DOWNLOAD_BYTES
            content = b"" if too_large else response.read(MAX_DOWNLOAD_BYTES + 1)
            content_type = response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{name}: the server returned HTTP {error.code} {error.reason}.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise ImageError(f"{name} cannot be fetched: {reason}. Check the URL and the connection.") from error
    if too_large or len(content) > MAX_DOWNLOAD_BYTES:
        raise ImageError(
            f"{name} is larger than the limit of {MAX_DOWNLOAD_BYTES:,} bytes: download it yourself and pass "
            "the file."
        )
    return content, content_type


def _percent_encode(url: str) -> str:
    """Percent-encode the characters that urllib refuses in a path and query; escapes stay as they are."""
    parts = urlsplit(url)
    path, query = (quote(text, safe="/%:=&?+!$,;'@()*[]~|") for text in (parts.path, parts.query))
    return urlunsplit(parts._replace(path=path, query=query, fragment=""))


def shorten(text: str, length: int = 200) -> str:
    """Return a path or URL in quotes for a message, cut to a maximum length."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")
