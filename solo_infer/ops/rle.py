"""COCO's run-length encoding (RLE) of masks."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from solo_infer.runtime.messages import quoted

MAX_SIDE = 1_000_000  # pixels
MAX_PIXELS = 2**31 - 1  # of an image; pycocotools counts pixels in 32 bits
_MAX_DIGITS = 7  # characters of a number in compressed RLE


def pycocotools_mask() -> ModuleType:
    """Return the module ``pycocotools.mask``.

    Raises:
        ImportError: It is missing, or does not fit the installed numpy. The latter raises a ``ValueError``,
            which callers would take for an error of their data.
    """
    try:
        from pycocotools import mask
    except ValueError as error:
        raise ImportError(f"pycocotools: {error}") from error
    return mask


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return the compressed RLE {"size": [H, W], "counts": text} of a bool mask (H, W)."""
    encoded = pycocotools_mask().encode(np.asfortranarray(mask, dtype=np.uint8))
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
    return pycocotools_mask().decode(encoded).astype(bool)


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


def check(encoded: dict[str, Any], height: int, width: int) -> tuple[bytes, int]:
    """Return the counts of compressed RLE, safe for pycocotools, and the area in pixels of any RLE.

    Args:
        encoded: RLE with "size" and "counts" (a list or a string), from a file or a client.
        height: Height of the image in pixels, at most ``MAX_SIDE``.
        width: Width of the image in pixels, at most ``MAX_SIDE``; the image has at most ``MAX_PIXELS``.

    Raises:
        ValueError: The RLE is malformed or of another size.
    """
    counts, size = encoded.get("counts"), encoded.get("size")
    if size != [height, width]:
        raise ValueError(f"RLE of size {quoted(size)} for an image of height {height}, width {width}.")
    most_runs = height * width + 2
    if isinstance(counts, str) and counts.isascii():
        if len(counts) > most_runs * _MAX_DIGITS:
            raise ValueError(f"RLE counts of {len(counts)} characters: too long for {height * width} pixels.")
        compressed = counts.encode("ascii")
        runs = run_lengths(compressed)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int} and len(counts) <= most_runs:
        if not 0 <= min(counts, default=0) <= max(counts, default=0) <= height * width:
            raise ValueError(f"RLE counts are not in 0..{height * width}, the number of pixels of the image.")
        compressed, runs = None, np.array(counts, dtype=np.int64)
    else:
        raise ValueError('RLE "counts" are neither a list of integers nor ASCII text.')
    # pycocotools loops forever when it compares masks whose run lengths have different sums.
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"RLE counts do not add up to the {height * width} pixels of the image.")
    if compressed is None or (runs[1:] == 0).any():
        compressed = _compress(runs, height, width)
    return compressed, int(runs[1::2].sum())


def _compress(runs: np.ndarray, height: int, width: int) -> bytes:
    """Return compressed RLE of run lengths, without empty runs, at which pycocotools may stop comparing."""
    mask = pycocotools_mask()
    is_inside = np.arange(runs.size) % 2
    is_inside, runs = is_inside[runs > 0], runs[runs > 0]
    starts = np.flatnonzero(np.diff(is_inside, prepend=-1))
    lengths = np.add.reduceat(runs, starts).tolist()
    rle = {"size": [height, width], "counts": [0, *lengths] if is_inside[0] else lengths}
    return mask.frPyObjects(rle, height, width)["counts"]
