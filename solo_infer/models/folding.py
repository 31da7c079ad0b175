"""The network as it predicts: BatchNorm folded into the convolutions before it.

Folding gives the same function in real arithmetic, with one pass over memory less for each convolution.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from solo_infer.models.solo import Body, SOLONetwork


class FoldedNetwork:
    """The folded twin of a network, made when first asked for and again when the weights have changed.

    Neck and head are shared with the network; only the body is copied. Any number of threads may ask.

    Args:
        network: In eval mode whenever it is asked for.
    """

    def __init__(self, network: SOLONetwork) -> None:
        self._network = network
        self._lock = threading.Lock()
        self._made: tuple[object, SOLONetwork] | None = None

    def get(self) -> SOLONetwork:
        """Return the twin of the network as it is now."""
        state = self._state()
        made = self._made
        if made is not None and made[0] == state:
            return made[1]
        with self._lock:
            if self._made is None or self._made[0] != state:
                twin = self._network.with_body(folded(self._network.backbone))
                self._made = (state, twin)
            return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"network": self._network}  # copies and pickles make their own twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["network"])  # type: ignore[misc]

    def _state(self) -> object:
        """Return what differs once the body has been changed, moved or cast, or a part replaced."""
        tensors = [*self._network.backbone.parameters(), *self._network.backbone.buffers()]
        # Tensors made in inference mode count no versions, as they cannot be changed out of it.
        versions = sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)
        parts = id(self._network.backbone), id(self._network.neck), id(self._network.mask_head)
        return versions, tensors[0].data_ptr(), tensors[0].dtype, tensors[0].device, parts


def folded(body: Body) -> Body:
    """Return a copy of a body in eval mode, each BatchNorm folded into the convolution before it."""
    twin = copy.deepcopy(body).eval().requires_grad_(False)
    for parent in list(twin.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in zip(children, children[1:], strict=False):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, _fold(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return twin


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution in place of two layers; half precision is folded in float32."""
    dtype = conv.weight.dtype
    fused = fuse_conv_bn_eval(conv.float(), norm.float()).to(dtype)
    return fused.to(memory_format=torch.channels_last).requires_grad_(False)
