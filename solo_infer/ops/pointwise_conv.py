"""1x1 convolutions with large outputs on the CPU, by a compiled kernel."""

from __future__ import annotations

from torch import Tensor

from solo_infer.ops.native import pointwise
from solo_infer.ops.packed_weight import PackedWeight
from solo_infer.runtime import kept_memory


def pointwise_conv(x: Tensor, weight: PackedWeight, negative_slope: float = 1) -> Tensor:
    """Apply a 1x1 convolution with stride 1.

    Args:
        x: (N, C, H, W) float32 on the CPU, not empty; channels_last is fastest.
        weight: Weight (K, C, 1, 1), packed.
        negative_slope: Factor of negative results: 0 for ReLU. Defaults to 1, no activation.

    Returns:
        (N, K, H, W) float32 in channels_last, in kept memory.
    """
    weight.check(x)
    outputs = kept_memory.empty([len(x), *x.shape[2:], weight.out_channels])
    pixels = x.permute(0, 2, 3, 1).contiguous()
    pointwise.convolve(weight.library, pixels, weight.values, weight.bias, outputs, negative_slope)
    return outputs.permute(0, 3, 1, 2)
