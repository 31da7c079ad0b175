"""All raw maps of a SOLO network, each layer by a call of its own: what a table of layers shows.

Predictions never go this way, since it computes the masks of all grid cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from solo_infer.errors import ConfigError
from solo_infer.models.solo import DecoupledHead, PlainHead, SOLOHead, SOLONetwork, upsample


class RawMaps(NamedTuple):
    """The logits of all levels, finest first."""

    classes: list[Tensor]  # of each level (N, classes, g, g)
    masks: list[tuple[Tensor, ...]]  # of each level one (N, g * g, 2h, 2w), or x and y, each (N, g, 2h, 2w)


def raw_maps(network: SOLONetwork, images: Tensor) -> RawMaps:
    """Return the logits of normalised images (N, 3, H, W), as mmdet's heads give them in train mode."""
    p2, p3, p4, p5, p6 = network.neck(network.backbone(images))
    p2 = F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
    p6 = F.interpolate(p6, size=p5.shape[-2:], mode="bilinear", align_corners=False)
    levels = [p2, p3, p4, p5, p6]
    masks = [_mask_logits(network.mask_head, feature, level) for level, feature in enumerate(levels)]
    return RawMaps(network.mask_head.class_logits(levels), masks)


def _mask_logits(head: SOLOHead, feature: Tensor, level: int) -> tuple[Tensor, ...]:
    if isinstance(head, PlainHead):
        return (head.conv_mask_list[level](upsample(head.mask_tower(feature))),)
    if isinstance(head, DecoupledHead):
        tower_x, tower_y = head.mask_towers(feature)
        return head.conv_mask_list_x[level](tower_x), head.conv_mask_list_y[level](tower_y)
    raise ConfigError(f"{type(head).__name__}: expected one of SOLO's heads.")
