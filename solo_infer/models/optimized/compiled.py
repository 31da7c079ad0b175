"""Stages of a network that ``torch.compile`` compiles when they are first used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solo_infer.models.layers.conv_branch import with_coordinates


def compile_stages(network: nn.Module, plain: nn.Module, options: Mapping[str, Any]) -> None:
    """Replace the backbone and each branch of the heads by compiled ones.

    Args:
        network: Is changed. Its backbone is called ``backbone``; branches are an ``nn.Sequential`` each.
        plain: The same network in torch's own layers, which are compiled.
        options: Of ``torch.compile``.
    """
    for part_name, part in plain.named_children():
        if part_name == "backbone":
            setattr(network, part_name, torch.compile(part, **options))
            continue
        for name, child in part.named_children():
            if isinstance(child, nn.Sequential):
                setattr(network.get_submodule(part_name), name, CompiledBranch(child, options))


class CompiledBranch(nn.Module):
    """A branch of convolutions as one compiled block; it is run like the branch itself.

    Args:
        branch: Its weights are shared.
        options: Of ``torch.compile``.
    """

    def __init__(self, branch: nn.Sequential, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.run = torch.compile(branch, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Map what the branch maps."""
        return self.run(x)

    def each(self, maps: Sequence[Tensor], axes: str = "") -> list[Tensor]:
        """Run on maps of any sizes, to whose channels the coordinates along some axes are appended."""
        return [self.run(with_coordinates(x, axes) if axes else x) for x in maps]

    def __iter__(self) -> Iterator[CompiledBranch]:
        yield self  # the one block that it has
