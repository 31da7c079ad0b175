"""COCO's run-length encoding (RLE) of masks."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return the compressed RLE {"size": [H, W], "counts": text} of a bool mask (H, W)."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def encode_window(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return the compressed RLE of a mask whose pixels are all inside a window; see ``encode``.

    Args:
        mask: (h, w) bool, the window.
        top: First row of the window.
        left: First column of the window.
        size: (height, width) of the full mask in pixels.
    """
    from pycocotools import mask as coco

    height, width = size
    columns = np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1)))  # RLE goes down the columns
    column, row = np.nonzero(np.diff(columns, axis=1))  # runs begin and end, alternately
    edges = (left + column.astype(np.int64)) * height + top + row
    # A run that reaches the bottom continues at the top of the next column.
    same = edges[1:-1:2] == edges[2:-1:2]
    keep = np.ones(len(edges), bool)
    keep[1:-1:2] &= ~same
    keep[2:-1:2] &= ~same
    counts = np.diff(edges[keep], prepend=0, append=height * width)
    if counts[-1] == 0:  # as pycocotools leaves it out
        counts = counts[:-1]
    encoded = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def decode(encoded: dict[str, Any]) -> np.ndarray:
    """Return the bool mask (H, W) of a compressed RLE as returned by ``encode``."""
    from pycocotools import mask as coco

    return coco.decode(encoded).astype(bool)


def run_lengths(counts: bytes) -> np.ndarray:
    """Decode the counts of compressed RLE.

    A number is written in digits of five bits, lowest digit first, one character per digit; the sixth bit of
    a character marks that another digit follows. From the fourth number on, a number is the difference to the
    number two places before it.

    Returns:
        Run lengths (runs,) int64 in pixels, alternately outside and inside the mask.

    Raises:
        ValueError: The counts are damaged.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - ord("0")
    if codes.size == 0 or codes.min() < 0 or codes.max() >= 64 or codes[-1] >= 32:
        raise ValueError("RLE text is damaged or cut off.")
    last_digits = np.flatnonzero(codes < 32)
    first_digits = np.concatenate([[0], last_digits[:-1] + 1])
    digits = np.arange(codes.size) - np.repeat(first_digits, last_digits - first_digits + 1)
    if digits.max() > 6:  # more than 32 bits
        raise ValueError("RLE text is damaged: a number is too large.")
    runs = np.add.reduceat((codes & 31) << (5 * digits), first_digits)
    runs -= np.where(
        codes[last_digits] & 16, np.int64(32) << (5 * digits[last_digits]), 0
    )  # two's complement
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
