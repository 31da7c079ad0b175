"""SOLO, Decoupled SOLO, Decoupled Light SOLO and SOLOv2 as one graph, from network inputs to soft masks."""

from __future__ import annotations

from torch import Tensor, nn

from solo_infer.config import ModelConfig, PostprocessConfig
from solo_infer.export.detection_graph import (
    GraphDetections,
    best_candidates,
    mask_bounds,
    masks_of,
    pack_detections,
    suppress,
)
from solo_infer.export.solo_heads import require_no_deformable
from solo_infer.models.optimized.module_swaps import halve_p2
from solo_infer.models.optimized.optimize import fold_batch_norm
from solo_infer.models.optimized.static_masks import static_masks
from solo_infer.models.solo.network import SOLONetwork
from solo_infer.models.solo.scores import class_scores_from_logits

MASK_STRIDE = 4  # pixels of the network input per pixel of the soft masks


class SOLODetector(nn.Module):
    """SOLO network that returns detections.

    At most ``nms_pre`` candidates of an image, those of the best class scores, get masks.

    Args:
        network: Plain network; its weights are shared.
        config: Configuration of the model.

    Raises:
        ExportError: The network has deformable convolutions.
    """

    takes_any_batch = False  # torch.export makes the number of images a constant

    def __init__(self, network: SOLONetwork, config: ModelConfig) -> None:
        super().__init__()
        require_no_deformable(network)
        self.network = halve_p2(fold_batch_norm(network))
        assert isinstance(config.thresholds, PostprocessConfig)
        self.thresholds = config.thresholds

    def forward(self, images: Tensor) -> GraphDetections:
        """Map network inputs (N, 3, H, W) to detections."""
        settings, head = self.thresholds, self.network.mask_head
        levels = self.network.features(images)
        class_scores = class_scores_from_logits(head.class_logits(levels))
        found = best_candidates(class_scores, settings.score_thr, settings.nms_pre)
        soft = static_masks(head, levels).scores(found.cells)
        inside = soft > settings.mask_thr
        areas = inside.sum(dim=(2, 3)).float()
        maskness = (soft * inside).sum(dim=(2, 3)) / areas.clamp(min=1)
        valid = found.valid & (areas > head.cells.stride[found.cells])
        scores, best = suppress(
            inside.float(), areas, found.labels, found.scores * maskness * valid, settings
        )
        bounds = mask_bounds(masks_of(inside, best), MASK_STRIDE)
        return pack_detections(scores, found.labels.gather(1, best), bounds, masks_of(soft, best))
