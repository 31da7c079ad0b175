"""Decode an image from any source to RGB pixels.

Encoded images decode as with OpenCV's ``imread`` and ``IMREAD_COLOR``, with which the published models were
trained and evaluated: EXIF orientation is applied, alpha is dropped (not blended), gray is repeated, and
16-bit gray is reduced to its high byte. Floats are 0..1 in files as in arrays. All types of sources give
identical pixels for the same image.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeAlias

import numpy as np
import PIL.Image
import torch
from PIL import Image

from solo_infer.data.exif import orientation, upright, upright_size
from solo_infer.data.jpeg import end_variants
from solo_infer.data.pipes import STDIN, read_pipe, read_stdin
from solo_infer.data.remote_files import is_remote, read_remote
from solo_infer.data.sources import (
    ACCEPTED_SOURCES,
    ENCODED_TYPES,
    ImageSource,
    check_source,
    fetch_url,
    is_url,
    path_error,
    path_text,
    shorten,
    video_error,
)
from solo_infer.data.video_sources import is_video
from solo_infer.errors import ImageError
from solo_infer.runtime.messages import escaped, first_line, quoted

Color: TypeAlias = Literal["rgb", "bgr"]

_TENSOR_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, 0..255, C-contiguous and writable. Shares no memory with the source.
        name: Path or URL as passed, or "" for an image in memory.
        frame_index: Position among the frames of a video, from 0; None for an image.
        frame_time: Seconds from the first frame of a video, None for an image.
    """

    pixels: np.ndarray
    name: str
    frame_index: int | None = None
    frame_time: float | None = None


def load_image(source: ImageSource, *, color: Color = "rgb") -> LoadedImage:
    """Load one image from any source.

    A file with several frames gives its first frame, a PIL image its current frame. In files and PIL images,
    floats are 0..1 (mode F) as in arrays, 32-bit integers are 0..255 (mode I), and 16-bit gray is 0..65535,
    of which the high byte counts. Pipes are read to memory; "/dev/stdin" is standard input.

    Args:
        source: A path (``~`` is expanded), an http(s) URL, a URI that fsspec reads (s3://, gs://, ...; it
            needs that file system's package), the bytes of an encoded file, a PIL image of any mode (not
            modified), a numpy array (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), or a torch tensor
            (3, H, W), (4, H, W), (1, H, W) or (H, W) on any device. Arrays and tensors are uint8 0..255 or
            float 0..1, which is rounded to uint8.
        color: Channel order of arrays and tensors, "rgb" or "bgr"; a fourth channel is dropped. Ignored for
            other sources. Defaults to "rgb".

    Raises:
        ImageError: The source cannot be found, fetched or decoded, or its type or layout is not supported.
        OfflineError: The source is on the network and offline mode is on.
    """
    if not isinstance(color, str) or color not in ("rgb", "bgr"):
        raise ImageError(f'color={quoted(color)}: expected "rgb" or "bgr".')
    if is_video(source) and not isinstance(source, int):
        raise video_error(source)
    if isinstance(source, str) and is_url(source):
        return LoadedImage(_from_url(source), source)
    if isinstance(source, str) and is_remote(source):
        return LoadedImage(decode(io.BytesIO(read_remote(source)), shorten(source))[0], source)
    if isinstance(source, str | os.PathLike):
        return LoadedImage(_from_path(source)[0], path_text(source))
    if isinstance(source, ENCODED_TYPES):
        return LoadedImage(decode(io.BytesIO(bytes(source)), "Encoded image in memory")[0], "")
    if isinstance(source, Image.Image):
        with as_image_error(f"PIL image (mode {source.mode}, {source.width}x{source.height} px)"):
            return LoadedImage(_from_pil(source), "")
    if isinstance(source, np.ndarray):
        return LoadedImage(_from_array(source, color), "")
    if isinstance(source, torch.Tensor):
        return LoadedImage(_from_tensor(source, color), "")
    raise ImageError(f"Unknown image source of type {type(source).__name__}: expected {ACCEPTED_SOURCES}.")


