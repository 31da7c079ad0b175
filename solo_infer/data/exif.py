"""EXIF orientation of images."""

from __future__ import annotations

import logging
import os

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

logger = logging.getLogger(__name__)

_SWAPPED_SIDES = (5, 6, 7, 8)  # orientations that exchange height and width
_OTHER_METADATA = {
    "xmp",
    "XML:com.adobe.xmp",
    "Raw profile type exif",
}  # Pillow reads an orientation there too


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1..8, or 1 if it has none.

    Only the EXIF block counts, as in OpenCV and browsers. Pillow would also accept an orientation in XMP or
    in a text chunk of a PNG file. A damaged block is logged and ignored.

    Args:
        image: A loaded image. In a PNG file that is not loaded, a block after the pixels makes Pillow decode
            the image.
    """
    try:
        if _OTHER_METADATA & image.info.keys():
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        else:
            exif = image.getexif()
        value = exif.get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # Pillow raises almost anything for damaged EXIF
        logger.warning("EXIF orientation ignored, the block is damaged: %s", error)
        return 1
    return value if value in range(1, 9) else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of pixels (H, W, 3) that undoes an EXIF orientation (1..8)."""
    if orientation in _SWAPPED_SIDES:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def upright_size(source: str | os.PathLike[str] | Image.Image) -> tuple[int, int]:
    """Return the (height, width) in pixels of an image with its EXIF orientation undone, without decoding it.

    The EXIF block of a PNG file counts only if it precedes the pixels.

    Args:
        source: Path of an image file, or an image that Pillow has opened.

    Raises:
        OSError: The file cannot be opened or is not an image (``PIL.UnidentifiedImageError``). Pillow raises
            errors of other types for some damaged files.
    """
    if not isinstance(source, Image.Image):
        with Image.open(source) as image:
            return upright_size(image)
    width, height = source.size
    if isinstance(source, TiffImagePlugin.TiffImageFile):
        # Depending on the version of Pillow, ``size`` is that before or after the orientation is undone.
        value = source.tag_v2.get(ExifTags.Base.Orientation)
        if value is not None:
            width, height = (
                source.tag_v2[tag] for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH)
            )
    elif source.format == "PNG" and "exif" not in source.info:
        value = 1  # Image.getexif() would decode the image to search behind its pixels
    else:
        value = orientation(source)
    return (width, height) if value in _SWAPPED_SIDES else (height, width)
