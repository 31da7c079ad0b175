"""Image sources: paths, URLs, folders, glob patterns and iterables."""

from __future__ import annotations

import glob
import http.client
import itertools
import logging
import os
import stat
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, cast
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
import PIL.Image
import torch

from solo_infer.config.suggestions import did_you_mean
from solo_infer.data.patterns import match_files, unique_files
from solo_infer.data.pipes import STDIN
from solo_infer.data.remote_files import is_remote, match_remote
from solo_infer.data.video_sources import Video, as_video, is_stream_name, is_video
from solo_infer.errors import ImageError, OfflineError
from solo_infer.runtime import environment
from solo_infer.runtime.messages import escaped, quoted
from solo_infer.runtime.urls import open_http

logger = logging.getLogger(__name__)

ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image | np.ndarray | torch.Tensor
)
Images: TypeAlias = Sequence[ImageSource]
StreamSource: TypeAlias = ImageSource | Video | int  # an int is the index of a camera

IMAGE_SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tga .tif "
    ".tiff .webp".split()
)
MAX_DOWNLOAD_BYTES = 100_000_000
ENCODED_TYPES = (bytes, bytearray, memoryview)
ACCEPTED_SOURCES = (
    "a path (str or PathLike), an http(s) URL, a URI of fsspec (s3://, ...), encoded bytes, a PIL image, a "
    "numpy array (H, W, 3) uint8 or float 0..1, or a torch tensor (3, H, W) uint8 or float 0..1"
)

_SINGLE_TYPES = (str, os.PathLike, *ENCODED_TYPES, PIL.Image.Image, np.ndarray, torch.Tensor)
_MJPEG_TYPE = "multipart/x-mixed-replace"  # content type of network cameras
_MAX_NAMES_COMPARED = 10_000
_MAX_NAMES_LISTED = 3


def is_single_source(source: object) -> bool:
    """Return whether a source is, by its type, a single image that ``load_image`` accepts.

    Folders and glob patterns count as well, because they are paths. Only ``iterate_sources`` expands them.
    """
    return isinstance(source, _SINGLE_TYPES)


def as_sources(source: object) -> tuple[Images, bool]:
    """Return the sources of a call, and whether they are a single image.

    Args:
        source: Image, or sequence of images.

    Raises:
        ImageError: It is of another type.
    """
    if isinstance(source, list | tuple):
        videos: Iterable[object] = filter(is_video, source)
    else:
        videos = [source] if is_video(source) else []
    for video in videos:
        raise video_error(video)
    if is_single_source(source):
        return [cast(ImageSource, source)], True
    if not isinstance(source, Sequence):
        raise ImageError(
            f"{type(source).__name__} is not an image: expected a path, URL, bytes, PIL image, array, "
            "tensor, or a list of these. For folders, globs and iterators use stream()."
        )
    return source, False


def video_error(source: object) -> ImageError:
    """Return the error to raise where a video is passed as an image."""
    video = as_video(source)
    name = shorten(video.name) if video is not None else quoted(source)
    return ImageError(
        f"{name} is a video or a camera, which has one result for each frame: pass it to stream()."
    )


def is_url(text: str) -> bool:
    """Return whether a text is an http(s) URL."""
    return text.lower().startswith(("http://", "https://"))


def iterate_sources(source: object) -> Iterator[StreamSource]:
    """Iterate over the single images and videos of a source, without decoding them.

    Args:
        source: A folder (its files with one of ``IMAGE_SUFFIXES``, sorted, without hidden files and
            subfolders; a warning is logged with the number of other files), a glob pattern such as
            "photos/**/*.jpg" (all matching files, sorted), a folder or a pattern of an object store such as
            "s3://bucket/photos", an iterable of sources (in its order, one at a time), or a single source or
            video. A file that a folder or a pattern has under several names
            occurs once.

    Raises:
        ImageError: The folder contains no image or cannot be read, the pattern matches no file, or the source
            is of an unknown type.
    """
    if isinstance(source, str | os.PathLike):
        return iter(_expand_path(source))
    if is_single_source(source) or is_video(source):
        return iter([source])  # type: ignore[list-item]
    if isinstance(source, Iterable):
        return iter(source)
    raise ImageError(
        f"Unknown source of type {type(source).__name__}: expected {ACCEPTED_SOURCES}, a folder, a glob "
        "pattern, a video, the index of a camera, or an iterable of these."
    )


