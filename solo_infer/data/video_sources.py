"""Names of videos, network streams and cameras. Imports neither PyAV nor anything heavy."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from solo_infer.errors import ImageError
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.urls import redact_credentials

VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv .y4m".split()
)
_PLAYLIST_SUFFIXES = frozenset((".m3u8", ".mpd"))
_MJPEG_SUFFIXES = frozenset((".mjpeg", ".mjpg"))
_URL_SUFFIXES = VIDEO_SUFFIXES | _PLAYLIST_SUFFIXES | _MJPEG_SUFFIXES
_HTTP_SCHEMES = ("http", "https")
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp")
CAMERA_SCHEME = "camera"  # "camera://0" is the name of the camera 0
_CAMERA = re.compile(rf"{CAMERA_SCHEME}://(\d{{1,9}})")
_CAMERA_DEVICE = re.compile(r"/dev/video\d{1,9}")


@dataclass(frozen=True, eq=False)
class Video:
    """Source of frames: a video file, a network stream or a camera.

    ``stream`` recognizes most videos by their names. This class is for addresses that do not look like a
    video, and for settings.

    Attributes:
        source: Path, URL (http, https, rtsp, rtmp, rtp, srt, udp), or index of a camera from 0.
        live: Whether frames that come while others are processed are dropped, so that the newest one is next.
            Defaults to True for cameras and for streams other than HTTP, which cannot wait; MJPEG addresses
            ending in .mjpg or .mjpeg count as cameras.
        format: Name of FFmpeg's input format, e.g. "mpjpeg", "v4l2" or "dshow". Defaults to the detected one.
        options: Options of FFmpeg, e.g. ``{"video_size": "1280x720"}`` or ``{"rtsp_transport": "udp"}``.

    Raises:
        ImageError: An attribute has the wrong type.
    """

    source: str | os.PathLike[str] | int
    live: bool | None = None
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        is_index = isinstance(self.source, int) and not isinstance(self.source, bool) and self.source >= 0
        if not is_index and not isinstance(self.source, str | os.PathLike):
            raise ImageError(
                f"{quoted(self.source)} is not a video: expected a path, a URL or the index of a camera "
                "(0, 1, ...)."
            )
        if self.format is not None and not isinstance(self.format, str):
            raise ImageError(f"format={quoted(self.format)}: expected the name of a format of FFmpeg.")
        if self.live is not None and not isinstance(self.live, bool):
            raise ImageError(f"live={quoted(self.live)}: expected True, False or None.")
        if not isinstance(self.options, Mapping) or not all(
            isinstance(item, str) for pair in self.options.items() for item in pair
        ):
            raise ImageError(f"options={quoted(self.options)}: expected texts by name.")

    @property
    def camera(self) -> int | None:
        """Index of the camera, None for other videos."""
        if isinstance(self.source, int):
            return self.source
        match = _CAMERA.fullmatch(self._text)
        return int(match[1]) if match else None

    @property
    def scheme(self) -> str:
        """Scheme of a URL in lower case, "" for a path."""
        return _scheme(self._text)

    @property
    def name(self) -> str:
        """Path or URL without credentials; "camera://0" for the camera 0."""
        return redact_credentials(self._text) if self.scheme else self._text

    @property
    def is_live(self) -> bool:
        """Whether the newest frame is the next one; see ``live``."""
        if self.live is not None:
            return self.live
        if self.scheme in _HTTP_SCHEMES:
            return _suffix(self._text) in _MJPEG_SUFFIXES
        return self.scheme in (*STREAM_SCHEMES, CAMERA_SCHEME) or self.is_device

    @property
    def is_device(self) -> bool:
        """Whether the source is the path of a camera on Linux, such as "/dev/video0"."""
        return _CAMERA_DEVICE.fullmatch(self._text) is not None

    @property
    def address(self) -> str:
        """Path or URL as passed."""
        return self._text

    @property
    def _text(self) -> str:
        return (
            f"{CAMERA_SCHEME}://{self.source}" if isinstance(self.source, int) else os.fsdecode(self.source)
        )


def is_stream_name(text: str) -> bool:
    """Return whether a text is the name of a camera or the URL of a stream that is not HTTP."""
    return (
        _scheme(text) in STREAM_SCHEMES
        or _CAMERA.fullmatch(text) is not None
        or _CAMERA_DEVICE.fullmatch(text) is not None
    )


def as_video(source: Any) -> Video | None:
    """Return a source as a video, None if it is not one by its type and name.

    Videos are ``Video`` objects, indices of cameras, paths with one of ``VIDEO_SUFFIXES``, URLs of such
    files, of playlists and of MJPEG streams, and URLs with one of ``STREAM_SCHEMES``.
    """
    if isinstance(source, Video):
        return source
    if isinstance(source, int) and not isinstance(source, bool):
        return Video(source)
    if not isinstance(source, str | os.PathLike):
        return None
    try:
        text = os.fsdecode(source)
    except (TypeError, ValueError):  # an object that claims to be a path; loading it raises the error
        return None
    suffixes = _URL_SUFFIXES if _scheme(text) in _HTTP_SCHEMES else VIDEO_SUFFIXES
    return Video(text) if is_stream_name(text) or _suffix(text) in suffixes else None


def is_video(source: Any) -> bool:
    """Return whether a source is a video; see ``as_video``."""
    return as_video(source) is not None


def _scheme(text: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    return match[1].lower() if match else ""


def _suffix(text: str) -> str:
    """Return the suffix of a path, or of the path of a URL, in lower case."""
    if _scheme(text):
        try:
            text = urlsplit(text).path
        except ValueError:
            return ""
    return os.path.splitext(text)[1].lower()
