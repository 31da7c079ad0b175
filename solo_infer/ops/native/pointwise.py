"""The compiled 1x1 convolutions of ``pointwise.cpp``."""

from __future__ import annotations

import ctypes

from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary
from solo_infer.ops.native.streams import can_stream


class _Pointwise(ctypes.Structure):
    """A convolution of ``count`` pixels; see ``streams`` and ``negative_slope`` of ``winograd.py``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("pixels", "weight", "bias", "outputs")),
        *((name, ctypes.c_int64) for name in ("count", "channels", "out_channels")),
        ("streams", ctypes.c_int32),
        ("negative_slope", ctypes.c_float),
    ]


def convolve(
    library: KernelLibrary,
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    outputs: Tensor,
    negative_slope: float,
) -> None:
    """Convolve images in the threads of torch.

    Args:
        library: Library of the kernel.
        pixels: (N, H, W, C) float32, contiguous, not empty.
        weight: (1, panels, C, block_columns), packed by ``KernelLibrary.pack`` from (1, C, K).
        bias: (panels * block_columns,) float32, contiguous.
        outputs: (N, H, W, K) float32, contiguous.
        negative_slope: Factor of negative results: 0 for ReLU, 1 for no activation.
    """
    count = pixels[..., 0].numel()
    layer = _Pointwise(
        *(tensor.data_ptr() for tensor in (pixels, weight, bias, outputs)),
        count,
        pixels.shape[3],
        outputs.shape[3],
        can_stream([outputs]),
        negative_slope,
    )
    library.functions.convolve_pointwise(
        ctypes.byref(layer), ctypes.c_uint32(library.threads(count)), ctypes.c_void_p(library.parallel)
    )