def _expand_path(source: str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
    """Return the files of a folder, a pattern or a URI of these, or a list of the path or URL itself."""
    text = path_text(source)
    path = os.path.expanduser(text)
    if is_url(text) or is_stream_name(text) or os.path.isfile(path):
        return [source]
    if is_remote(text):
        return list(match_remote(text, IMAGE_SUFFIXES))
    if os.path.isdir(path):
        return list(_files_of_folder(path, text))
    if glob.has_magic(path):
        files = match_files(path)
        if not files:
            raise ImageError(f"No file matches the pattern {shorten(text)} (in {_working_directory()}).")
        return list(files)
    return [source]


def _files_of_folder(path: str, name: str) -> list[str]:
    """Return the images of a folder, and log how many other files it has."""
    try:
        visible = [entry for entry in os.listdir(path) if not entry.startswith(".")]
    except OSError as error:
        raise path_error(name, error, expected="a folder of images") from error
    files = {os.path.join(path, entry): entry for entry in visible}
    images = [
        file
        for file, entry in files.items()
        if os.path.splitext(entry)[1].lower() in IMAGE_SUFFIXES and os.path.isfile(file)
    ]
    if not images:
        raise ImageError(
            f"No image in folder {shorten(name)}: expected files ending in "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}. For subfolders use a glob pattern, e.g. "
            f"{shorten(os.path.join(name, '**', '*.jpg'))}."
        )
    unique = unique_files(images)
    others = sorted(files[file] for file in files.keys() - set(images) if not os.path.isdir(file))
    if others:
        listed = ", ".join(map(quoted, others[:_MAX_NAMES_LISTED]))
        more = ", ..." if len(others) > _MAX_NAMES_LISTED else ""
        logger.warning(
            "%s: %d other file%s left out, which have no suffix of an image (%s%s).",
            name,
            len(others),
            "" if len(others) == 1 else "s",
            listed,
            more,
        )
    if len(unique) < len(images):
        logger.warning("%s: %d other names of the same files left out.", name, len(images) - len(unique))
    return unique


def path_text(source: str | os.PathLike[str]) -> str:
    """Return a path as text.

    Raises:
        ImageError: The object is not a path.
    """
    try:
        return os.fsdecode(source)
    except (TypeError, ValueError) as error:
        raise ImageError(
            f"{type(source).__name__} is not a path ({error}): expected {ACCEPTED_SOURCES}."
        ) from error


def check_source(source: str | os.PathLike[str]) -> int:
    """Check that a path is that of a file or a pipe, without opening it, and return its ``st_mode``.

    URLs, URIs of object stores, streams, cameras, folders and standard input are not checked; their mode is
    0.

    Raises:
        ImageError: The file does not exist, or is a device or a socket; the message suggests a fix.
    """
    text = path_text(source)
    if is_url(text) or is_stream_name(text) or text == STDIN or is_remote(text):
        return 0
    try:
        mode = os.stat(os.path.expanduser(text)).st_mode
    except (OSError, ValueError) as error:
        raise path_error(text, error) from error
    if stat.S_ISDIR(mode):
        return 0
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        kind = "socket" if stat.S_ISSOCK(mode) else "device"
        raise ImageError(f"{shorten(text)} is a {kind}: expected an image file or a pipe.")
    return mode


def path_error(path: str, error: OSError | ValueError, expected: str = "an image file") -> ImageError:
    """Return the error to raise for a path that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return ImageError(f"File {shorten(path)} does not exist. {_suggestion(os.path.expanduser(path))}")
    if isinstance(error, UnicodeEncodeError):
        reason = (
            f"the file system encoding of this process, {error.encoding}, lacks some of its characters; set "
            "PYTHONUTF8=1 or a UTF-8 locale"
        )
    else:
        reason = str(getattr(error, "strerror", None) or error)
    return ImageError(f"{shorten(path)} cannot be opened ({reason}): expected {expected}.")


def _suggestion(path: str) -> str:
    """Suggest a fix for a path that does not exist."""
    folder, name = os.path.split(path)
    if os.path.islink(path):
        return f"It is a link to {shorten(os.readlink(path))}, which does not exist."
    if glob.has_magic(path):
        return "If it is a glob pattern, pass it to stream()."
    if "://" in path:
        return "Only URLs with http:// or https:// and those of fsspec (s3://, gs://, ...) are supported."
    if not os.path.isdir(folder or "."):
        return f"Folder {shorten(folder)} does not exist either (working directory: {_working_directory()})."
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in itertools.islice(entries, _MAX_NAMES_COMPARED)]
    except OSError as error:
        return f"Its folder cannot be read: {error}."
    suggestion = did_you_mean(name, names).rstrip()
    return suggestion or f"Check the name. Relative paths start at {_working_directory()}."


def _working_directory() -> str:
    """Return the working directory in quotes for a message."""
    try:
        return shorten(os.getcwd())
    except OSError:
        return "a folder that was removed"


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
        with open_http(request, timeout) as response:
            content_type = response.headers.get_content_type()
            sends_video = content_type.startswith("video/") or content_type == _MJPEG_TYPE
            too_large = int(response.headers.get("Content-Length") or 0) > MAX_DOWNLOAD_BYTES
            content = b"" if too_large or sends_video else response.read(MAX_DOWNLOAD_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(
            f"{name}: the server returned HTTP {error.code} {quoted(str(error.reason))}."
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        reason = escaped(str(reason))[:200]
        raise ImageError(f"{name} cannot be fetched: {reason}. Check the URL and the connection.") from error
    if sends_video:
        raise ImageError(
            f"{name} is a video (sent as {quoted(content_type)}): pass solo_infer.Video(url) to stream()."
        )
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
    """Return a path or URL in quotes for a message, escaped and cut to a maximum length."""
    return quoted(text, length)
