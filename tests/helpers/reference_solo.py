"""The plain road that the library's fast one must equal: mmdet's steps one by one, nothing saved or skipped.

It computes all mask maps, up-samples before the output convolution, keeps every soft mask, and runs
Matrix-NMS on dense float masks.
"""

import torch
import torch.nn.functional as F

from solo_infer.models.layers.conv_branch import coordinates
from solo_infer.models.solo.network import keep_local_maxima


def bilinear(maps, **size):
    return F.interpolate(maps, mode="bilinear", align_corners=False, **size)


def mask_logits(head, feature, level):
    """Return all mask logits of a level: (N, g * g, 2h, 2w), or x and y logits (N, g, 2h, 2w)."""
    x, y = coordinates(feature)
    if hasattr(head, "conv_mask_list"):
        tower = bilinear(head.mask_convs(torch.cat([feature, x, y], 1)), scale_factor=2)
        return (head.conv_mask_list[level](tower),)
    if hasattr(head, "mask_convs"):
        tower_x = tower_y = bilinear(head.mask_convs(torch.cat([feature, x, y], 1)), scale_factor=2)
    else:
        tower_x = bilinear(head.mask_convs_x(torch.cat([feature, x], 1)), scale_factor=2)
        tower_y = bilinear(head.mask_convs_y(torch.cat([feature, y], 1)), scale_factor=2)
    return head.conv_mask_list_x[level](tower_x), head.conv_mask_list_y[level](tower_y)


def all_masks(network, levels):
    """Return the mask scores (N, cells, H/4, W/4) of every cell."""
    head = network.mask_head
    size = (levels[0].shape[-2] * 2, levels[0].shape[-1] * 2)
    masks = []
    for level, feature in enumerate(levels):
        maps = [bilinear(m.sigmoid(), size=size) for m in mask_logits(head, feature, level)]
        if len(maps) == 2:
            maps = [(maps[1][:, :, None] * maps[0][:, None]).flatten(1, 2)]  # row, column
        masks.append(maps[0])
    return torch.cat(masks, 1)


def class_scores(network, levels):
    """Return the class scores (N, cells, classes)."""
    head = network.mask_head
    scores = []
    for feature, grid in zip(levels, head.num_grids, strict=True):
        logits = head.conv_cls(head.cls_convs(bilinear(feature, size=(grid, grid))))
        scores.append(keep_local_maxima(logits.sigmoid()).flatten(2).transpose(1, 2))
    return torch.cat(scores, 1)


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
    """Return scores, labels and bool masks of one image from all its class scores and soft masks."""
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
