"""Optimized networks whose backbone and branches are compiled by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from solo_infer.models.layers.conv_branch import ConvBranch, append_coordinates
from solo_infer.models.optimized.optimize import fold_batch_norm, optimize_for_inference
from solo_infer.models.solo.solov2_head import MaskFeatureHead

_Module = TypeVar("_Module", bound=nn.Module)


def compile_for_inference(network: _Module, options: Mapping[str, Any]) -> _Module:
    """Return an optimized copy of a network whose backbone and branches are compiled on first use.

    Args:
        network: Plain network.
        options: Keyword arguments of ``torch.compile``.
    """
    compiled = optimize_for_inference(network)
    plain = fold_batch_norm(network)  # the compiler does the rest itself
    for parent_name, parent in plain.named_children():
        if parent_name == "backbone":
            setattr(compiled, parent_name, torch.compile(parent, **options))
            continue
        for name, child in parent.named_children():
            if isinstance(child, ConvBranch):
                setattr(compiled.get_submodule(parent_name), name, CompiledConvBranch(child, options))
            elif isinstance(child, nn.Sequential | MaskFeatureHead):
                setattr(compiled.get_submodule(parent_name), name, torch.compile(child, **options))
    return compiled


class CompiledConvBranch(nn.Module):
    """A ``ConvBranch`` whose blocks are compiled together.

    Args:
        branch: Branch whose weights are shared.
        options: Keyword arguments of ``torch.compile``.
    """

    def __init__(self, branch: ConvBranch, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.axes = branch.axes
        self.blocks = torch.compile(nn.Sequential(*branch), **options)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map feature maps (N, C, h, w) of several levels to (N, C', h, w) each."""
        return [self.blocks(append_coordinates(x, self.axes)) for x in maps]