def load_reduced(path: str, scale: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Load an image file that is needed at a smaller size only; a JPEG file is then decoded faster.

    Args:
        path: Path of the file.
        scale: Scale in 0..1 at which the image is needed.

    Returns:
        (H, W, 3) uint8 RGB as of ``load_image``, in JPEG files at 1/2, 1/4 or 1/8 of the size if that is at
        least ``scale``; and the full (height, width) in pixels, upright.

    Raises:
        ImageError: As for ``load_image``.
    """
    return _from_path(path, scale)


def _from_path(source: str | os.PathLike[str], scale: float = 1.0) -> tuple[np.ndarray, tuple[int, int]]:
    text = path_text(source)
    name = shorten(text)
    if text == STDIN:
        return decode(io.BytesIO(read_stdin()), name, scale)
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        raise ImageError(f"{name} is a folder: load_image() takes one image. Pass the folder to stream().")
    mode = check_source(source)
    try:
        if stat.S_ISFIFO(mode):
            return decode(io.BytesIO(read_pipe(path, name)), name, scale)
        file = open(path, "rb")
    except OSError as error:
        raise path_error(text, error) from error
    with file:
        return decode(file, name, scale)


def _from_url(url: str) -> np.ndarray:
    content, content_type = fetch_url(url)
    return decode(io.BytesIO(content), f"{shorten(url)} (sent as {content_type!r})")[0]


def decode(
    file: BinaryIO, name: str, scale: float = 1.0, formats: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode the first frame of an encoded image; see ``load_reduced``.

    Args:
        file: Seekable file, at its start.
        name: Name of the image for messages.
        scale: Scale in 0..1 at which the image is needed.
        formats: Pillow's names of the formats to try. Defaults to all.
    """
    with as_image_error(name):
        if not file.read(1):
            raise ImageError(f"{name} has 0 bytes: expected an encoded image (JPEG, PNG, ...).")
        file.seek(0)
        with Image.open(file, formats=formats) as image:
            if (
                image.format == "EPS"
            ):  # Pillow would run Ghostscript, which an image file must not be able to do
                raise ImageError(f"{name} is a PostScript file: convert it to PNG or JPEG first.")
            size = upright_size(image) if image.format == "JPEG" and scale < 1.0 else None
            pixels = _decode_jpeg(image, file, scale) if image.format == "JPEG" else _from_pil(image)
    return pixels, size or (pixels.shape[0], pixels.shape[1])


def _decode_jpeg(image: Image.Image, file: BinaryIO, scale: float) -> np.ndarray:
    """Decode a JPEG file that Pillow has opened, also one that lacks only its end marker."""
    try:
        return _decode_drafted(image, scale)
    except OSError:
        file.seek(0)
        variants = end_variants(file.read())
        if not variants:
            raise
        first, *others = (_decode_drafted(Image.open(io.BytesIO(data)), scale) for data in variants)
        if not all(np.array_equal(first, other) for other in others):
            raise
        return first


def _decode_drafted(image: Image.Image, scale: float) -> np.ndarray:
    if scale < 1.0:
        image.draft("RGB", (int(image.width * scale) + 1, int(image.height * scale) + 1))
    return _from_pil(image)


@contextlib.contextmanager
def as_image_error(name: str) -> Iterator[None]:
    """Convert the errors that Pillow raises while it opens and decodes an image to ``ImageError``."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} is suspiciously large: {error} If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS "
            f"(now {Image.MAX_IMAGE_PIXELS}) or set it to None."
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image, or its format is not supported by this version of Pillow: expected "
            "JPEG, PNG, ..."
        ) from error
    except MemoryError as error:
        raise ImageError(f"{name} needs more memory to decode than there is: reduce its size.") from error
    except Exception as error:  # Pillow's plugins raise almost anything for damaged files
        reason = escaped(str(error) or type(error).__name__)[:200]
        raise ImageError(f"{name} is damaged, truncated or not decodable ({reason}).") from error


def _from_pil(image: Image.Image) -> np.ndarray:
    """Convert a PIL image to upright RGB pixels without modifying it."""
    image.load()  # size, mode and info are final only after loading
    if 0 in image.size:
        raise ImageError(f"PIL image of {image.width}x{image.height} px: expected at least one pixel.")
    return np.ascontiguousarray(upright(_pil_to_rgb(image), orientation(image)))


def _pil_to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a PIL image to a new (H, W, 3) uint8 array, without applying its orientation."""
    # Some versions of Pillow open 16-bit gray PNG and PGM files as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _repeat_gray(np.asarray(image) >> 8)
    if image.mode == "F":
        return _from_channels_last(np.asarray(image), "rgb", "PIL image of mode F (32-bit floats)")
    if image.mode == "I":
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 255:
            raise ImageError(
                f"PIL image of mode I (32-bit integers): values range from {low} to {high}, expected 0..255. "
                "Scale it to 8 bits, or save it as 16-bit gray."
            )
        return _repeat_gray(values)
    if image.mode in ("P", "PA") or "transparency" in image.info:
        # With its transparency, the conversion would warn or modify the caller's palette.
        image = image.copy()
        image.info.pop("transparency", None)
    unpremultiplied = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    if unpremultiplied:
        image = image.convert(unpremultiplied)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _repeat_gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def _from_array(array: np.ndarray, color: Color) -> np.ndarray:
    name = f"Numpy array of shape {array.shape} and dtype {quoted(array.dtype)}"
    if np.ma.is_masked(array):
        raise ImageError(f"{name} has masked pixels: expected values everywhere, e.g. array.filled(0).")
    expected = "expected (H, W, 3), (H, W, 4), (H, W, 1) or (H, W)"
    if array.ndim == 4:
        raise ImageError(f"{name} looks like a batch: pass a list of images, list(batch).")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise ImageError(f"{name} looks like (C, H, W): {expected}. Transpose it: array.transpose(1, 2, 0).")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name}: {expected}.")
    return _from_channels_last(np.asarray(array), color, name)


