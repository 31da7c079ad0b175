"""Decode videos, network streams and cameras with PyAV (FFmpeg)."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import stat
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
from PIL import Image

from solo_infer.data.exif import upright
from solo_infer.data.images import LoadedImage
from solo_infer.data.sources import check_source, path_error, shorten
from solo_infer.data.video_sources import STREAM_SCHEMES, Video
from solo_infer.errors import ImageError, OfflineError
from solo_infer.runtime import environment
from solo_infer.runtime.messages import shortened
from solo_infer.runtime.pyav import import_av
from solo_infer.runtime.urls import redact_credentials

logger = logging.getLogger(__name__)

_SCHEMES = ("http", "https", *STREAM_SCHEMES)
# Protocols that a stream may open. Without "file", a playlist of a server cannot name files of this machine.
_NETWORK_PROTOCOLS = "http,https,httpproxy,tls,tcp,udp,rtp,srtp,rtmp,rtmps,srt,crypto,data"
_BT709 = 1  # matrix of the colors, in FFmpeg's numbers
_DEFAULT_RATE = 25.0  # frames per second of a video that has neither time stamps nor a rate
_RETRY_SECONDS = 0.01  # between reads of a camera that has no frame yet
_TOLERANCE = 1.5  # frames that may be missing at the end of a file, whose stated duration is rounded
# EXIF orientations by the signs of a, b, c, d in x' = a x + c y, y' = b x + d y
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


def read_frames(video: Video, frame_stride: int = 1) -> Generator[LoadedImage | None, None, None]:
    """Decode the frames of a video one at a time, upright.

    Args:
        video: Video, stream or camera.
        frame_stride: Number of frames from one returned frame to the next.

    Yields:
        Frames with their index, counted from 0, and their time in seconds from the first frame, which always
        increases; None for a frame that is left out.

    Raises:
        ImageError: PyAV is not installed, the video cannot be opened, has no frame that can be decoded, or
            ends before its stated end: its file is truncated, its connection broke, or it sent nothing for
            ``SOLO_INFER_TIMEOUT`` seconds. All frames before that have been returned.
        OfflineError: It is on the network, and offline mode is on.
    """
    with contextlib.closing(_Reader(video)) as reader:
        for index, frame in enumerate(reader.frames()):
            seconds = reader.seconds(frame)
            if index % frame_stride:
                yield None
            else:
                yield LoadedImage(_pixels(frame, video), video.name, index, seconds)


def count_frames(video: Video, frame_stride: int = 1) -> int | None:
    """Return about how many frames ``read_frames`` returns of a file, None if that is unknown.

    Raises:
        ImageError: The file cannot be opened.
    """
    if video.scheme or video.is_live:
        return None
    with contextlib.closing(_Reader(video)) as reader:
        count = reader.stream.frames or round((reader.stated_duration() or 0.0) * reader.rate)
    return -(-count // frame_stride) or None


def silence_limit(video: Video) -> float | None:
    """Return the seconds of silence after which a video is given up, None for a file."""
    if not video.scheme and not video.is_device:
        return None
    return environment.network_timeout() + 5.0  # PyAV itself reports a silent connection before that


def silence_error(video: Video) -> ImageError:
    """Return the error to raise for a video that was silent for too long."""
    return ImageError(f"{shorten(video.name)} ended. {_silence()}")


class _Reader:
    """Open video with its decoder."""

    def __init__(self, video: Video) -> None:
        self._video, self._name = video, shorten(video.name)
        try:
            self._av = import_av()
        except ImportError as error:
            raise ImageError(f"{self._name} cannot be opened. {error}") from error
        self._container = _open(self._av, video)
        try:
            self.stream = _decodable_stream(self._container, self._name)
            _check_size(self._name, self.stream.codec_context)
            # Decoding several frames at once would lose good frames beside damaged ones, and come later.
            self.stream.thread_type = "SLICE"
        except BaseException:
            self.close()
            raise
        self.rate = float(self.stream.average_rate or self.stream.base_rate or _DEFAULT_RATE)
        self._count = self._damaged = 0
        self._end = 0.0  # of the last packet, in seconds of the stream
        self._last_seconds: float | None = None
        self._offset = 0.0

    def close(self) -> None:
        """Close the video."""
        self._container.close()

    def frames(self) -> Iterator[Any]:
        """Yield the decoded frames; raise ImageError after the last one if the video was not complete."""
        failure: Exception | None = None
        packets = self._packets()
        while failure is None:
            try:
                packet = next(packets, None)
            except (self._av.error.FFmpegError, OSError) as error:
                failure, packet = error, None
            for frame in self._decode(packet):
                self._count += 1
                yield frame
            if packet is None:
                break
        if self._damaged:
            logger.warning("%s: %d damaged packets left out.", self._name, self._damaged)
        if failure is not None:
            raise ImageError(f"{self._summary()} {_reason(self._av, failure)}") from failure
        if not self._count:
            raise ImageError(f"{self._name} has no frame that can be decoded: the file is damaged.")
        self._require_complete()

    def _packets(self) -> Iterator[Any]:
        while True:
            try:
                for packet in self._container.demux(self.stream):
                    if packet.size:
                        yield packet
                return
            except self._av.error.BlockingIOError:  # some cameras have no frame yet
                time.sleep(_RETRY_SECONDS)

    def _decode(self, packet: Any) -> list[Any]:
        """Return the frames of a packet; for None, those that the decoder still holds."""
        if packet is not None and packet.pts is not None:
            duration = float(packet.duration or 0) * float(self.stream.time_base) or 1.0 / self.rate
            self._end = max(self._end, float(packet.pts * self.stream.time_base) + duration)
        try:
            return list(self.stream.codec_context.decode(packet))
        except self._av.error.EOFError:
            return []
        except self._av.error.FFmpegError:
            self._damaged += 1
            return []

    def seconds(self, frame: Any) -> float:
        """Return the time of the next frame, from the first one; time stamps that go back are moved."""
        step = 1.0 / self.rate
        if frame.pts is None:
            value = 0.0 if self._last_seconds is None else self._last_seconds + step
        else:
            stamp = float(frame.pts * self.stream.time_base)
            if self._last_seconds is None:
                self._offset = stamp
            elif stamp - self._offset <= self._last_seconds:
                self._offset = stamp - self._last_seconds - step
            value = self._on_grid(stamp - self._offset)
        self._last_seconds = value
        return value

    def _on_grid(self, seconds: float) -> float:
        """Return the exact time of a frame at a constant rate; some formats round times to milliseconds."""
        tick = float(self.stream.time_base)
        exact = round(seconds * self.rate) / self.rate
        is_rounded = abs(exact - seconds) <= tick < 0.25 / self.rate
        return exact if is_rounded and exact > (self._last_seconds or 0.0) else seconds

    def stated_duration(self) -> float | None:
        """Return the duration in seconds that a file states for the video, None if it states none."""
        if self._container.format.name == "avi" and self.stream.frames:
            return float(self.stream.frames) / self.rate
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        if text := self.stream.metadata.get("DURATION"):
            return _clock_seconds(text)
        if self._container.duration and len(self._container.streams) == 1:
            return float(self._container.duration) / float(self._av.time_base)
        return None

    def _require_complete(self) -> None:
        duration = self.stated_duration()
        if duration is None or self._video.is_live:
            return
        start = float((self.stream.start_time or 0) * self.stream.time_base)
        missing = duration - (self._end - start)
        if missing > _TOLERANCE / self.rate:
            raise ImageError(
                f"{self._summary()} {missing:.2f} s of its {duration:.2f} s are missing: the "
                "file is truncated."
            )

    def _summary(self) -> str:
        frames = f"{self._count} frame{'' if self._count == 1 else 's'}"
        return f"{self._name} ended after {frames} ({self._last_seconds or 0.0:.2f} s)."


def _open(av: Any, video: Video) -> Any:
    """Return the open container of a video."""
    name = shorten(video.name)
    address, input_format, options = _input(av, video, name)
    options.update(video.options)
    timeout = environment.network_timeout() if video.scheme or video.is_device else None
    try:
        return av.open(address, format=video.format or input_format, options=options, timeout=timeout)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if not video.scheme and not video.is_device and isinstance(error, OSError):
            raise path_error(video.address, error, expected="a video file") from error
        hint = _camera_hint() if video.camera is not None or video.is_device else ""
        raise ImageError(f"{name} cannot be opened. {_reason(av, error)}{hint}") from error


def _decodable_stream(container: Any, name: str) -> Any:
    """Return the first video stream of a container that has a decoder."""
    streams = container.streams.video
    if not streams:
        raise ImageError(f"{name} has no video stream: expected a video.")
    for stream in streams:
        if stream.codec_context is not None:
            return stream
    raise ImageError(f"{name} is in a format that PyAV cannot decode: convert it to H.264, or upgrade PyAV.")


def _input(av: Any, video: Video, name: str) -> tuple[str, str | None, dict[str, str]]:
    """Return FFmpeg's address, format (None to detect it) and options of a video."""
    if video.camera is not None:
        return _camera_input(av, video.camera, name)
    if video.is_device:
        return video.address, "v4l2", {}
    if video.scheme:
        if video.scheme not in _SCHEMES and video.format is None:
            raise ImageError(
                f"{name} is of an unknown scheme: expected a path, or one of {'://, '.join(_SCHEMES)}://."
            )
        if environment.is_offline():
            raise OfflineError(
                f"{name} cannot be opened because offline mode is on ({environment.OFFLINE_NAMES} or one of "
                "them is set): pass a local file, or unset the variable."
            )
        options = {"protocol_whitelist": _NETWORK_PROTOCOLS}
        if video.scheme in ("http", "https"):
            options["user_agent"] = environment.USER_AGENT
        if video.scheme == "rtsp":
            options["rtsp_transport"] = "tcp"  # lost packets of UDP would be damaged frames
        return video.address, None, options
    if video.format is not None and not os.path.exists(os.path.expanduser(video.address)):
        return video.address, None, {}  # the name of a device, such as "video=Integrated Camera" of dshow
    mode = check_source(video.address)
    if stat.S_ISFIFO(mode):
        raise ImageError(f"{name} is a pipe: expected a video file.")
    path = os.path.abspath(os.path.expanduser(video.address))
    if os.path.isdir(path):
        raise ImageError(f"{name} is a folder: expected a video file.")
    return f"file:{path}", None, {"protocol_whitelist": "file,crypto,data"}


