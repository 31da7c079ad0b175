"""Exported networks of SOLO: raw outputs of the heads in static shapes, and detections from them.

    class_0 .. class_4      (N, classes, g, g)   class logits of each level, finest first
    mask_0 .. mask_4        (N, g * g, h, w)     "solo": mask logits of each cell, at the size of the level
    mask_x_0 .. mask_x_4    (N, g, 2h, 2w)       decoupled: of each column, at twice that size
    mask_y_0 .. mask_y_4    (N, g, 2h, 2w)       decoupled: of each row, at twice that size
    kernel_0 .. kernel_4    (N, E, g, g)         "solov2": kernel of each cell
    mask_features           (N, E, H/4, W/4)     "solov2": its kernel times these is a mask

mmdet up-samples the maps of "solo" before its last convolution. The two commute, which makes 3,872 maps a
quarter of the size: 220 MB of output for 800 x 1344 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.config import PostprocessConfig, SOLOConfig
from solo_infer.errors import ExportError
from solo_infer.inference.detections import Detections
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.solo import detect_image, find_candidates
from solo_infer.models.layers.deform_conv import DeformableConv
from solo_infer.models.layers.resize import upsample
from solo_infer.models.optimized.module_swaps import halve_p2
from solo_infer.models.optimized.optimize import fold_batch_norm
from solo_infer.models.solo.cells import LevelCells, cell_table
from solo_infer.models.solo.head import DecoupledHead, SOLOHead
from solo_infer.models.solo.masks import AxisMasks, AxisScores, CandidateMasks, CellMasks, KernelMasks
from solo_infer.models.solo.network import SOLONetwork
from solo_infer.models.solo.scores import class_scores_from_logits
from solo_infer.models.solo.solov2_head import SOLOv2Head

# Input pixels per pixel of the masks of "solo" and of the decoupled heads, per level.
_MAP_STRIDES = {"solo": (8, 8, 16, 32, 32), "decoupled": (4, 4, 8, 16, 16)}


class RawHeads(nn.Module):
    """Network that returns the raw outputs of its heads as a flat tuple.

    Args:
        network: Its weights are shared.
    """

    def __init__(self, network: SOLONetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map network inputs (N, 3, H, W) to the outputs named by ``output_names``."""
        levels, head = self.network.features(images), self.network.mask_head
        class_logits = head.class_logits(levels)
        if isinstance(head, SOLOv2Head):
            return (*class_logits, *head.kernels(levels), head.mask_features(levels))
        if not isinstance(head, SOLOHead):
            columns, rows = cast(DecoupledHead, head).mask_logits(levels)
            return (*class_logits, *columns, *rows)
        features = head.mask_convs(levels)
        masks = [
            F.conv2d(x, conv.get_parameter("weight"), conv.get_parameter("bias"))
            for x, conv in zip(features, head.conv_mask_list, strict=True)
        ]
        return (*class_logits, *masks)


def export_network(network: SOLONetwork) -> nn.Module:
    """Return the network to export: BatchNorm folded, P2 computed at half its size.

    Raises:
        ExportError: The network has deformable convolutions.
    """
    require_no_deformable(network)
    return RawHeads(halve_p2(fold_batch_norm(network)))


def require_no_deformable(network: SOLONetwork) -> None:
    """Raise ExportError if a network has deformable convolutions."""
    if any(isinstance(module, DeformableConv) for module in network.modules()):
        raise ExportError(
            "Deformable convolutions cannot be exported: ONNX has them from opset 19 on, and the opsets that "
            "inference engines of accelerators read are 11 and 13. Expected a model without them."
        )


def output_names(config: SOLOConfig) -> list[str]:
    """Return the names of the outputs in order: 10 for "solo", 11 for "solov2", otherwise 15."""
    axes = ("class", "mask_x", "mask_y")
    prefixes = {"solo": ("class", "mask"), "solov2": ("class", "kernel")}.get(config.head, axes)
    names = [f"{prefix}_{level}" for prefix in prefixes for level in range(len(config.num_grids))]
    return [*names, "mask_features"] if config.head == "solov2" else names


def output_shapes(config: SOLOConfig, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Return the shapes of the outputs for one image.

    Args:
        config: Architecture of the network.
        size: (height, width) of the network input in pixels.
    """
    classes: list[tuple[int, ...]] = [(1, config.num_classes, grid, grid) for grid in config.num_grids]
    if config.head == "solov2":
        channels = config.mask_channels
        kernels = [(1, channels, grid, grid) for grid in config.num_grids]
        return [*classes, *kernels, (1, channels, size[0] // 4, size[1] // 4)]
    is_solo = config.head == "solo"
    strides = _MAP_STRIDES["solo" if is_solo else "decoupled"]
    masks: list[tuple[int, ...]] = [
        (1, grid * grid if is_solo else grid, size[0] // stride, size[1] // stride)
        for grid, stride in zip(config.num_grids, strides, strict=True)
    ]
    return classes + (masks if is_solo else masks * 2)


def decode_outputs(
    outputs: Sequence[Tensor], geometry: Geometry, config: SOLOConfig, thresholds: PostprocessConfig
) -> Detections:
    """Turn the raw outputs for one image into detections.

    Args:
        outputs: Tensors in the order of ``output_names``, of any float dtype.
        geometry: Sizes of the image.
        config: Architecture of the network.
        thresholds: Post-processing settings.
    """
    levels = len(config.num_grids)
    scores = class_scores_from_logits(outputs[:levels])[0]
    candidates = find_candidates(scores, thresholds.score_thr)
    strides = cell_table(config).stride.to(scores.device)
    if config.head == "solov2":
        masks = _kernel_masks(outputs[levels:], candidates.cells.unique_consecutive())
    else:
        masks = _masks(config, outputs[levels:])
    return detect_image(candidates, masks, strides, geometry, thresholds)


def _kernel_masks(maps: Sequence[Tensor], cells: Tensor) -> CandidateMasks:
    """Return the masks of some cells (K,) of one image from its kernels and its mask features."""
    *levels, features = (tensor[0].float() for tensor in maps)
    kernels = torch.cat([level.flatten(1) for level in levels], dim=1)  # (E, cells)
    return KernelMasks(features, cells, kernels[:, cells].T)


def _masks(config: SOLOConfig, maps: Sequence[Tensor]) -> CandidateMasks:
    """Return the masks of one image from its mask logits."""
    levels = len(config.num_grids)
    height, width = maps[0].shape[-2:]
    if config.head == "solo":
        logits = partial(_cell_logits, config.num_grids, maps)
        return CellMasks(config.num_grids, (height * 2, width * 2), logits)
    size = (height, width)
    columns, rows = (
        {level: _axis_scores(logits[0], size) for level, logits in enumerate(axis)}
        for axis in (maps[:levels], maps[levels:])
    )
    return AxisMasks(config.num_grids, size, columns, rows)


def _cell_logits(num_grids: Sequence[int], maps: Sequence[Tensor], cells: LevelCells) -> Tensor:
    """Return the mask logits (k, 2h, 2w), float32, of cells of one level."""
    index = cells.rows * num_grids[cells.level] + cells.columns
    return upsample(maps[cells.level][0, index].float()[None])[0]


def _axis_scores(logits: Tensor, size: tuple[int, int]) -> AxisScores:
    """Return the scores of all columns or rows of one level from their logits (g, 2h, 2w)."""
    lines = torch.arange(len(logits), dtype=torch.int64, device=logits.device)
    return AxisScores(lines, logits.float().sigmoid(), size)
