"""COCO's run-length encoding of masks, by pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return the compressed RLE {"size": [H, W], "counts": text} of a bool mask (H, W)."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode(encoded: dict[str, Any]) -> np.ndarray:
    """Return the bool mask (H, W) of a compressed RLE as returned by ``encode``."""
    from pycocotools import mask as coco

    return coco.decode(encoded).astype(bool)