def _from_tensor(tensor: torch.Tensor, color: Color) -> np.ndarray:
    if tensor.is_nested:
        raise ImageError("A nested tensor is not an image: pass a list of images, list(tensor.unbind()).")
    shape = tuple(tensor.shape)
    name = f"Tensor of shape {shape} and dtype {tensor.dtype}"
    expected = "expected (3, H, W), (4, H, W), (1, H, W) or (H, W)"
    if tensor.ndim == 4:
        raise ImageError(f"{name} looks like a batch: pass a list of images, list(batch).")
    if tensor.ndim == 3 and shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4):
        raise ImageError(f"{name} looks like (H, W, C): {expected}. Permute it: tensor.permute(2, 0, 1).")
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and shape[0] not in (1, 3, 4)):
        raise ImageError(f"{name}: {expected}.")
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        raise ImageError(f"{name} has no accessible pixels: expected a dense tensor with data.")
    if tensor.dtype not in _TENSOR_DTYPES:
        raise ImageError(f"{name}: expected uint8 0..255 or float 0..1.")
    try:
        values = tensor.detach().cpu().resolve_neg()
        array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # numpy lacks bfloat16
    except (RuntimeError, TypeError) as error:  # a tensor without memory of its own, e.g. inside torch.vmap
        raise ImageError(f"{name} has no accessible pixels ({first_line(error)}).") from error
    return _from_channels_last(array.transpose(1, 2, 0) if array.ndim == 3 else array, color, name)


def _from_channels_last(array: np.ndarray, color: Color, name: str) -> np.ndarray:
    """Return new RGB pixels of an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
    if array.size == 0:
        raise ImageError(f"{name} is empty: expected at least one pixel.")
    if array.ndim == 2:
        array = array[:, :, None]
    channels = array[:, :, :3]
    values = _to_uint8(channels[:, :, ::-1] if color == "bgr" else channels, name)
    return np.array(np.broadcast_to(values, (*values.shape[:2], 3)), order="C")


def _to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    """Convert floats 0..1 to uint8 0..255, rounding; return uint8 unchanged."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f" or values.dtype.itemsize not in (2, 4, 8):
        raise ImageError(f"{name}: expected uint8 0..255, or float 0..1. Convert it, e.g. astype(np.uint8).")
    low, high = float(values.min()), float(values.max())
    if not (low >= -_FLOAT_TOLERANCE and high <= 1 + _FLOAT_TOLERANCE):  # also true for NaN
        raise ImageError(
            f"{name}: values range from {low:g} to {high:g}, expected floats in 0..1 without NaN. Cast "
            "values of 0..255 to uint8, undo the normalization, or clip."
        )
    return (values.clip(0, 1).astype(np.float32) * 255 + 0.5).astype(np.uint8)
