"""The stem of ResNets on the CPU: 7x7 convolution, ReLU and max pooling by one compiled kernel.

The result of the convolution, four times that of the pooling, never leaves the cache.
"""

from __future__ import annotations

from torch import Tensor

from solo_infer.ops.native import stem
from solo_infer.ops.packed_weight import PackedWeight
from solo_infer.runtime import kept_memory


def resnet_stem(x: Tensor, weight: PackedWeight) -> Tensor:
    """Apply a 7x7 convolution, 3x3 max pooling, both with stride 2 and half their size as padding, and ReLU.

    Args:
        x: (N, C, H, W) float32 on the CPU, not empty; channels_last is fastest.
        weight: Weight (K, C, 7, 7), packed.

    Returns:
        (N, K, ceil(H / 4), ceil(W / 4)) float32 in channels_last.
    """
    weight.check(x)
    count, _, height, width = x.shape
    outputs = kept_memory.empty([count, -(-height // 4), -(-width // 4), weight.out_channels])
    pixels = x.permute(0, 2, 3, 1).contiguous()
    stem.run_stem(weight.library, pixels, weight.values, weight.bias, outputs)
    return outputs.permute(0, 3, 1, 2)
