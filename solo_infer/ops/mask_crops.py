"""Packed masks of a large image, each stored as the window that holds its pixels.

A thousand full-size masks of 10,000 x 10,000 pixels take 12 GiB even when they are packed. Windows take the
memory of the instances, not of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_infer.ops import packed_masks, rle

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True, eq=False)
class MaskCrop:
    """One packed mask inside a window; all pixels outside of the window are 0.

    Attributes:
        packed: (h, b) uint8, rows of the window, see ``packed_masks``.
        top: First row of the window in pixels of the image.
        left: First byte of the window in a packed row of the image.
        image_size: (height, width) of the image in pixels.
    """

    packed: Tensor
    top: int
    left: int
    image_size: Size

    def clone(self) -> MaskCrop:
        """Return a copy that shares no memory."""
        return replace(self, packed=self.packed.clone())

    def window(self) -> tuple[Tensor, int, int]:
        """Return the mask of the window (h, w), bool, and its top and left edge in pixels of the image."""
        width = min(8 * self.packed.shape[1], max(self.image_size[1] - 8 * self.left, 0))
        return packed_masks.unpack(self.packed, width), self.top, 8 * self.left

    def mask(self) -> Tensor:
        """Return the full-size mask (H, W), bool."""
        inside, top, left = self.window()
        # numpy's zeros take physical memory only where they are written.
        full = torch.from_numpy(np.zeros(self.image_size, np.bool_)).to(self.packed.device)
        full[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return full

    def full(self) -> Tensor:
        """Return the full-size packed mask (H, ceil(W / 8)) uint8."""
        height, width = self.image_size
        full = self.packed.new_zeros((height, (width + 7) // 8))
        rows, columns = self.packed.shape
        full[self.top : self.top + rows, self.left : self.left + columns] = self.packed
        return full


@dataclass(frozen=True, eq=False)
class MaskCrops:
    """The packed masks of the instances of one image, each stored as a window.

    Attributes:
        data: (bytes,) uint8, the windows of all instances one after the other.
        windows: (N, 4) int64 in host memory: first row, first byte in a row, rows and bytes of each window.
        image_size: (height, width) of the image in pixels.
    """

    data: Tensor
    windows: np.ndarray
    image_size: Size

    @classmethod
    def join(cls, crops: Sequence[MaskCrop], image_size: Size, device: torch.device) -> MaskCrops:
        """Return the masks of several instances on a device."""
        windows = [(crop.top, crop.left, *crop.packed.shape) for crop in crops]
        empty = torch.zeros(0, dtype=torch.uint8, device=device)
        data = torch.cat([empty, *(crop.packed.flatten().to(device) for crop in crops)])
        return cls(data, np.array(windows, np.int64).reshape(-1, 4), image_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (N, H, ceil(W / 8)) of ``full``."""
        height, width = self.image_size
        return len(self), height, (width + 7) // 8

    @property
    def device(self) -> torch.device:
        """Device of the masks."""
        return self.data.device

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[MaskCrop]:
        start = 0
        for top, left, rows, columns in self.windows.tolist():
            packed = self.data[start : start + rows * columns].view(rows, columns)
            start += rows * columns
            yield MaskCrop(packed, top, left, self.image_size)

    def __getitem__(self, index: Tensor) -> MaskCrops:
        """Return copies of the masks of an index (K,), int64 or bool."""
        selected = np.arange(len(self))[index.cpu().numpy()]
        crops = list(self)
        return MaskCrops.join([crops[number] for number in selected.tolist()], self.image_size, self.device)

    def to(self, device: torch.device) -> MaskCrops:
        """Return the masks on a device."""
        return replace(self, data=self.data.to(device))

    def full(self) -> Tensor:
        """Return the full-size packed masks (N, H, ceil(W / 8)) uint8."""
        full = self.data.new_zeros(self.shape)
        for index, crop in enumerate(self):
            full[index] = crop.full()
        return full

    def masks(self) -> Tensor:
        """Return the full-size masks (N, H, W), bool."""
        masks = torch.zeros((len(self), *self.image_size), dtype=torch.bool, device=self.device)
        for index, crop in enumerate(self):
            inside, top, left = crop.window()
            masks[index, top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return masks


def unpack(masks: Tensor | MaskCrop | MaskCrops, width: int) -> Tensor:
    """Return packed masks as full-size masks (..., H, W), bool.

    Args:
        masks: Packed masks, full-size or windows.
        width: Width of the image in pixels.
    """
    if isinstance(masks, MaskCrop):
        return masks.mask()
    return masks.masks() if isinstance(masks, MaskCrops) else packed_masks.unpack(masks, width)


def encode_rle(mask: Tensor | MaskCrop, width: int) -> dict[str, Any]:
    """Return a packed mask of an image of a width in pixels as compressed RLE; see ``rle.encode``."""
    if isinstance(mask, MaskCrop):
        inside, top, left = mask.window()
        return rle.encode_window(inside.cpu().numpy(), top, left, mask.image_size)
    return rle.encode(packed_masks.unpack(mask, width).cpu().numpy())
