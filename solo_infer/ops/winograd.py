"""Winograd convolutions, which need fewer multiplications than direct ones.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). A tile of outputs is
computed from the values of polynomials at a few points, with one matrix product over all tiles for each
point. A 3x3 convolution takes 2.25 multiplications per output in tiles of 4 x 4 instead of 9. Its rounding
error in float32 is about two times that of a direct convolution.

A compiled kernel computes them where the package has one for the CPU (``native``), operations of torch
elsewhere (``winograd_torch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import winograd_torch
from solo_infer.ops.native import winograd as winograd_native
from solo_infer.ops.native.library import kernel_library, load_kernels
from solo_infer.ops.winograd_matrices import weight_matrix
from solo_infer.runtime import kept_memory
from solo_infer.runtime.cpu import has_bfloat16_matrix_units

_TILE = 4  # size of the tiles of outputs


@dataclass(frozen=True)
class TransformedWeight:
    """Weight of a convolution at the points of Winograd's method.

    Attributes:
        values: (points, C, K) float32, with 4 * C for stride 2; or the same packed by ``KernelLibrary.pack``,
            without values that are always zero.
        instructions: Name of the instructions of the compiled kernel that reads the values, or None.
        channels: Number of input channels.
        out_channels: Number of output channels, K.
        taps: Number of weights along a side of a filter: 3, or 4 with stride 2.
        stride: Stride of the convolution, 1 or 2.
    """

    values: Tensor
    instructions: str | None
    channels: int
    out_channels: int
    taps: int
    stride: int


def is_faster(dtype: torch.dtype) -> bool:
    """Return whether Winograd's method is faster than direct convolutions of wide maps on the CPU.

    In bfloat16 it is, in the compiled kernel, which computes in float32, unless the CPU has matrix units.
    """
    if dtype == torch.bfloat16:
        return kernel_library() is not None and not _has_matrix_units()
    return dtype == torch.float32


@cache
def _has_matrix_units() -> bool:
    return has_bfloat16_matrix_units() is not False


def transform_weight(weight: Tensor, stride: int = 1) -> TransformedWeight:
    """Transform the weight (K, C, 3, 3) of a convolution, of any float dtype, for ``convolve``.

    Args:
        weight: Weight of the convolution.
        stride: Stride of the convolution, 1 or 2. Defaults to 1.
    """
    if stride == 2:
        return _transform_phases(F.pad(weight, (0, 1, 0, 1)), taps=3)
    values, instructions = _transform(
        weight.float().permute(2, 3, 1, 0).flatten(0, 1), weight_matrix(_TILE + 2, 3)
    )
    return TransformedWeight(values, instructions, weight.shape[1], len(weight), taps=3, stride=1)


def transform_halving_weight(weight: Tensor) -> TransformedWeight:
    """Transform the weight (K, C, 4, 4) of a convolution, of any float dtype, for ``convolve_halving``."""
    return _transform_phases(weight, taps=4)


def _transform_phases(weight: Tensor, taps: int) -> TransformedWeight:
    """Transform a weight (K, C, 4, 4) for stride 2; with 3 taps, its last row and column are zeros.

    Every other row and column of an image form one of four phases, and filters have 2x2 taps in each.
    """
    outputs, channels = weight.shape[:2]
    phases = weight.float().view(outputs, channels, 2, 2, 2, 2).permute(2, 4, 3, 5, 1, 0)
    values, instructions = _transform(phases.reshape(4, 4 * channels, outputs), weight_matrix(_TILE + 1, 2))
    if taps == 3 and instructions is not None:
        values = _without_zeros(values)
    return TransformedWeight(values, instructions, channels, outputs, taps, stride=2)


def _without_zeros(values: Tensor) -> Tensor:
    """Leave out the zeros of 3x3 filters of stride 2 among packed values (points, panels, 4 * C, columns).

    The value at infinity is that of the last tap, which every other row and column of phases does not have.
    """
    side = _TILE + 1
    points = values.unflatten(2, (2, 2, -1)).unflatten(0, (side, side))
    phases = [2] * (side - 1) + [1]
    return torch.cat(
        [
            points[row, column, :, : phases[row], : phases[column]].flatten()
            for row in range(side)
            for column in range(side)
        ]
    )


def _transform(taps: Tensor, matrix: Tensor) -> tuple[Tensor, str | None]:
    """Return the values of filters with taps (taps, C, K) at the points of a matrix (points, taps).

    Returns:
        The values, packed for the compiled kernel if there is one, and the instructions of that kernel.
    """
    library = kernel_library()
    ordered = taps if library is None else library.pack(taps)
    values = (matrix @ ordered.reshape(len(taps), -1)).view(-1, *ordered.shape[1:])
    return values, None if library is None else library.instructions


def convolve(
    maps: Sequence[Tensor],
    weight: TransformedWeight,
    bias: Tensor | None = None,
    *,
    addends: Sequence[Tensor] = (),
    negative_slope: float = 1,
) -> list[Tensor]:
    """Apply a 3x3 convolution with stride 1 or 2 and a padding of 1 to maps of any sizes.

    Args:
        maps: (N, C, H, W) float32 on the CPU each; channels_last is fastest. With the compiled kernel, all
            may be bfloat16.
        weight: Result of ``transform_weight``.
        bias: (K,) of any float dtype.
        addends: (N, K, H', W') of the dtype of the maps for each one, to which the convolution is added, in
            place if they are in channels_last. None by default.
        negative_slope: Factor of negative results: 0 for ReLU. Defaults to 1, no activation.

    Returns:
        (N, K, H', W') of the dtype of the maps in channels_last for each one; H' is H for stride 1, and half
        of H, rounded up, for stride 2.
    """
    return _convolve(maps, weight, bias, addends, above=1, below=1, negative_slope=negative_slope)


def convolve_halving(
    x: Tensor, weight: TransformedWeight, bias: Tensor | None = None, above: int = 1, below: int = 1
) -> Tensor:
    """Apply a 4x4 convolution with stride 2 and a padding of 1, which halves the size.

    Args:
        x: (N, C, H, W) float32 on the CPU; W and H + above + below are even. channels_last is fastest. With
            the compiled kernel it may be bfloat16.
        weight: Result of ``transform_halving_weight``.
        bias: (K,) of any float dtype.
        above: Number of rows of padding above. Defaults to 1.
        below: Number of rows of padding below. Defaults to 1.

    Returns:
        (N, K, (H + above + below) / 2 - 1, W / 2) of the dtype of x in channels_last.
    """
    return _convolve([x], weight, bias, (), above=above, below=below, negative_slope=1)[0]


def _convolve(
    maps: Sequence[Tensor],
    weight: TransformedWeight,
    bias: Tensor | None,
    addends: Sequence[Tensor],
    *,
    above: int,
    below: int,
    negative_slope: float,
) -> list[Tensor]:
    bias = None if bias is None else bias.float().contiguous()
    taps, stride = weight.taps, weight.stride
    sizes = [
        ((x.shape[-2] + above + below - taps) // stride + 1, (x.shape[-1] + 2 - taps) // stride + 1)
        for x in maps
    ]
    _check_operands(maps, weight, bias, addends, sizes)
    if not maps:
        return []
    library = None if weight.instructions is None else load_kernels(weight.instructions)
    if library is None:
        outputs = winograd_torch.convolve(maps, weight.values, bias, stride, above, sizes)
        outputs = [y.add_(x) for x, y in zip(addends, outputs, strict=True)] if addends else outputs
        if negative_slope == 0:
            return [F.relu_(y) for y in outputs]
        return outputs if negative_slope == 1 else [F.leaky_relu_(y, negative_slope) for y in outputs]
    pixels = [_channels_last(x) for x in maps]
    if addends:
        outputs = [x.permute(0, 2, 3, 1).contiguous() for x in addends]  # views may share values
    else:
        outputs = [
            kept_memory.empty([len(x), *size, weight.out_channels], x.dtype)
            for x, size in zip(pixels, sizes, strict=True)
        ]
    winograd_native.convolve(
        library,
        pixels,
        outputs,
        weight.values,
        bias,
        taps=taps,
        stride=stride,
        above=above,
        adds=bool(addends),
        negative_slope=negative_slope,
    )
    return [y.permute(0, 3, 1, 2) for y in outputs]


def _check_operands(
    maps: Sequence[Tensor],
    weight: TransformedWeight,
    bias: Tensor | None,
    addends: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
) -> None:
    """Raise an error where the compiled kernel would read or write beyond a tensor."""
    if addends and len(addends) != len(maps):
        raise ValueError(f"got {len(addends)} addends, expected one for each of {len(maps)} maps")
    # The kernel alone reads bfloat16.
    is_half = bool(maps) and maps[0].dtype == torch.bfloat16 and weight.instructions is not None
    dtype = torch.bfloat16 if is_half else torch.float32
    outputs = weight.out_channels
    operands = [(x, (*x.shape[:1], weight.channels, *x.shape[2:4]), dtype) for x in maps]
    operands += [
        (y, (len(x), outputs, *size), dtype) for x, y, size in zip(maps, addends, sizes, strict=False)
    ]
    for tensor, shape, expected in (
        operands if bias is None else [*operands, (bias, (outputs,), torch.float32)]
    ):
        if (tensor.shape, tensor.dtype, tensor.device.type) != (shape, expected, "cpu"):
            got = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            raise ValueError(f"got an operand {got}, expected {shape} {expected} on the CPU")
        if not tensor.numel():
            raise ValueError(f"got an empty operand {shape}, expected pixels")


def _channels_last(x: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as (N, H, W, C) with adjacent channels, without a copy if they are so."""
    pixels = x.permute(0, 2, 3, 1)
    return pixels if pixels.stride(3) == 1 else pixels.contiguous()
