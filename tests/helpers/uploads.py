"""Encoded images, good and bad."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(file_format="PNG", size=(40, 30), **options):
    """Return an image of random pixels as file content."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_header(width, height):
    """Return a PNG file that states a size and has no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def bomb(side):
    """Return a PNG file of few bytes with many pixels."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def icon_with_large_png():
    """Return an ICO file whose directory states 16 x 16 pixels for a PNG file of 4000 x 4000."""
    png = bomb(4000)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png
