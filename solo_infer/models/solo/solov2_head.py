"""Head of SOLOv2 (Wang et al., arXiv 2003.10152).

The head predicts a convolution kernel for each grid cell, and mask features that all cells share. The mask of
a cell is its kernel, as a 1x1 convolution, applied to the mask features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from solo_infer.config import SOLOConfig
from solo_infer.models.layers.conv_branch import (
    ConvBlock,
    append_channels,
    append_coordinates,
    coordinates,
)
from solo_infer.models.layers.resize import resize
from solo_infer.models.solo.cells import LevelCells
from solo_infer.models.solo.head import BaseHead
from solo_infer.models.solo.masks import CandidateMasks, KernelMasks
from solo_infer.models.solo.neck import SOLOv2Neck

FEATURE_CHANNELS = 128  # channels of each level of the mask feature head (SOLOv2 paper, section 3.2)
_FEATURE_LEVELS = 4  # P2 to P5


class SOLOv2Output(NamedTuple):
    """Raw outputs of the head for a batch; the lists have one entry per level, finest first."""

    class_logits: list[Tensor]  # (N, classes, g, g)
    kernels: list[Tensor]  # (N, E, g, g)
    mask_features: Tensor  # (N, E, H/4, W/4)


class MaskFeatureHead(nn.Module):
    """Map of mask features from P2 to P5, at a quarter of the padded input.

    Args:
        config: Architecture of the network.
    """

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__()
        deformable, modulated = config.deformable_mask_features, config.modulated
        self.convs_all_levels = nn.ModuleList()
        for level in range(_FEATURE_LEVELS):
            # A convolution before each up-sampling to the next finer level, and one for P2. P5 comes with
            # coordinates.
            widths = [config.pyramid_channels + 2 * (level == _FEATURE_LEVELS - 1)]
            widths += [FEATURE_CHANNELS] * (level - 1)
            blocks = [
                ConvBlock(width, FEATURE_CHANNELS, deformable=deformable, modulated=modulated)
                for width in widths
            ]
            names = (f"conv{index}" for index in range(len(blocks)))
            self.convs_all_levels.append(nn.Sequential(OrderedDict(zip(names, blocks, strict=True))))
        self.conv_pred = ConvBlock(
            FEATURE_CHANNELS, config.mask_channels, 1, deformable=deformable, modulated=modulated
        )

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Map P2 to P5 (N, C, h, w) to mask features (N, E, H/4, W/4)."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in pyramid]
        *levels, p5 = pyramid
        features = []
        for level, x in enumerate([*levels, append_coordinates(p5, "xy")]):
            first, *others = self.convs_all_levels[level].children()
            x = first(x)
            for size, conv in zip(reversed(sizes[1:level]), others, strict=True):
                x = conv(resize(x, size))
            features.append(x)
        # Up-sampling is linear: P3 to P5, now of one size, are added before the last one.
        coarse = (features[1] + features[2]).add_(features[3])
        return self.conv_pred(resize(coarse, sizes[0]).add_(features[0]))


class SOLOv2Head(BaseHead):
    """SOLOv2: a kernel per grid cell, and mask features.

    Its inputs are P2, and the feature maps of the five levels of the grid.
    """

    neck = SOLOv2Neck

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__(config)
        self.mask_channels = config.mask_channels
        self.kernel_convs = self._branch(config, extra_channels=2)
        self.conv_kernel = nn.Conv2d(config.head_channels, config.mask_channels, 3, padding=1)
        self.mask_feature_head = MaskFeatureHead(config)

    def forward(self, levels: Sequence[Tensor]) -> SOLOv2Output:
        """Map six feature maps (N, C, h, w) to the class logits, kernels and mask features."""
        return SOLOv2Output(self.class_logits(levels), self.kernels(levels), self.mask_features(levels))

    def class_logits(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the class logits (N, classes, g, g) of each level."""
        return super().class_logits(levels[1:])

    def kernels(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the kernels (N, E, g, g) of each level."""
        features = self.kernel_convs([self._kernel_input(x, level) for level, x in enumerate(levels[1:])])
        return [self.conv_kernel(x) for x in features]

    def mask_features(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the mask features (N, E, H/4, W/4)."""
        p2, _, p3, p4, p5, _ = levels
        return self.mask_feature_head([p2, p3, p4, p5])

    def masks(self, levels: Sequence[Tensor], cells: Sequence[Tensor]) -> list[CandidateMasks]:
        """Compute the kernels of the cells, and mask features where there are any; see ``BaseHead.masks``."""
        patches: list[list[Tensor]] = [[] for _ in cells]
        in_use = list(self._levels_in_use(levels[1:], cells))
        inputs = [self._kernel_input(level.feature, level.level) for level in in_use]
        for level, batch in zip(in_use, self.kernel_convs(inputs), strict=True):
            for image, feature in zip(level.members, batch, strict=True):
                patches[image].append(_patches(feature, level.members[image]))
        images = [image for image, image_cells in enumerate(cells) if len(image_cells)]
        used_levels = levels if len(images) == len(cells) else [level[images] for level in levels]
        features = iter(self.mask_features(used_levels) if images else ())
        # Images without cells get features that take no memory.
        unused = levels[0].new_zeros(()).expand(self.mask_channels, *levels[0].shape[-2:])
        return [
            KernelMasks(next(features), image_cells, self._kernels_of_patches(torch.cat(image_patches)))
            if image_patches
            else KernelMasks(unused, image_cells, unused.new_zeros((0, self.mask_channels)))
            for image_cells, image_patches in zip(cells, patches, strict=True)
        ]

    def _kernel_input(self, x: Tensor, level: int) -> Tensor:
        """Append coordinates to the feature map of a level, both resized to its grid."""
        size = (self.num_grids[level], self.num_grids[level])
        return append_channels(resize(x, size), resize(coordinates(x, "xy"), size))

    def _kernels_of_patches(self, patches: Tensor) -> Tensor:
        """Return the kernels (k, E) of cells from the patches (k, 3, 3, C) around them."""
        weight, bias = (self.conv_kernel.get_parameter(name) for name in ("weight", "bias"))
        return torch.addmm(bias, patches.flatten(1), weight.permute(0, 2, 3, 1).flatten(1).T)


def _patches(feature: Tensor, cells: LevelCells) -> Tensor:
    """Return the patches (k, 3, 3, C) around cells of one level in the features (C, g, g) of its branch."""
    taps = torch.arange(3, dtype=torch.int64, device=feature.device)
    rows, columns = cells.rows[:, None, None] + taps[:, None], cells.columns[:, None, None] + taps
    # The channels of a pixel are adjacent in channels_last maps, and are copied together.
    return pad(feature.permute(1, 2, 0), (0, 0, 1, 1, 1, 1))[rows, columns]
