"""The original YOLACT in plain loops, as a reference for tests. Weights have the names of its files.

Boxes are fractions of the image, the background is class 0, and the height of each anchor is its width.
"""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models.resnet import resnet50

ANCHORS_PER_CELL = 3


def in_original_names(state_dict):
    """Return the state dict of a ``YOLACTNetwork`` in the original names, with the background first."""
    renamed = {}
    for name, tensor in state_dict.items():
        module, _, rest = name.partition(".")
        if module == "backbone":
            original = f"backbone.layers.{int(rest[5]) - 1}{rest[6:]}" if rest.startswith("layer") else name
        elif module == "neck":
            blocks, index, _, leaf = rest.split(".")
            original = {
                "inner_blocks": f"fpn.lat_layers.{2 - int(index)}.{leaf}",
                "layer_blocks": f"fpn.pred_layers.{2 - int(index)}.{leaf}",
            }[blocks]
            if blocks == "layer_blocks" and int(index) > 2:
                original = f"fpn.downsample_layers.{int(index) - 3}.{leaf}"
        elif module == "bbox_head":
            layer, leaf = rest.split(".")[0], rest.split(".")[-1]
            original = {
                "head_convs": "prediction_layers.0.upfeature.0",
                "conv_cls": "prediction_layers.0.conf_layer",
                "conv_reg": "prediction_layers.0.bbox_layer",
                "conv_coeff": "prediction_layers.0.mask_layer",
            }[layer] + f".{leaf}"
            if layer == "conv_cls":
                by_anchor = tensor.reshape(ANCHORS_PER_CELL, -1, *tensor.shape[1:])
                tensor = torch.cat([by_anchor[:, -1:], by_anchor[:, :-1]], dim=1).flatten(0, 1)
        else:
            original = rest.replace("protonet", "proto_net").replace(
                "segm_branch.segm_conv", "semantic_seg_conv"
            )
        renamed[original] = tensor.clone()
    return renamed


@torch.no_grad()
def network(weights, images):
    """Return logits, deltas, coefficients (A, k), prototypes (P, h, w) and level sizes of one image."""

    def conv(name, feature, **options):
        return F.conv2d(feature, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    backbone = resnet50()
    renamed = {}
    for name in backbone.state_dict():
        original = re.sub(r"^layer(\d)", lambda match: f"layers.{int(match[1]) - 1}", name)
        if not name.startswith("fc"):
            renamed[name] = weights[f"backbone.{original}"]
    backbone.load_state_dict(renamed, strict=False)
    backbone.eval()
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
    maps = []
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        x = stage(x)
        maps.append(x)
    c3, c4, c5 = maps[1:]

    def resized(feature, other):
        return F.interpolate(feature, other.shape[-2:], mode="bilinear", align_corners=False)

    m5 = conv("fpn.lat_layers.0", c5)
    m4 = resized(m5, c4) + conv("fpn.lat_layers.1", c4)
    m3 = resized(m4, c3) + conv("fpn.lat_layers.2", c3)
    p5, p4, p3 = (conv(f"fpn.pred_layers.{n}", m, padding=1).relu() for n, m in enumerate((m5, m4, m3)))
    p6 = conv("fpn.downsample_layers.0", p5, stride=2, padding=1)
    p7 = conv("fpn.downsample_layers.1", p6, stride=2, padding=1)
    outputs, sizes = ([], [], []), []
    for level in (p3, p4, p5, p6, p7):
        feature = conv("prediction_layers.0.upfeature.0", level, padding=1).relu()
        sizes.append(tuple(level.shape[-2:]))
        for output, name in zip(outputs, ("conf", "bbox", "mask"), strict=True):
            maps = conv(f"prediction_layers.0.{name}_layer", feature, padding=1)[0]
            output.append(
                maps.reshape(ANCHORS_PER_CELL, -1, *maps.shape[-2:]).permute(2, 3, 0, 1).flatten(0, 2)
            )
    logits, deltas, coefficients = (torch.cat(output) for output in outputs)
    x = p3
    for index in (0, 2, 4):
        x = conv(f"proto_net.{index}", x, padding=1).relu()
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False).relu()
    x = conv("proto_net.10", conv("proto_net.8", x, padding=1).relu()).relu()
    return logits, deltas, coefficients.tanh(), x[0], sizes


def square_anchors(sizes, scales, side):
    """Return the anchors (A, 4) as center x, center y, width, height in fractions of the image."""
    anchors = []
    for (height, width), scale in zip(sizes, scales, strict=True):
        for row in range(height):
            for column in range(width):
                for ratio in (1, 1 / 2, 2):
                    side_length = scale * math.sqrt(ratio) / side
                    anchors.append([(column + 0.5) / width, (row + 0.5) / height, side_length, side_length])
    return np.array(anchors)


def decode(deltas, anchors):
    """Return boxes (A, 4) x1 y1 x2 y2 in fractions of the image."""
    boxes = []
    for (dx, dy, dw, dh), (x, y, w, h) in zip(deltas.tolist(), anchors.tolist(), strict=True):
        x, y = x + 0.1 * dx * w, y + 0.1 * dy * h
        w, h = w * math.exp(0.2 * dw), h * math.exp(0.2 * dh)
        boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(boxes)


def iou(a, b):
    """Return the IoU of two boxes."""
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def fast_nms(boxes, scores, iou_thr, filter_thr, top_k, max_num):
    """Return (score, label, row) of the kept boxes, best first; scores are (A, classes)."""
    kept = []
    for label in range(scores.shape[1]):
        order = sorted(range(len(boxes)), key=lambda row: -scores[row, label])[:top_k]
        for rank, row in enumerate(order):
            is_kept = all(iou(boxes[row], boxes[better]) <= iou_thr for better in order[:rank])
            if is_kept and scores[row, label] > filter_thr:
                kept.append((float(scores[row, label]), label, row))
    return sorted(kept, key=lambda entry: -entry[0])[:max_num]


def mask(coefficients, prototypes, box, size):
    """Return the mask (H, W), bool, of one box in fractions of the image."""
    soft = (prototypes * coefficients[:, None, None]).sum(dim=0).sigmoid()
    height, width = soft.shape
    for row in range(height):
        for column in range(width):
            inside_x = max(box[0] * width - 1, 0) <= column < min(box[2] * width + 1, width)
            inside_y = max(box[1] * height - 1, 0) <= row < min(box[3] * height + 1, height)
            if not (inside_x and inside_y):
                soft[row, column] = 0
    return (F.interpolate(soft[None, None], size, mode="bilinear", align_corners=False)[0, 0] > 0.5).numpy()
