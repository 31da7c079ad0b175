"""Parts of packed masks of a large image, compared and united on bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from solo_infer.inference.tiling import Fragment, Window
from solo_infer.ops.mask_crops import MaskCrop


class Canvas:
    """Packed pixels of a window; its first and last bytes may extend beyond it."""

    def __init__(self, window: Window) -> None:
        self._window, self._left = window, window.left // 8
        columns = (window.right + 7) // 8 - self._left
        self.packed = np.zeros((window.bottom - window.top, columns), np.uint8)

    def draw(self, crop: MaskCrop) -> None:
        """Add a mask."""
        packed = crop.packed.numpy()
        top, left = crop.top - self._window.top, crop.left - self._left
        rows, columns = packed.shape
        target = self.packed[max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)]
        target |= packed[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]

    def fill(self, window: Window) -> None:
        """Add the pixels of another window."""
        part = self._window.intersection(window)
        if part.is_empty:
            return
        bits = np.full((part.right + 7) // 8 - part.left // 8, 0xFF, np.uint8)
        bits[0] &= 0xFF >> part.left % 8
        bits[-1] &= 0xFF << -part.right % 8 & 0xFF
        first = part.left // 8 - self._left
        self.packed[
            part.top - self._window.top : part.bottom - self._window.top, first : first + len(bits)
        ] |= bits


def count_pixels(packed: np.ndarray) -> int:
    """Return the number of pixels inside packed masks."""
    return int.from_bytes(packed.tobytes(), "little").bit_count()


def area_inside(crop: MaskCrop, window: Window) -> int:
    """Return the number of pixels of a mask inside a window."""
    rows, columns = crop.packed.shape
    window = window.intersection(Window(crop.top, 8 * crop.left, crop.top + rows, 8 * (crop.left + columns)))
    if window.is_empty:
        return 0
    mask, inside = Canvas(window), Canvas(window)
    mask.draw(crop)
    inside.fill(window)
    return count_pixels(mask.packed & inside.packed)


def common_area(first: Fragment, second: Fragment) -> int:
    """Return the number of pixels in both masks."""
    window = first.bounds.intersection(second.bounds)
    if window.is_empty:
        return 0
    parts = [
        fragment.crop.packed.numpy()[
            window.top - fragment.crop.top : window.bottom - fragment.crop.top,
            window.left // 8 - fragment.crop.left : (window.right + 7) // 8 - fragment.crop.left,
        ]
        for fragment in (first, second)
    ]
    return count_pixels(parts[0] & parts[1])


def union(crops: Sequence[MaskCrop]) -> MaskCrop:
    """Return the union of masks."""
    if len(crops) == 1:
        return crops[0]
    top, left = min(crop.top for crop in crops), min(crop.left for crop in crops)
    bottom = max(crop.top + crop.packed.shape[0] for crop in crops)
    right = max(crop.left + crop.packed.shape[1] for crop in crops)
    packed = torch.zeros((bottom - top, right - left), dtype=torch.uint8, device="cpu")
    for crop in crops:
        rows, columns = crop.packed.shape
        packed[crop.top - top :, crop.left - left :][:rows, :columns] |= crop.packed
    return MaskCrop(packed, top, left, crops[0].image_size)
