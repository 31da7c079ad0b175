"""Weights of convolutions in the order in which compiled kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary, kernel_library, load_kernels


@dataclass(frozen=True)
class PackedWeight:
    """Weight and bias of a convolution.

    Attributes:
        values: (1, panels, taps * C, block_columns) float32, result of ``KernelLibrary.pack``.
        bias: (panels * block_columns,) float32.
        instructions: Name of the instructions of the kernels.
        channels: Number of input channels, C.
        out_channels: Number of output channels.
    """

    values: Tensor
    bias: Tensor
    instructions: str
    channels: int
    out_channels: int

    @property
    def library(self) -> KernelLibrary:
        """Library for which the weight was packed."""
        library = load_kernels(self.instructions)
        if library is None:
            raise RuntimeError(f"the kernels for {self.instructions} are gone since the weight was packed")
        return library

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` if an input is not (N, C, H, W) float32 on the CPU with pixels."""
        is_suitable = x.dim() == 4 and x.shape[1] == self.channels and bool(x.numel())
        if not is_suitable or (x.dtype, x.device.type) != (torch.float32, "cpu"):
            raise ValueError(
                f"got {tuple(x.shape)} {x.dtype} on {x.device}, expected maps of {self.channels} channels in "
                "torch.float32 on the CPU"
            )


def pack_weight(weight: Tensor, bias: Tensor | None) -> PackedWeight | None:
    """Pack a weight (K, C, taps, taps) and a bias (K,) of any float dtype.

    Returns:
        The packed weight, or None if there are no kernels for this CPU.
    """
    library = kernel_library()
    if library is None:
        return None
    outputs, channels = weight.shape[:2]
    values = library.pack(weight.float().permute(2, 3, 1, 0).reshape(1, -1, outputs))
    bias = values.new_zeros(outputs) if bias is None else bias.float()
    bias = F.pad(bias, (0, -outputs % library.block_columns))
    return PackedWeight(values, bias, library.instructions, channels, outputs)
