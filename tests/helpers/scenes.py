"""Made scenes of objects with known masks, and the instances that an exact model finds in their tiles."""

import numpy as np
import torch

from solo_infer.inference.detections import Detections
from solo_infer.inference.tiling import TileGrid, fragments_of
from solo_infer.ops import packed_masks


def rectangle(size, top, left, bottom, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def ellipse(size, center, radii):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return ((rows - center[0]) / radii[0]) ** 2 + ((columns - center[1]) / radii[1]) ** 2 <= 1


def detections_of(masks, labels, scores):
    """Return exact detections of masks (h, w), bool; those without pixels are left out."""
    kept = [index for index, mask in enumerate(masks) if mask.any()]
    stacked = torch.from_numpy(np.array([masks[index] for index in kept], bool).reshape(-1, *masks[0].shape))
    packed = packed_masks.pack(stacked)
    return Detections(
        torch.tensor([scores[index] for index in kept], dtype=torch.float32),
        torch.tensor([labels[index] for index in kept], dtype=torch.int64),
        packed_masks.mask_boxes(packed, stacked.shape[-1]),
        packed,
    )


def see(masks, tiling, labels=None, scores=None, split=None):
    """Return the tiles of a scene, and the fragments that an exact model finds in them.

    Args:
        masks: Masks (H, W), bool, of the objects.
        tiling: Tiles.
        labels: Class of each object. Defaults to 0.
        scores: Score of each object. Defaults to 0.9.
        split: Function that returns the instances of the part of one object in a tile. Defaults to one.
    """
    labels, scores = labels or [0] * len(masks), scores or [0.9] * len(masks)
    grid = TileGrid.of(masks[0].shape, tiling)
    fragments = []
    for tile in range(len(grid)):
        window = grid.window(tile)
        parts = []
        for mask, label, score in zip(masks, labels, scores, strict=True):
            part = mask[window.top : window.bottom, window.left : window.right]
            parts += [(piece, label, score) for piece in (split(part) if split else [part])]
        if parts:
            fragments += fragments_of(detections_of(*zip(*parts, strict=True)), tile, grid)
    return grid, fragments
