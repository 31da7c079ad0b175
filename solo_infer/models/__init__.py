"""The networks: tensors in, tensors out."""

from __future__ import annotations

from typing import overload

import torch

from solo_infer.config import AnyArchitecture, Architecture
from solo_infer.models.solo import SOLONetwork
from solo_infer.models.yolact import YolactNetwork
from solo_infer.yolact_config import YolactArchitecture

__all__ = ["Network", "SOLONetwork", "YolactNetwork", "build_network"]

Network = SOLONetwork | YolactNetwork


@overload
def build_network(config: Architecture, device: str = "cpu") -> SOLONetwork: ...


@overload
def build_network(config: YolactArchitecture, device: str = "cpu") -> YolactNetwork: ...


def build_network(config: AnyArchitecture, device: str = "cpu") -> Network:
    """Build a network in eval mode; ``device="meta"`` allocates nothing, for weights to be assigned."""
    with torch.device(device):
        if isinstance(config, Architecture):
            return SOLONetwork(config).eval()
        return YolactNetwork(config).eval()
