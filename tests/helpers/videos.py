"""Short videos, made with PyAV. Each frame has a brightness of its own."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from solo_infer.data.prefetch import prefetch_images
from solo_infer.errors import ImageError

STEP = 8  # of the brightness from one frame to the next
START = 16
MATRICES = {  # EXIF orientation to a, b, c, d of x' = a x + c y, y' = b x + d y
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def frame_pixels(index, size=(64, 48)):
    """Return a gray frame, (H, W, 3) uint8; its lower half is noise, which makes the file larger."""
    pixels = np.full((size[1], size[0], 3), START + STEP * (index % 28), np.uint8)
    pixels[size[1] // 2 :] = np.random.default_rng(index).integers(
        0, 256, (size[1] // 2, size[0], 1), np.uint8
    )
    return pixels


def frame_numbers(frames):
    """Return the numbers of frames, which their brightness shows."""
    return [round((float(pixels[:8].mean()) - START) / STEP) for pixels in frames]


def make_clip(path, count=20, *, size=(64, 48), rate=25, codec="libx264", times=None, frames=None, **options):
    """Write a video and return its path.

    Args:
        path: Path of the file; its suffix selects the format.
        count: Number of frames.
        size: (width, height) in pixels.
        rate: Frames per second.
        codec: Name of the encoder.
        times: Seconds of the frames, for a variable rate.
        frames: Pixels of the frames. Defaults to those of ``frame_pixels``.
        options: Options of the format, such as ``movflags``.
    """
    import av

    path = Path(path)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 5
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if frames is None:
            frames = [frame_pixels(index, size) for index in range(count if times is None else len(times))]
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotate(path, orientation):
    """Write an orientation into the header of an MP4 file, as phones do."""
    a, b, c, d = (value << 16 for value in MATRICES[orientation])
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def cut(path, share=0.6):
    """Remove the end of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def frames_of(source, **options):
    return [image for image, _ in prefetch_images(source, "rgb", None, **options)]


def numbers(frames):
    return frame_numbers(frame.pixels for frame in frames)


def read_until_error(source):
    """Return the frames of a video and the error that it ends with."""
    frames = []
    with pytest.raises(ImageError) as error:
        for image, _ in prefetch_images(source, "rgb", None):
            frames.append(image)
    return frames, str(error.value)
