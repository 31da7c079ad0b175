"""Images that strangers send to a server or a page: common formats, checked before they are decoded."""

from __future__ import annotations

import io

import PIL.Image

from solo_infer.config.validation import require_positive_ints
from solo_infer.data.images import LoadedImage, as_image_error, decode
from solo_infer.errors import ImageError

MAX_BYTES = 20_000_000  # of an encoded image
MAX_PIXELS = 25_000_000
# Pillow reads their sizes without decoding them, unlike those of ICO, and their parts are not larger than the
# image, unlike the tiles of TIFF.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF")
EXPECTED = "expected a JPEG, PNG, WebP, BMP, GIF or AVIF file"


def load_upload(
    content: bytes, *, name: str = "", max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> LoadedImage:
    """Load an encoded image from a source that is not trusted.

    The pixels are those of ``load_image``. The format and the size in the header are checked first, so that
    a small file cannot take much memory or time.

    Args:
        content: Content of the file.
        name: Name of the file, for ``Result.source``.
        max_bytes: Greatest size of the file in bytes.
        max_pixels: Greatest number of pixels, height times width.

    Raises:
        ImageError: The file is larger than a limit, of another format, or damaged.
        ConfigError: A limit is not a positive integer.
    """
    require_positive_ints({"max_bytes": max_bytes, "max_pixels": max_pixels})
    if len(content) > max_bytes:
        raise ImageError(
            f"The image has {len(content)} bytes: expected at most {max_bytes}. Reduce its size."
        )
    if not content:
        raise ImageError(f"The file has 0 bytes: {EXPECTED}.")
    _check_size(content, max_pixels)
    return LoadedImage(decode(io.BytesIO(content), "The image", formats=_known_formats())[0], name)


def _known_formats() -> tuple[str, ...]:
    """Return the formats that this version of Pillow reads."""
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


def _check_size(content: bytes, max_pixels: int) -> None:
    """Raise ``ImageError`` if the header of a file states more pixels, or is not that of an image."""
    expected = f"expected at most {max_pixels}. Reduce its size."
    with as_image_error("The image"):
        try:
            with PIL.Image.open(io.BytesIO(content), formats=_known_formats()) as image:
                width, height = image.size
        except PIL.UnidentifiedImageError as error:
            raise ImageError(f"The file is not an image of a supported format: {EXPECTED}.") from error
        except PIL.Image.DecompressionBombError as error:
            raise ImageError(f"The image has more pixels than Pillow allows: {expected}") from error
    if width * height > max_pixels:
        raise ImageError(f"The image has {width} x {height} pixels: {expected}")
