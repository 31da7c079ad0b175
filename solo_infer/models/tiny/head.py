"""Head of Tiny: class scores, boxes and mask kernels of cells, and the mask features they combine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from solo_infer.config.tiny import TINY_STRIDES, TinyConfig
from solo_infer.models.backbones.shufflenet import quarter
from solo_infer.models.layers.leaky_conv import SLOPE, conv3x3, depthwise, pointwise
from solo_infer.models.tiny.masks import NUM_SHAPE_TERMS
from solo_infer.models.tiny.neck import SeparableConv, resize_like

_CONTEXT_EXPANSION = 3  # channels inside a context block, per channel outside


class CellPredictions(NamedTuple):
    """Predictions of all cells of a batch, level by level, finest first, row by row."""

    class_logits: Tensor  # (N, cells, classes)
    distance_logits: Tensor  # (N, cells, 4 * bins): left, top, right, bottom
    kernels: Tensor  # (N, cells, mask features + 6)


class TinyHead(nn.Module):
    """Branches that run on every level; the cells are the pixels of the feature maps.

    Args:
        config: Architecture of the network.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        channels = config.pyramid_channels
        levels = range(len(TINY_STRIDES))
        outputs = config.mask_features + NUM_SHAPE_TERMS
        self.class_tower = nn.ModuleList(_tower(channels) for _ in levels)
        self.class_out = nn.ModuleList(pointwise(channels, config.num_classes) for _ in levels)
        self.distance_out = nn.ModuleList(pointwise(channels, 4 * config.distance_bins) for _ in levels)
        self.kernel_tower = nn.ModuleList(_tower(channels) for _ in levels)
        self.kernel_out = nn.ModuleList(pointwise(channels, outputs) for _ in levels)

    def forward(self, levels: Sequence[Tensor]) -> CellPredictions:
        """Map P3 to P6, each (N, C, h, w), to the predictions of all their cells."""
        shared = [tower(x) for tower, x in zip(self.class_tower, levels, strict=True)]
        kernels = [tower(x) for tower, x in zip(self.kernel_tower, levels, strict=True)]
        return CellPredictions(
            _apply(self.class_out, shared),
            _apply(self.distance_out, shared),
            _apply(self.kernel_out, kernels),
        )


def _tower(channels: int) -> nn.Sequential:
    return nn.Sequential(SeparableConv(channels), SeparableConv(channels))


def _apply(layers: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor:
    """Apply a layer to each map, and return all outputs as (N, cells, outputs)."""
    outputs = [layer(x).flatten(2).transpose(1, 2) for layer, x in zip(layers, maps, strict=True)]
    return torch.cat(outputs, dim=1)


class MaskBranch(nn.Module):
    """Mask features at stride 4: P3 to P5 added at stride 8, then the stem's maps for fine detail.

    Args:
        config: Architecture of the network.
        stem_channels: Channels of the stem.
    """

    def __init__(self, config: TinyConfig, stem_channels: int) -> None:
        super().__init__()
        width = config.mask_channels
        self.from_pyramid = nn.ModuleList(pointwise(config.pyramid_channels, width) for _ in range(3))
        self.coarse1, self.coarse2 = conv3x3(width, width), conv3x3(width, width)
        self.context = nn.Sequential(*(ContextBlock(width) for _ in range(config.mask_context_blocks)))
        self.to_fine = pointwise(width, width)
        self.detail = conv3x3(stem_channels, width, stride=2)
        self.quarter = pointwise(stem_channels, width)
        self.fine1, self.fine2 = conv3x3(width, width), conv3x3(width, width)
        self.out = pointwise(width, config.mask_features)

    def forward(self, stem: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """Map the stem's map at stride 2 and P3, P4, P5 to mask features (N, C, H / 4, W / 4)."""
        p3, p4, p5 = (conv(x) for conv, x in zip(self.from_pyramid, levels, strict=True))
        x = self.coarse1(_leaky_relu(p3 + resize_like(p4, p3) + resize_like(p5, p3)))
        x = self.context(_leaky_relu(x + self.coarse2(_leaky_relu(x))))
        detail = self.detail(stem) + self.quarter(quarter(stem))
        x = self.fine1(_leaky_relu(resize_like(self.to_fine(x), detail) + detail))
        return self.out(_leaky_relu(x + self.fine2(_leaky_relu(x))))


class ContextBlock(nn.Module):
    """Residual block with a wide view: 1x1 convolution to more channels, depthwise 5x5, 1x1 back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = _CONTEXT_EXPANSION * channels
        self.expand = pointwise(channels, wide, leaky=True)
        self.depthwise = depthwise(wide, 5, leaky=True)
        self.project = pointwise(wide, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return x + self.project(self.depthwise(self.expand(x)))


def _leaky_relu(x: Tensor) -> Tensor:
    return leaky_relu(x, SLOPE)