def _camera_input(av: Any, index: int, name: str) -> tuple[str, str, dict[str, str]]:
    """Return FFmpeg's address, format and options of a camera on this system."""
    if sys.platform == "darwin":
        return f"{index}:none", "avfoundation", {"framerate": "30"}
    if sys.platform != "win32":
        return f"/dev/video{index}", "v4l2", {}
    if not hasattr(av, "enumerate_input_devices"):
        raise ImageError(f"{name}: finding cameras by index needs a newer PyAV: pip install --upgrade av.")
    cameras = [device for device in av.enumerate_input_devices("dshow") if "video" in device.media_types]
    if index >= len(cameras):
        raise ImageError(f"{name} does not exist: this machine has {len(cameras)} cameras.")
    return f"video={cameras[index].name}", "dshow", {}


def _camera_hint() -> str:
    if sys.platform in ("darwin", "win32"):
        return " Check that it is connected and that this program may use cameras."
    found = ", ".join(sorted(glob.glob("/dev/video*"))) or "none"
    return f" Cameras of this machine: {found}. Reading one may need membership in the group 'video'."


def _reason(av: Any, error: Exception) -> str:
    """Return a sentence on why a video could not be opened or ended."""
    if isinstance(error, av.error.ExitError | TimeoutError):
        return _silence()
    if isinstance(error, av.error.InvalidDataError):
        return "It is not a video, or it is damaged or truncated where its index should be."
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"The reason: {shortened(redact_credentials(str(text)), 200)}."


