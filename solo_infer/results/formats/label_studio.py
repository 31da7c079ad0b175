"""Label Studio: a task with predictions, masks in its own run-length encoding (brush) or as polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from solo_infer.errors import ResultError
from solo_infer.results.formats.polygons import joined, trace
from solo_infer.results.formats.text import require_text
from solo_infer.runtime.messages import quoted

if TYPE_CHECKING:
    from solo_infer.results.result import Result

SHAPES = ("brush", "polygon")
_CHANNELS = 4  # a mask is encoded as the bytes of an RGBA image
_WORD = 8  # bits of a value
_LENGTHS = (3, 4, 8, 16)  # bits of the lengths of runs, one of which each run selects


def to_label_studio(
    result: Result, image: str | None, *, shape: str, from_name: str, to_name: str
) -> dict[str, Any]:
    """Return ``Result.to_label_studio``."""
    if not isinstance(shape, str) or shape not in SHAPES:
        raise ResultError(f"shape={quoted(shape)}: expected one of {', '.join(SHAPES)}.")
    image = require_text("image", result.source if image is None else image)
    from_name, to_name = require_text("from_name", from_name), require_text("to_name", to_name)
    height, width = result.image_size
    regions: list[dict[str, Any]] = []
    for index, instance in enumerate(result.cpu()):
        mask = instance.mask.numpy()
        for part, value in enumerate(_brush(mask) if shape == "brush" else _polygons(mask)):
            regions.append(
                {
                    "id": f"{index}_{part}",
                    "type": f"{shape}labels",
                    "from_name": from_name,
                    "to_name": to_name,
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "score": instance.score,
                    "value": {**value, f"{shape}labels": [instance.name]},
                }
            )
    return {
        "data": {to_name: image},
        "predictions": [
            {
                "model_version": "solo_infer",
                "score": float(result.scores.mean()) if len(result) else 0.0,
                "result": regions,
            }
        ],
    }


def _brush(mask: np.ndarray) -> list[dict[str, Any]]:
    return [{"format": "rle", "rle": encode_brush(mask)}] if mask.any() else []


def _polygons(mask: np.ndarray) -> list[dict[str, Any]]:
    """Return each part as a polygon in percent of the image size; bridges join holes to the outline."""
    height, width = mask.shape
    scale = (100 / width, 100 / height)
    return [{"points": (joined(polygon.rings) * scale).tolist(), "closed": True} for polygon in trace(mask)]


def encode_brush(mask: np.ndarray) -> list[int]:
    """Return the bytes of Label Studio's run-length encoding of a mask (H, W) bool.

    A stream of bits: the number of bytes (32 bits), the size of a value less one (5), the four sizes of
    lengths less one (4 each); and for each run of equal bytes a 1, the number of the size of its length (2),
    its length less one, and its value, 0 or 255.

    Raises:
        ResultError: The mask has 2**30 pixels or more.
    """
    if mask.size * _CHANNELS >> 32:
        raise ResultError(f"A mask of {mask.size} pixels: Label Studio's encoding holds at most 2**30 - 1.")
    pixels = mask.ravel()
    starts = np.flatnonzero(np.diff(pixels, prepend=~pixels[:1]))
    lengths = np.diff(starts, append=pixels.size) * _CHANNELS
    longest = 1 << _LENGTHS[-1]
    pieces = -(-lengths // longest)
    values = np.repeat(np.where(pixels[starts], 255, 0), pieces)
    is_last = np.zeros(values.size, bool)
    is_last[pieces.cumsum() - 1] = True
    lengths = np.where(is_last, np.repeat(lengths - (pieces - 1) * longest, pieces), longest)
    kinds = np.searchsorted(1 << np.array(_LENGTHS), lengths)
    sizes = np.array(_LENGTHS)[kinds]
    codes = ((((1 << 2 | kinds) << sizes) | (lengths - 1)) << _WORD) | values
    header = pixels.size * _CHANNELS << 5 | _WORD - 1
    for size in _LENGTHS:
        header = header << 4 | size - 1
    bits = [
        _bits(np.array([header]), np.array([32 + 5 + 4 * len(_LENGTHS)])),
        _bits(codes, 3 + sizes + _WORD),
    ]
    encoded: list[int] = np.packbits(np.concatenate(bits)).tolist()
    return encoded


def _bits(numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the bits of int64 numbers (N,), the highest first, each number with its own size (N,)."""
    shifts = np.repeat(sizes.cumsum(), sizes) - 1 - np.arange(int(sizes.sum()))
    return (np.repeat(numbers, sizes) >> shifts & 1).astype(np.uint8)
