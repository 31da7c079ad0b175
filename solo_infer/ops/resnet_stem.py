"""The stem of ResNets on the CPU: 7x7 convolution, ReLU and max pooling by one compiled kernel.

The result of the convolution, four times that of the pooling, never leaves the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops.native import stem
from solo_infer.ops.native.library import kernel_library, load_kernels
from solo_infer.runtime import kept_memory


@dataclass(frozen=True)
class StemWeight:
    """Weight and bias of the convolution of a stem in the order in which the kernel reads them.

    Attributes:
        values: Result of ``KernelLibrary.pack``.
        bias: (columns of the values,) float32.
        instructions: Name of the instructions of the kernel.
        channels: Number of input channels.
        out_channels: Number of output channels.
    """

    values: Tensor
    bias: Tensor
    instructions: str
    channels: int
    out_channels: int


def pack_stem_weight(weight: Tensor, bias: Tensor | None) -> StemWeight | None:
    """Pack a weight (K, C, 7, 7) and a bias (K,) of any float dtype for ``resnet_stem``.

    Returns:
        The packed weight, or None if there is no kernel for this CPU.
    """
    library = kernel_library()
    if library is None:
        return None
    outputs, channels = weight.shape[:2]
    values = library.pack(weight.float().permute(2, 3, 1, 0).reshape(1, -1, outputs))
    bias = values.new_zeros(outputs) if bias is None else bias.float()
    bias = F.pad(bias, (0, -outputs % library.block_columns))
    return StemWeight(values, bias, library.instructions, channels, outputs)


def resnet_stem(x: Tensor, weight: StemWeight) -> Tensor:
    """Apply a 7x7 convolution with stride 2 and padding 3, ReLU, and 3x3 max pooling with stride 2 and padding 1.

    Args:
        x: (N, C, H, W) float32 on the CPU, not empty; channels_last is fastest.
        weight: Result of ``pack_stem_weight``.

    Returns:
        (N, K, ceil(H / 4), ceil(W / 4)) float32 in channels_last.
    """
    count, channels, height, width = x.shape
    if (channels, x.dtype, x.device.type) != (weight.channels, torch.float32, "cpu") or not x.numel():
        raise ValueError(
            f"got {tuple(x.shape)} {x.dtype} on {x.device}, expected images of {weight.channels} channels in "
            "torch.float32 on the CPU"
        )
    library = load_kernels(weight.instructions)
    if library is None:
        raise RuntimeError(f"the kernels for {weight.instructions} are gone since the weight was packed")
    outputs = kept_memory.empty([count, -(-height // 4), -(-width // 4), weight.out_channels], torch.float32)
    stem.run_stem(library, x.permute(0, 2, 3, 1).contiguous(), weight.values, weight.bias, outputs)
    return outputs.permute(0, 3, 1, 2)
