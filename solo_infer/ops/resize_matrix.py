"""Matrices of the two bilinear resizes that paste masks, each along one side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_matrix(soft: int, padded: int, resized: int, original: int) -> Tensor:
    """Return the matrix (original, soft) float32 that pastes one side of the masks.

    Args:
        soft: Length of the side of the soft masks.
        padded: Length of the side of the network input.
        resized: Length of the part of the network input that the image fills.
        original: Length of the side of the image.
    """
    impulses = torch.eye(soft, dtype=torch.float32, device="cpu")[:, None]
    maps = F.interpolate(impulses, size=padded, mode="linear", align_corners=False)[..., :resized]
    return F.interpolate(maps, size=original, mode="linear", align_corners=False)[:, 0].T.contiguous()


def input_windows(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parts of matrices (n, outputs, soft) that are not 0, of one width.

    Returns:
        The first column (n,) int64 of each part, and the parts (n, outputs, width) float32.
    """
    soft = matrices.shape[2]
    is_used = matrices.any(dim=1).int()
    first, last = is_used.argmax(dim=1), soft - 1 - is_used.flip(1).argmax(dim=1)
    width = int((last - first).max()) + 1
    first = first.clamp(max=soft - width)
    index = first[:, None] + torch.arange(width, dtype=torch.int64, device="cpu")
    return first, matrices.gather(2, index[:, None].expand(-1, matrices.shape[1], -1))
