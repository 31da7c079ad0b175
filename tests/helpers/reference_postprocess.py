"""mmdet's post-processing of SOLO, step by step, as the reference for the library's faster one.

It keeps every soft mask and runs Matrix-NMS on dense float masks.
"""

import torch
import torch.nn.functional as F


def bilinear(maps, **size):
    """Resize maps (N, C, H, W) bilinearly; ``size`` holds keyword arguments of ``interpolate``."""
    return F.interpolate(maps, mode="bilinear", align_corners=False, **size)


def matrix_nms(masks, labels, scores, settings):
    """Return decayed scores, labels and indices, as mmdet's ``mask_matrix_nms`` does it."""
    order = scores.argsort(descending=True, stable=True)[: settings.nms_pre]
    flat, labels, scores = masks[order].flatten(1).float(), labels[order], scores[order]
    inter = flat @ flat.T
    area = flat.sum(1)
    iou = (inter / (area[:, None] + area[None] - inter)).triu(1)
    iou = iou * (labels[:, None] == labels[None]).triu(1)
    comp = iou.max(0).values.expand(len(iou), len(iou)).T
    if settings.kernel == "gaussian":
        decay = (torch.exp(-settings.sigma * iou**2) / torch.exp(-settings.sigma * comp**2)).min(0).values
    else:
        decay = ((1 - iou) / (1 - comp)).min(0).values
    scores = scores * decay
    keep = scores >= settings.filter_thr
    scores, labels, order = scores[keep], labels[keep], order[keep]
    best = scores.argsort(descending=True, stable=True)[: settings.max_per_image]
    return scores[best], labels[best], order[best]


def detect(class_scores, masks, strides, geometry, settings):
    """Return the detections of one image.

    Args:
        class_scores: (cells, classes) float32, after the suppression of local non-maxima.
        masks: (cells, H/4, W/4) float32 mask scores of all cells.
        strides: (cells,) stride of each cell's level.
        geometry: Sizes of the image.
        settings: Post-processing settings.

    Returns:
        scores (D,), labels (D,) and masks (D, height, width) bool, best first.
    """
    cells, labels = torch.nonzero(class_scores > settings.score_thr, as_tuple=True)
    scores = class_scores[cells, labels]
    soft = masks[cells]
    binary = soft > settings.mask_thr
    area = binary.sum((1, 2)).float()
    large = area > strides[cells]
    scores, labels, soft, binary, area = (t[large] for t in (scores, labels, soft, binary, area))
    if len(scores) == 0:
        return scores, labels, torch.zeros((0, *geometry.original), dtype=torch.bool)
    scores = scores * (soft * binary).sum((1, 2)) / area
    scores, labels, keep = matrix_nms(binary, labels, scores, settings)
    if len(keep) == 0:
        return scores, labels, torch.zeros((0, *geometry.original), dtype=torch.bool)
    height, width = geometry.resized
    size = (masks.shape[-2] * 4, masks.shape[-1] * 4)
    full = bilinear(soft[keep][None], size=size)[:, :, :height, :width]
    full = bilinear(full, size=geometry.original)[0]
    return scores, labels, full > settings.mask_thr
