"""Swaps of the modules of networks that are built on torchvision's: SOLO and YOLACT."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from solo_infer.models.backbones.resnet import ResNet
from solo_infer.models.layers.conv_branch import ConvBlock, ConvBranch
from solo_infer.models.layers.upsampled_conv import UpsampledConv2d
from solo_infer.models.optimized.conv_branch import LevelwiseConvBranch
from solo_infer.models.optimized.fused_blocks import FusedBlock
from solo_infer.models.optimized.fused_operators import KeptConv2d, is_plain, operators_work
from solo_infer.models.optimized.group_norm_relu import GroupNormReLU
from solo_infer.models.optimized.halved_p2 import HalvedP2Neck
from solo_infer.models.optimized.named_children import named_children
from solo_infer.models.optimized.pyramid import FusedPyramidNeck
from solo_infer.models.optimized.stem import FusedStem
from solo_infer.models.optimized.upsampled_conv import FastUpsampledConv2d
from solo_infer.models.optimized.winograd_conv import WinogradConv2d, is_wide
from solo_infer.models.solo.neck import SOLONeck, SOLOv2Neck

_Module = TypeVar("_Module", bound=nn.Module)


def swap_modules(network: _Module) -> _Module:
    """Replace the modules of a network with folded BatchNorm, in place, by faster ones."""
    first = next(network.parameters())
    for parent, name, child in named_children(network):
        if isinstance(child, ConvBlock):
            child.add_module("gn", GroupNormReLU(child.gn))
            child.add_module("activate", nn.Identity())
        elif isinstance(child, UpsampledConv2d) and child.kernel_size == (3, 3):
            setattr(parent, name, FastUpsampledConv2d(child))
        elif type(child) is nn.Conv2d and is_wide(child) and first.device.type == "cpu":
            setattr(parent, name, WinogradConv2d(child))
        elif is_plain(child) and first.device.type == "cpu" and operators_work(first.device, first.dtype):
            setattr(parent, name, KeptConv2d(child))
    # Containers after their contents.
    for parent, name, child in named_children(network):
        if isinstance(child, ResNet):
            child.add_module("conv1", FusedStem(child.conv1))
            child.relu, child.maxpool = nn.Identity(), nn.Identity()
        elif isinstance(child, SOLOv2Neck):
            setattr(parent, name, FusedPyramidNeck(child))
        elif isinstance(child, ConvBranch):
            setattr(parent, name, LevelwiseConvBranch(child))
        elif isinstance(child, BasicBlock | Bottleneck) and operators_work(first.device, first.dtype):
            setattr(parent, name, FusedBlock(child))
    return halve_p2(network)


def halve_p2(network: _Module) -> _Module:
    """Replace the neck of a SOLO network, in place, by one that computes P2 at half its size."""
    for parent, name, child in named_children(network):
        if isinstance(child, SOLONeck):
            setattr(parent, name, HalvedP2Neck(child))
    return network
