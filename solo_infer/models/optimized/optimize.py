"""The network as it predicts: the same function in real arithmetic, in fewer operations.

BatchNorm is folded into the convolutions before it. On the CPU wide 3x3 convolutions go Winograd's way, and
residual blocks add and cut off while they convolve. On CUDA GroupNorm and its ReLU are one kernel.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck

from solo_infer.models.layers.conv_branch import ConvBlock
from solo_infer.models.optimized.compiled import compile_stages
from solo_infer.models.optimized.fused_bottleneck import FusedBottleneck, can_fuse
from solo_infer.models.optimized.group_norm_relu import GroupNormReLU
from solo_infer.models.optimized.winograd_conv import WideConv

# Channels in and out from which Winograd's way was faster than oneDNN's direct one (benchmarks/NOTES.md).
WIDE = 256

_Module = TypeVar("_Module", bound=nn.Module)


class InferenceTwin(Generic[_Module]):
    """The twin of a network that predicts, made when first asked for and again when the weights have changed.

    It shares all weights but those that folding changes. Any number of threads may ask for it.

    Args:
        network: The network as it was trained.
        make: What makes a twin; ``inference_twin`` if not given.
    """

    def __init__(self, network: _Module, make: Callable[[_Module], _Module] | None = None) -> None:
        self._network, self._make = network, make or inference_twin
        self._lock = threading.Lock()
        self._made: tuple[object, _Module] | None = None

    def get(self) -> _Module:
        """Return the twin, in eval mode, of the network as it is now."""
        state = self._state()
        made = self._made
        if made is not None and made[0] == state:
            return made[1]
        with self._lock:
            if self._made is None or self._made[0] != state:
                self._made = (state, self._make(self._network))
            return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"network": self._network, "make": self._make}  # copies and pickles make their own twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _state(self) -> object:
        """Return what differs once weights have been changed, moved or cast, or a part replaced."""
        network = self._network
        tensors = [*network.parameters(), *network.buffers()]
        # Tensors made in inference mode count no versions, as they cannot be changed out of it.
        versions = sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)
        parts = [id(part) for part in network.children()]
        return versions, tensors[0].data_ptr(), tensors[0].dtype, tensors[0].device, parts


def compiled_twin(network: _Module, options: Mapping[str, Any]) -> _Module:
    """Return an inference twin whose backbone and branches are compiled when first used.

    Args:
        network: The network as it was trained.
        options: Of ``torch.compile``.
    """
    plain = _sharing_copy(network).eval()
    _fold_batch_norms(plain)  # all else that a twin does for speed the compiler does itself
    twin = inference_twin(network)
    compile_stages(twin, plain, options)
    return twin


def inference_twin(network: _Module) -> _Module:
    """Return a network in eval mode that computes the same and shares what weights it can."""
    twin = folded(network)
    for parent in list(twin.modules()):
        if isinstance(parent, ConvBlock):
            parent.add_module("gn", GroupNormReLU(parent.gn))
            parent.add_module("activate", nn.Identity())
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and _is_wide(child):
                setattr(parent, name, WideConv(child))
    first = next(twin.parameters())
    if can_fuse(first.device, first.dtype):
        for parent in list(twin.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Bottleneck):
                    setattr(parent, name, FusedBottleneck(child))
    return twin


def folded(network: _Module) -> _Module:
    """Return a network in eval mode without BatchNorm, which shares all other weights."""
    twin = _sharing_copy(network).eval()
    _fold_batch_norms(twin)
    return twin


def _is_wide(conv: nn.Conv2d) -> bool:
    return (
        (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups) == ((1, 1), 1)
        and min(conv.in_channels, conv.out_channels) >= WIDE
    )


def _sharing_copy(module: _Module) -> _Module:
    """Return a copy of a module whose parameters and buffers are the same tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _fold_batch_norms(body: nn.Module) -> None:
    """Fold each BatchNorm into the convolution before it; both are replaced, not changed."""
    for parent in list(body.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in zip(children, children[1:], strict=False):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, _folded(conv, norm))
                setattr(parent, norm_name, nn.Identity())


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution in place of two layers; half precision is folded in float32."""
    fused = fuse_conv_bn_eval(copy.deepcopy(conv).float(), copy.deepcopy(norm).float())
    return fused.to(conv.weight.dtype).to(memory_format=torch.channels_last).requires_grad_(False)
