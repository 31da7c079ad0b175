"""All raw maps of a SOLO network, each layer by a call of its own: what a table of layers shows.

Predictions never go this way, since it computes the masks of all grid cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from solo_infer.errors import ConfigError
from solo_infer.models.layers.conv_branch import with_coordinates
from solo_infer.models.optimized.upsampled_conv import upsample
from solo_infer.models.solo.network import (
    DecoupledHead,
    DecoupledLightHead,
    PlainHead,
    SOLOHead,
    SOLONetwork,
    resize,
)


class RawMaps(NamedTuple):
    """The logits of all levels, finest first."""

    classes: list[Tensor]  # of each level (N, classes, g, g)
    masks: list[tuple[Tensor, ...]]  # of each level one (N, g * g, 2h, 2w), or x and y, each (N, g, 2h, 2w)


def raw_maps(network: SOLONetwork, images: Tensor) -> RawMaps:
    """Return the logits of normalized images (N, 3, H, W), as mmdet's heads give them in train mode."""
    p2, p3, p4, p5, p6 = network.neck(network.backbone(images))
    p2 = F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
    p6 = F.interpolate(p6, size=p5.shape[-2:], mode="bilinear", align_corners=False)
    levels, head = [p2, p3, p4, p5, p6], network.mask_head
    masks = [_mask_logits(head, feature, level) for level, feature in enumerate(levels)]
    cells = [resize(x, (grid, grid)) for x, grid in zip(levels, head.num_grids, strict=True)]
    return RawMaps([head.conv_cls(head.cls_convs(x)) for x in cells], masks)


def _mask_logits(head: SOLOHead, feature: Tensor, level: int) -> tuple[Tensor, ...]:
    if isinstance(head, PlainHead):
        tower = head.mask_convs(with_coordinates(feature, "xy"))
        return (head.conv_mask_list[level](upsample(tower)),)
    if isinstance(head, DecoupledLightHead):
        tower_x = tower_y = upsample(head.mask_convs(with_coordinates(feature, "xy")))
    elif isinstance(head, DecoupledHead):
        tower_x = upsample(head.mask_convs_x(with_coordinates(feature, "x")))
        tower_y = upsample(head.mask_convs_y(with_coordinates(feature, "y")))
    else:
        raise ConfigError(f"{type(head).__name__}: expected one of SOLO's heads.")
    return head.conv_mask_list_x[level](tower_x), head.conv_mask_list_y[level](tower_y)
