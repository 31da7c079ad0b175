"""Tiny as one graph: network, candidates, NMS of boxes and masks, soft masks."""

from __future__ import annotations

from torch import Tensor, nn

from solo_infer.config import ModelConfig, TinyPostprocessConfig
from solo_infer.export.detection_graph import (
    GraphDetections,
    best_candidates,
    greedy_keep,
    mask_bounds,
    masks_of,
    pack_detections,
    pairs_in_order,
    rows_of,
    suppress,
)
from solo_infer.inference.nms import compared_labels
from solo_infer.inference.tiny import class_scores, duplicate_weights, merge_cells
from solo_infer.inference.tiny_masks import cell_mask_logits, inside_threshold, soft_masks
from solo_infer.models.optimized.optimize import fold_batch_norm
from solo_infer.models.tiny.masks import MASK_STRIDE, decode_boxes
from solo_infer.models.tiny.network import TinyNetwork
from solo_infer.ops.fast_nms import pairwise_iou

# Candidates per image whose masks are computed, after the NMS of their boxes. Matrix-NMS compares all pairs
# of them; a COCO photo has a few dozen.
MASK_CAPACITY = 200


class TinyDetector(nn.Module):
    """Tiny network that returns detections.

    Args:
        network: Plain network; its weights are shared.
        config: Configuration of the model.
    """

    takes_any_batch = True

    def __init__(self, network: TinyNetwork, config: ModelConfig) -> None:
        super().__init__()
        self.network = fold_batch_norm(network)
        assert isinstance(config.thresholds, TinyPostprocessConfig)
        self.thresholds = config.thresholds

    def forward(self, images: Tensor) -> GraphDetections:
        """Map network inputs (N, 3, H, W) to detections."""
        settings = self.thresholds
        stem, *maps = self.network.backbone(images)
        levels = self.network.neck(maps)
        cells = self.network.head(levels)
        features = self.network.mask_branch(stem, levels[:3])
        found = best_candidates(class_scores(cells.class_logits), settings.score_thr, settings.nms_pre)
        points = self.network.points(levels)[found.cells]
        boxes = decode_boxes(rows_of(cells.distance_logits, found.cells), points)
        valid_scores = found.scores * found.valid
        groups = compared_labels(found.labels, settings)
        ious = pairwise_iou(boxes)
        scores = valid_scores * self._kept_by_boxes(ious, groups)
        scores, index = scores.topk(min(MASK_CAPACITY, settings.nms_pre), dim=1)
        labels = found.labels.gather(1, index)
        compared = groups.gather(1, index)[:, :, None] == groups[:, None]
        weights = duplicate_weights(rows_of(ious, index) * compared, valid_scores, index)
        logits = cell_mask_logits(*merge_cells(weights, rows_of(cells.kernels, found.cells), boxes), features)
        soft = logits.sigmoid()
        inside = soft > inside_threshold(settings.mask_thr)
        areas = inside.sum(dim=(2, 3)).float()
        maskness = (soft * inside).sum(dim=(2, 3)) / areas.clamp(min=1)
        scores, best = suppress(inside.float(), areas, labels, scores * maskness, settings)
        chosen = masks_of(logits, best)
        bounds = mask_bounds(masks_of(inside, best), MASK_STRIDE)
        return pack_detections(scores, labels.gather(1, best), bounds, soft_masks(chosen))

    def _kept_by_boxes(self, ious: Tensor, groups: Tensor) -> Tensor:
        """Return which candidates (N, K), best first, NMS of boxes with IoUs (N, K, K) keeps, 1 or 0."""
        ordered = pairs_in_order(ious, groups)
        return greedy_keep((ordered > self.thresholds.box_iou).float())
