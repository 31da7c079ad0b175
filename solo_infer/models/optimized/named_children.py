"""Iteration over the modules of a network while they are replaced."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def named_children(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield (parent, name, child) for each module below a network; children may be replaced meanwhile."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            yield parent, name, child
