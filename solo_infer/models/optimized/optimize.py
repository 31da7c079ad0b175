"""Optimized networks for inference: the same function in real arithmetic, in fewer or faster operations.

``optimize_for_inference`` copies a plain network, sharing its weights, and swaps modules:

- BatchNorm is folded into the convolution before it.
- The ResNet stem is one kernel on the CPU; elsewhere its ReLU follows its max pooling (``stem``).
- P2 of SOLO's pyramid is computed at half its size (``halved_p2``).
- Wide 3x3 convolutions use Winograd's method on the CPU (``winograd_conv``, ``conv_branch``).
- Convolutions of up-sampled maps skip the up-sampling (``upsampled_conv``).
- ResNet blocks add and apply their ReLU inside a convolution (``fused_blocks``).
- Convolutions of Tiny apply their LeakyReLU themselves on the CPU (``fused_conv``).
- GroupNorm and ReLU run in fused kernels on CUDA and on the CPU (``group_norm_relu``).
- Lateral convolutions of pyramids add the coarser level on the CPU (``pyramid``).
- Large outputs on the CPU take memory that is kept (``fused_operators``, ``stem``).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from solo_infer.models.optimized.fused_conv import fuse_convolutions
from solo_infer.models.tiny.network import TinyNetwork
from solo_infer.runtime.kept_memory import keep_freed_memory

_Module = TypeVar("_Module", bound=nn.Module)


class OptimizedNetworkCache(Generic[_Module]):
    """The optimized copy of a network, built on first use and again after the weights have changed.

    Thread-safe. The copy shares all weights except those that folding changes.

    Args:
        network: Plain network.
        build: Returns the optimized copy of a network. Defaults to ``optimize_for_inference``.
    """

    def __init__(self, network: _Module, build: Callable[[_Module], _Module] | None = None) -> None:
        self._network, self._build = network, build or optimize_for_inference
        self._lock = threading.Lock()
        # State, parts of the network and optimized copy. Holding the parts keeps addresses from being reused.
        self._built: tuple[object, object, _Module] | None = None

    def get(self) -> _Module:
        """Return the optimized copy, in eval mode, of the network in its current state."""
        modules, tensors = _parts(self._network)
        state = _state(modules, tensors)
        built = self._built
        if built is not None and built[0] == state:
            return built[2]
        with self._lock:
            if self._built is None or self._built[0] != state:
                held = modules, tensors, [tensor.detach() for tensor in tensors]
                self._built = (state, held, self._build(self._network))
            return self._built[2]

    def __getstate__(self) -> dict[str, Any]:
        return {"network": self._network, "build": self._build}  # copies and pickles build their own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _parts(network: nn.Module) -> tuple[list[nn.Module], list[Tensor]]:
    """Return the modules of a network, and its parameters and buffers; shared ones several times.

    ``parameters`` and ``buffers`` take four times as long, a hundredth of a prediction by tiny.
    """
    modules: list[nn.Module] = [network]
    tensors: list[Tensor] = []
    for module in modules:
        tensors += [tensor for tensor in module._parameters.values() if tensor is not None]
        tensors += [tensor for tensor in module._buffers.values() if tensor is not None]
        modules += [child for child in module._modules.values() if child is not None]
    return modules, tensors


def _state(modules: list[nn.Module], tensors: list[Tensor]) -> object:
    """Return a value that changes when weights are changed, moved or cast, or a module is replaced."""
    # Tensors created in inference mode have no version counter; they cannot change outside of it.
    versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    addresses = [tensor.data_ptr() for tensor in tensors]
    identities = [id(part) for part in (*modules, *tensors)]
    return identities, addresses, versions, tensors[0].dtype, tensors[0].device


def optimize_for_inference(network: _Module) -> _Module:
    """Return an optimized copy of a network, in eval mode, that shares the weights it does not change."""
    keep_freed_memory()
    optimized = fold_batch_norm(network)
    if isinstance(optimized, TinyNetwork):
        return fuse_convolutions(optimized)
    from solo_infer.models.optimized.module_swaps import swap_modules  # torchvision takes seconds to import

    return swap_modules(optimized)


def fold_batch_norm(network: _Module) -> _Module:
    """Return a copy in eval mode with each BatchNorm folded into the convolution before it."""
    folded = _shallow_weight_copy(network).eval()
    for parent in list(folded.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in zip(children, children[1:], strict=False):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, _fold(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return folded


def _shallow_weight_copy(module: _Module) -> _Module:
    """Return a copy of a module with the same parameter and buffer tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution for two layers; half precision is folded in float32."""
    fused = fuse_conv_bn_eval(copy.deepcopy(conv).float(), copy.deepcopy(norm).float())
    return fused.to(conv.weight.dtype).to(memory_format=torch.channels_last).requires_grad_(False)
