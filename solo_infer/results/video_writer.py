"""Writer of drawn videos: the frames of a video with their instances, encoded with PyAV (FFmpeg)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from solo_infer.errors import ImageError, ResultError
from solo_infer.results.caption_text import require_font
from solo_infer.results.drawing import draw_instances
from solo_infer.results.result import Result, as_fraction
from solo_infer.runtime.atomic_files import StagedFile
from solo_infer.runtime.messages import quoted, shortened
from solo_infer.runtime.output_files import refuse_overwriting, require_writable
from solo_infer.runtime.pyav import INSTALL, import_av

logger = logging.getLogger(__name__)

VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # by suffix
# Encoders from the best one, with the ticks per second of their time stamps: frame durations of all usual
# rates, also 24000/1001, are whole numbers of 1/120000 s. MPEG-4 allows no more than 65,535.
_ENCODERS = {"libx264": 120_000, "libopenh264": 120_000, "mpeg4": 60_000}
_OPTIONS = {"libx264": {"crf": "20", "preset": "veryfast"}}
_BITS_PER_PIXEL = 6  # per second, for encoders without a constant quality
_MARK = "solo_infer"  # "comment" of drawn videos


class VideoWriter:
    """Context manager that writes a video of results with their instances drawn.

    Frames keep their times, so that the video has the frame rate of its source, be it constant or variable.
    Sound is not written. The format is H.264, or MPEG-4 where PyAV has no encoder for H.264. Sides of an odd
    length are padded by a pixel; frames of another size than the first one are scaled into it.

    The video is written to a temporary file in the same folder, which is renamed when it is complete. It is
    completed with the frames so far on ctrl-C and when the source ends with an ``ImageError``; on another
    error, or without a frame, it is removed.

    Args:
        path: Path of the file, ending in one of ``VIDEO_FORMATS``.
        min_score: Lowest score to draw, 0..1. Defaults to 0.3.
        boxes: Whether to draw boxes.
        font: Font file for the captions. Defaults to a font of the system that has the characters.
        frame_rate: Frames per second of results without a time, such as those of photos. Defaults to 25.

    Raises:
        ResultError: An argument is invalid.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        min_score: float = 0.3,
        boxes: bool = False,
        font: str | os.PathLike[str] | None = None,
        frame_rate: float = 25.0,
    ) -> None:
        self.path = Path(os.path.expanduser(path))
        if self.path.suffix.lower() not in VIDEO_FORMATS:
            raise ResultError(
                f"{quoted(self.path, 200)} is not the name of a video: expected one that ends in "
                f"{', '.join(VIDEO_FORMATS)}."
            )
        if not 0.001 <= frame_rate <= 1000.0:
            raise ResultError(f"frame_rate={quoted(frame_rate)}: expected a number in 0.001..1000.")
        self.min_score, self.boxes, self.font = as_fraction("min_score", min_score), boxes, font
        self._frame_rate = Fraction(frame_rate).limit_denominator(1001)
        self._size = (0, 0)
        self._offset = self._last_stamp = self._gap = 0  # in ticks
        self._last_source = ""
        self._durations: dict[int, int] = {}  # in ticks, by time stamp
        self._container: Any = None
        self._held: Any = None  # last frame, which is encoded when its duration is known

    def __enter__(self) -> VideoWriter:
        """Check that the video can be written, and create its temporary file.

        Raises:
            ResultError: PyAV or an encoder is missing, or the file or the font cannot be used.
        """
        try:
            self._av = import_av()
        except ImportError as error:
            raise ResultError(f"{quoted(self.path, 200)} cannot be written. {error}") from error
        self._encoder = _encoder(self._av)
        self._ticks = _ENCODERS[self._encoder]
        if self.font is not None:
            require_font(self.font)
        require_writable("The video", self.path, create_folder=True)
        with self._as_result_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._staged = StagedFile(self.path)
        return self

    def add(self, result: Result) -> None:
        """Append a frame.

        Raises:
            ResultError: The file cannot be written or is the segmented video itself, or the result has no
                image.
        """
        if result.source and "://" not in result.source:
            refuse_overwriting({"The video": self.path}, {"the segmented video": [result.source]})
        image = self._fitted(self._draw(result))
        with self._as_result_error():
            frame = self._av.VideoFrame.from_image(image).reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = self._next_stamp(result), Fraction(1, self._ticks)
            held, self._held = self._held, frame
            if held is not None:
                self._encode(held)

    def _draw(self, result: Result) -> Image.Image:
        """Return the drawing of a result; a class has the same color in all frames."""
        if result.image is None:
            raise ResultError("The result has no image to draw on.")
        drawn = result.filter(self.min_score).cpu()
        return draw_instances(
            result.image,
            masks=(instance.mask.numpy() for instance in drawn),
            boxes=drawn.boxes.numpy(),
            names=drawn.names,
            scores=drawn.scores.numpy(),
            boxes_visible=self.boxes,
            font=self.font,
            colors=drawn.labels.tolist(),
        )

    def _fitted(self, drawing: Image.Image) -> Image.Image:
        """Return a drawing at the size of the video, which is that of its first frame."""
        right, bottom = (side % 2 for side in drawing.size)
        even = (drawing.width + right, drawing.height + bottom)
        self._size = self._size if self._held is not None else even
        if even != self._size:
            return ImageOps.pad(drawing, self._size)
        if not right and not bottom:
            return drawing
        return Image.fromarray(np.pad(np.asarray(drawing), ((0, bottom), (0, right), (0, 0)), mode="edge"))

    def _start(self) -> None:
        """Open the file and the encoder; the rate is known from the first two frames."""
        format_name = VIDEO_FORMATS[self.path.suffix.lower()]
        rate = Fraction(self._ticks, self._gap).limit_denominator(1001) if self._gap else self._frame_rate
        self._container = self._av.open(f"file:{os.path.abspath(self._staged.path)}", "w", format=format_name)
        self._container.metadata["comment"] = _MARK
        self._stream = self._container.add_stream(self._encoder, rate=rate)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = dict(_OPTIONS.get(self._encoder, {}))
        codec = self._stream.codec_context
        codec.time_base = self._stream.time_base = Fraction(1, self._ticks)
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709, as players expect of HD
        codec.color_range = 1  # 16..235
        if self._encoder not in _OPTIONS:
            codec.bit_rate = max(1_000_000, _BITS_PER_PIXEL * codec.width * codec.height)

    def _next_stamp(self, result: Result) -> int:
        """Return the time stamp of the next frame in ticks, after those of all frames before."""
        time = None if result.frame_time is None else round(result.frame_time * self._ticks)
        stamp = self._last_stamp + self._step() if self._held is not None else 0
        if time is not None:
            is_next = self._held is not None and result.source == self._last_source
            if is_next and time + self._offset > self._last_stamp:
                stamp = time + self._offset
            self._offset = stamp - time  # changes at the start of another video only
        if self._held is not None:
            self._gap = stamp - self._last_stamp
        self._last_stamp, self._last_source = stamp, result.source
        return stamp

    def _step(self) -> int:
        """Return the duration of a frame whose successor is unknown, in ticks."""
        return self._gap or max(1, round(self._ticks / self._frame_rate))

    def _encode(self, frame: Any) -> None:
        if self._container is None:
            self._start()
        self._durations[frame.pts] = self._step()
        self._mux(self._stream.encode(frame))

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)

    def _finish(self) -> None:
        """Write the frames that are still held, and the index of the file."""
        self._encode(self._held)
        self._mux(self._stream.encode(None))
        self._container.close()
        self._staged.commit()

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_kept = error_type is None or issubclass(error_type, KeyboardInterrupt | ImageError)
        try:
            if is_kept and self._held is not None:
                with self._as_result_error():
                    self._finish()
            elif self._container is not None:
                # The index of a file that is removed need not be written.
                with contextlib.suppress(self._av.error.FFmpegError, OSError):
                    self._container.close()
        finally:
            self._staged.discard()

    @contextlib.contextmanager
    def _as_result_error(self) -> Iterator[None]:
        try:
            yield
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise ResultError(
                f"{quoted(self.path, 200)} cannot be written: {shortened(error)}. Choose another file."
            ) from error


def _encoder(av: Any) -> str:
    """Return the name of the best encoder that this build of PyAV has."""
    for name in _ENCODERS:
        try:
            av.Codec(name, "w")
        except (ValueError, LookupError, av.error.FFmpegError) as error:
            logger.debug("no encoder %s: %s", name, error)
        else:
            return name
    raise ResultError(f"PyAV has none of the encoders {', '.join(_ENCODERS)}: reinstall it with {INSTALL}.")


def is_own_video(path: str | os.PathLike[str]) -> bool:
    """Return whether ``VideoWriter`` wrote a file."""
    if Path(path).suffix.lower() not in VIDEO_FORMATS:
        return False
    try:
        with import_av().open(f"file:{os.path.abspath(path)}") as container:
            return any(
                key.lower() == "comment" and value == _MARK for key, value in container.metadata.items()
            )
    except (ImportError, OSError, ValueError) as error:
        logger.debug("%s: not read as a drawn video: %s", path, error)
        return False
