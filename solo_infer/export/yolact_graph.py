"""YOLACT as one graph: network, anchors, Fast NMS, soft masks cropped to their boxes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from solo_infer.config import ModelConfig, YOLACTPostprocessConfig
from solo_infer.export.detection_graph import GraphDetections, pack_detections, rows_of
from solo_infer.inference.yolact import class_scores
from solo_infer.models.optimized.optimize import fold_batch_norm
from solo_infer.models.yolact.anchors import decode, level_sizes
from solo_infer.models.yolact.head import ANCHORS_PER_CELL
from solo_infer.models.yolact.masks import crop
from solo_infer.models.yolact.network import YOLACTNetwork
from solo_infer.ops.fast_nms import pairwise_iou


class YOLACTDetector(nn.Module):
    """YOLACT network that returns detections, for network inputs of the size of its model.

    Args:
        network: Plain network; its weights are shared.
        config: Configuration of the model.
    """

    takes_any_batch = True

    def __init__(self, network: YOLACTNetwork, config: ModelConfig) -> None:
        super().__init__()
        self.network = fold_batch_norm(network)
        assert isinstance(config.thresholds, YOLACTPostprocessConfig)
        self.thresholds = config.thresholds
        self.side = config.preprocessing.short_side
        shapes = copy.deepcopy(network).to("meta")
        with torch.no_grad():
            features = shapes.features(
                torch.zeros(1, 3, self.side, self.side, device="meta", dtype=torch.float32)
            )
        self.sizes = level_sizes(features)
        anchors = network.anchors(self.sizes, (self.side, self.side), torch.device("cpu"))
        self.register_buffer("anchors", anchors.clone(), persistent=False)

    def forward(self, images: Tensor) -> GraphDetections:
        """Map network inputs (N, 3, S, S) to detections."""
        network, settings = self.network, self.thresholds
        levels = network.features(images)
        predictions, prototypes = network.bbox_head(levels), network.mask_head(levels[0])
        scores = class_scores(predictions.logits)  # (N, A, classes)
        index, valid = self._select_anchors(scores.amax(dim=2))
        boxes = self._boxes(rows_of(predictions.deltas, index), index)
        scores = rows_of(scores, index) * valid[..., None]
        best_labels = scores.argmax(dim=2)
        if settings.across_classes:
            scores = scores.amax(dim=2, keepdim=True)
        kept, order = self._fast_nms(scores, boxes)  # (N, classes, T)
        ranked, position = kept.flatten(1).topk(min(settings.max_per_image, kept[0].numel()), dim=1)
        rows = order.flatten(1).gather(1, position)
        labels = position.div(kept.shape[2], rounding_mode="floor")
        if settings.across_classes:
            labels = best_labels.gather(1, rows)
        coefficients = rows_of(rows_of(predictions.coefficients, index), rows)
        boxes = rows_of(boxes, rows)
        soft = self._masks(coefficients, prototypes, boxes)
        return pack_detections(ranked, labels, boxes, soft)

    def _select_anchors(self, best: Tensor) -> tuple[Tensor, Tensor]:
        """Return the anchors (N, K) int64 that enter NMS, and whether they exceed the score threshold.

        Args:
            best: (N, A) best class score of each anchor.
        """
        selected, values, start = [], [], 0
        for height, width in self.sizes:
            count = height * width * ANCHORS_PER_CELL
            level, anchors = best[:, start : start + count].topk(min(count, self.thresholds.nms_pre), dim=1)
            selected.append(anchors + start)
            values.append(level)
            start += count
        return torch.cat(selected, dim=1), torch.cat(values, dim=1) > self.thresholds.score_thr

    def _boxes(self, deltas: Tensor, index: Tensor) -> Tensor:
        """Return the boxes (N, K, 4) of anchors (N, K)."""
        # mmdet clips boxes before it compares them; the original implementation does not.
        size = None if self.network.config.is_original else (self.side, self.side)
        anchors = self.get_buffer("anchors")[index]
        boxes = decode(deltas.flatten(0, 1), anchors.flatten(0, 1), size)
        return boxes.unflatten(0, (deltas.shape[0], deltas.shape[1]))

    def _fast_nms(self, scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (N, classes, T), 0 if suppressed, and their rows of the boxes (N, K, 4)."""
        settings = self.thresholds
        ranked, order = scores.transpose(1, 2).topk(min(settings.top_k, scores.shape[1]), dim=2)
        images, classes, count = order.shape
        sorted_boxes = rows_of(boxes, order.flatten(1)).view(images * classes, count, 4)
        ious = pairwise_iou(sorted_boxes)
        position = torch.arange(count, dtype=torch.int64, device=ious.device)
        overlaps = (ious * (position[:, None] < position)).amax(dim=1).view(images, classes, count)
        return ranked * ((overlaps <= settings.iou_thr) & (ranked > settings.filter_thr)), order

    def _masks(self, coefficients: Tensor, prototypes: Tensor, boxes: Tensor) -> Tensor:
        """Return the soft masks (N, M, h, w), 0 outside their boxes."""
        height, width = prototypes.shape[-2:]
        logits = torch.bmm(coefficients, prototypes.flatten(2))
        soft = logits.sigmoid().flatten(0, 1).unflatten(1, (height, width))
        return crop(soft, (boxes / self.side).flatten(0, 1)).unflatten(0, (boxes.shape[0], boxes.shape[1]))
