"""Networks: tensors in, tensors out."""

from __future__ import annotations

from typing import Any

import torch

from solo_infer.config import ArchitectureConfig
from solo_infer.config.families import family_of


def build_network(config: ArchitectureConfig, device: str = "cpu") -> Any:
    """Build the network of an architecture, in eval mode.

    Args:
        config: Architecture of any family.
        device: Device of the parameters; "meta" allocates no memory, for weights that are assigned later.
    """
    network = family_of(config).load("network")
    with torch.device(device):
        # float32, also where the caller has set another default dtype
        return network(config).float().eval()
