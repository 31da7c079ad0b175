"""Convolutions that add a map or apply a ReLU themselves, by oneDNN on the CPU and cuDNN on NVIDIA cards.

Both libraries can do so while the result of the convolution is still in registers or in the cache. torch
uses that in compiled programs only; its operators are outside its public interface. They are therefore
tried first: ``operators_work`` returns whether they exist and give the results of separate operations.

On the CPU, large outputs take memory that is kept (``runtime.kept_memory``).
"""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.ops.dispatch import is_compiling
from solo_infer.ops.packed_weight import PackedWeight, pack_weight
from solo_infer.ops.pointwise_conv import pointwise_conv
from solo_infer.runtime import kept_memory
from solo_infer.runtime.device import full_float32, is_nvidia_card
from solo_infer.runtime.kept_memory import MAX_SIZE_OF_MALLOC
from solo_infer.runtime.messages import describe_error
from solo_infer.runtime.neutral_state import neutral_state

_LOGGER = logging.getLogger(__name__)
_cudnn_failures: dict[torch.dtype, str] = {}  # reasons


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a convolution that the operators compute."""
    is_conv = type(module) in (nn.Conv2d, KeptConv2d)
    return isinstance(module, nn.Conv2d) and is_conv and module.groups == 1 and module.dilation == (1, 1)


class KeptConv2d(nn.Conv2d):
    """A plain convolution whose large outputs take kept memory on the CPU (``runtime.kept_memory``).

    Args:
        conv: Convolution whose weights are used as they are.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)
        is_pointwise = (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0))
        self._can_pack = is_pointwise and is_plain(self)
        # Computed on first use; concurrent threads compute equal values.
        self._packed: PackedWeight | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H', W')."""
        is_fixed = torch.is_grad_enabled() or is_compiling() or x.device.type != "cpu"
        output = None if is_fixed else self.large_output(x, relu=False)
        return super().forward(x) if output is None else output

    def large_output(self, x: Tensor, *, relu: bool) -> Tensor | None:
        """Return conv(x), or relu of it, in kept memory if it would otherwise take new memory, else None.

        The operators of oneDNN have no output argument. Writing zeros and adding to them takes less time than
        the first use of new memory.
        """
        taps, padding, stride = self.kernel_size, cast("tuple[int, ...]", self.padding), self.stride
        height, width = ((x.shape[i + 2] + 2 * padding[i] - taps[i]) // stride[i] + 1 for i in range(2))
        shape = (len(x), height, width, self.out_channels)
        size = math.prod(shape) * x.dtype.itemsize
        # glibc also returns memory above 64 MiB at the end: in half precision, more maps are malloc's.
        if size <= (MAX_SIZE_OF_MALLOC if x.dtype == torch.float32 else MAX_SIZE_OF_MALLOC // 2):
            return None
        if self._can_pack and x.dtype == torch.float32:
            if self._packed is None:
                self._packed = pack_weight(self.weight, self.bias)
            if self._packed is not None:
                return pointwise_conv(x, self._packed, negative_slope=0 if relu else 1)
        zeros = kept_memory.empty(shape, x.dtype).zero_().permute(0, 3, 1, 2)
        return add_convolution_relu(zeros, self, x) if relu else add_convolution(zeros, self, x)


def convolution_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return relu(conv(x)) of a plain convolution. ``x`` is in channels_last format."""
    if x.is_cuda:
        return _on_card(conv, x, None)
    output = conv.large_output(x, relu=True) if isinstance(conv, KeptConv2d) else None
    if output is not None:
        return output
    return torch.ops.mkldnn._convolution_pointwise(
        x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, 1, "relu", [], ""
    )


def add_convolution_relu(other: Tensor, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return relu(other + conv(x)) of a plain convolution; on the CPU it overwrites ``other``."""
    if x.is_cuda:
        return _on_card(conv, x, other)
    settings = (conv.padding, conv.stride, conv.dilation, 1)
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        other, x, conv.weight, conv.bias, *settings, "add", 1.0, "relu", [], ""
    )


def add_convolution(other: Tensor, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return other + conv(x) of a plain convolution on the CPU, which overwrites ``other``."""
    settings = (conv.padding, conv.stride, conv.dilation, 1)
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        other, x, conv.weight, conv.bias, *settings, "add", 1.0, None, [], None
    )


def _on_card(conv: nn.Conv2d, x: Tensor, other: Tensor | None) -> Tensor:
    """Return relu(conv(x)) or relu(other + conv(x)); by separate operations after cuDNN has failed once."""
    if x.dtype not in _cudnn_failures:
        try:
            return _by_cudnn(conv, x, other)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # cuDNN has no such operation for some shapes and cards
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                raise  # the capture failed, perhaps for another reason
            _cudnn_failures[x.dtype] = describe_error(error)
            _LOGGER.warning(
                "cuDNN cannot apply a ReLU inside a convolution of %s in %s, so it is applied separately: %s",
                tuple(x.shape),
                x.dtype,
                _cudnn_failures[x.dtype],
            )
    y = conv(x)
    return F.relu(y if other is None else y.add_(other), inplace=True)


def _by_cudnn(conv: nn.Conv2d, x: Tensor, other: Tensor | None) -> Tensor:
    settings = conv.stride, cast("tuple[int, ...]", conv.padding), conv.dilation, 1
    if other is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *settings)
    return torch.cudnn_convolution_add_relu(x, conv.weight, other, 1.0, conv.bias, *settings)


def operators_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the operators work on a device in a dtype."""
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and _give_expected_results(device, dtype)
    if device.type != "cuda" or not torch.backends.cudnn.is_available() or not is_nvidia_card(device.index):
        return False
    with full_float32():
        return _give_expected_results(device, dtype)


@cache
@neutral_state()
def _give_expected_results(device: torch.device, dtype: torch.dtype) -> bool:
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        return values.to(device, dtype).contiguous(memory_format=torch.channels_last)

    with torch.random.fork_rng(devices=()):  # keeps the caller's random numbers
        conv = nn.Conv2d(16, 16, 3, padding=1, dtype=dtype, device="cpu")
    conv = conv.to(device).to(memory_format=torch.channels_last)
    x, other = noise(1, 16, 9, 9), noise(1, 16, 9, 9)
    try:
        conv.weight.copy_(noise(16, 16, 3, 3) / 12)
        outputs = [convolution_relu(conv, x), add_convolution_relu(other.clone(), conv, x)]
        expected = [F.relu(conv(x)), F.relu(conv(x) + other)]
        if device.type == "cpu":
            outputs.append(add_convolution(other.clone(), conv, x))
            expected.append(conv(x) + other)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        _LOGGER.info("ResNet blocks are not fused on %s: %s", device, error)
        return False
    if device.type == "cuda" and dtype in _cudnn_failures:
        return False
    limit = 1e-5 if dtype == torch.float32 else 0.05
    return all(torch.allclose(a, b, rtol=limit, atol=limit) for a, b in zip(outputs, expected, strict=True))