def _silence() -> str:
    return (
        f"It sent nothing for {environment.network_timeout():g} s: check the connection, or set "
        f"{environment.TIMEOUT} to more seconds."
    )


def _check_size(name: str, picture: Any) -> None:
    """Check that a frame is not larger than the pictures that Pillow opens."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > 2 * limit:
        raise ImageError(
            f"{name} has frames of {picture.width}x{picture.height} px, which is suspiciously large. If "
            f"you trust it, raise PIL.Image.MAX_IMAGE_PIXELS (now {limit}) or set it to None."
        )


def _pixels(frame: Any, video: Video) -> np.ndarray:
    """Return the pixels of a frame, (H, W, 3) uint8 RGB, upright."""
    _check_size(shorten(video.name), frame)
    # Older versions of PyAV take BT.709, the matrix of HD, for BT.601 unless the target is named, too.
    is_bt709 = frame.colorspace == _BT709
    color = {"src_colorspace": "ITU709", "dst_colorspace": "DEFAULT"} if is_bt709 else {}
    pixels = frame.reformat(format="rgb24", **color).to_ndarray()
    return np.array(upright(pixels, _orientation(frame)), order="C")


def _orientation(frame: Any) -> int:
    """Return the orientation of a frame as in EXIF (1..8), from the matrix that phones write."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        b = c = 0
    else:
        a = d = 0
    return _ORIENTATIONS.get((_sign(a), _sign(b), _sign(c), _sign(d)), 1)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _clock_seconds(text: str) -> float | None:
    """Return the seconds of a text such as "00:01:02.5", None if it is another one."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds
