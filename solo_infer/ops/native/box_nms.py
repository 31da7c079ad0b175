"""The compiled NMS of ``box_nms.cpp``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary


def keep_boxes(library: KernelLibrary, boxes: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices (M,) int64 of the boxes that NMS keeps.

    Args:
        library: Library of the kernel.
        boxes: (N, 4) float32 x1 y1 x2 y2, contiguous, the best first.
        iou_threshold: Greatest IoU of two kept boxes, 0..1.
    """
    count = len(boxes)
    memory = torch.empty(5 * (count + library.block_columns), dtype=torch.float32, device="cpu")
    indices = torch.empty(count, dtype=torch.int64, device="cpu")
    function = library.functions.keep_boxes
    function.restype = ctypes.c_int64
    number = function(
        ctypes.c_void_p(boxes.data_ptr()),
        ctypes.c_int64(count),
        ctypes.c_float(iou_threshold),
        ctypes.c_void_p(memory.data_ptr()),
        ctypes.c_void_p(indices.data_ptr()),
    )
    return indices[:number]
