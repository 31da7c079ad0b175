"""Exported networks of Tiny: raw outputs in static shapes, and detections from them.

class_logits     (N, cells, classes)         of all cells of P3 to P6, level by level, row by row
distance_logits  (N, cells, 4 * bins)        of the distances to the left, top, right and bottom side
kernels          (N, cells, features + 6)    mask kernels
mask_features    (N, features, H / 4, W / 4)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from solo_infer.config import TinyConfig, TinyPostprocessConfig
from solo_infer.config.tiny import TINY_STRIDES
from solo_infer.inference.detections import Detections
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.tiny import decode_output
from solo_infer.models.tiny.head import CellPredictions
from solo_infer.models.tiny.masks import MASK_STRIDE, NUM_SHAPE_TERMS, cell_points
from solo_infer.models.tiny.network import TinyNetwork, TinyOutput


class RawHeads(nn.Module):
    """Network that returns its raw outputs as a flat tuple.

    Args:
        network: Its weights are shared.
    """

    def __init__(self, network: TinyNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map network inputs (N, 3, H, W) to the outputs named by ``output_names``."""
        stem, *maps = self.network.backbone(images)
        levels = self.network.neck(maps)
        return (*self.network.head(levels), self.network.mask_branch(stem, levels[:3]))


def export_network(network: TinyNetwork) -> nn.Module:
    """Return the network to export."""
    return RawHeads(network)


def output_names(config: TinyConfig) -> list[str]:
    """Return the names of the outputs in order."""
    return ["class_logits", "distance_logits", "kernels", "mask_features"]


def output_shapes(config: TinyConfig, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Return the shapes of the outputs for one image.

    Args:
        config: Architecture of the network.
        size: (height, width) of the network input in pixels.
    """
    cells = sum(height * width for height, width in _level_sizes(size))
    return [
        (1, cells, config.num_classes),
        (1, cells, 4 * config.distance_bins),
        (1, cells, config.mask_features + NUM_SHAPE_TERMS),
        (1, config.mask_features, size[0] // MASK_STRIDE, size[1] // MASK_STRIDE),
    ]


def decode_outputs(
    outputs: Sequence[Tensor], geometry: Geometry, config: TinyConfig, thresholds: TinyPostprocessConfig
) -> Detections:
    """Turn the raw outputs for one image into detections.

    Args:
        outputs: Tensors in the order of ``output_names``, of any float dtype.
        geometry: Sizes of the image.
        config: Architecture of the network.
        thresholds: Post-processing settings.
    """
    *cells, features = (output.float() for output in outputs)
    points = cell_points(_level_sizes(geometry.padded), features.device)
    output = TinyOutput(CellPredictions(*cells), points, features)
    (detections,) = decode_output(output, [geometry], thresholds)
    return detections


def _level_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (height, width) of P3 to P6 for a network input of a size."""
    height, width = size
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in TINY_STRIDES]
