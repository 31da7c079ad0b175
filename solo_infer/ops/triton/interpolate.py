"""Bilinear interpolation in kernels, with the positions and weights of ``F.interpolate``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bilinear_taps(index, scale, size):
    """Return the two source indices of output indices along one side, and the weight of the second.

    The rule is that of ``align_corners=False``. ``scale`` is the source length per output length.
    """
    position = tl.maximum(scale * (index.to(tl.float32) + 0.5) - 0.5, 0.0)
    first = tl.minimum(position.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), position - first.to(tl.float32)
