"""YOLACT as its author describes it, in plain loops over his file's own names: what the tests compare with.

Boxes are in parts of the image, the background is class 0, and each anchor's height is set to its width.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models.resnet import resnet50

ANCHORS_PER_CELL = 3


def as_his_file(state_dict):
    """Return a YOLACT of ours under the author's names, his background first."""
    renamed = {}
    for name, tensor in state_dict.items():
        part, _, rest = name.partition(".")
        if part == "backbone":
            his = f"backbone.layers.{int(rest[5]) - 1}{rest[6:]}" if rest.startswith("layer") else name
        elif part == "neck":
            kind, index, _, leaf = rest.split(".")
            his = {
                "inner_blocks": f"fpn.lat_layers.{2 - int(index)}.{leaf}",
                "layer_blocks": f"fpn.pred_layers.{2 - int(index)}.{leaf}",
            }[kind]
            if kind == "layer_blocks" and int(index) > 2:
                his = f"fpn.downsample_layers.{int(index) - 3}.{leaf}"
        elif part == "bbox_head":
            layer, leaf = rest.split(".")[0], rest.split(".")[-1]
            his = {
                "head_convs": "prediction_layers.0.upfeature.0",
                "conv_cls": "prediction_layers.0.conf_layer",
                "conv_reg": "prediction_layers.0.bbox_layer",
                "conv_coeff": "prediction_layers.0.mask_layer",
            }[layer] + f".{leaf}"
            if layer == "conv_cls":
                by_anchor = tensor.reshape(ANCHORS_PER_CELL, -1, *tensor.shape[1:])
                tensor = torch.cat([by_anchor[:, -1:], by_anchor[:, :-1]], dim=1).flatten(0, 1)
        else:
            his = rest.replace("protonet", "proto_net").replace("segm_branch.segm_conv", "semantic_seg_conv")
        renamed[his] = tensor.clone()
    return renamed


@torch.no_grad()
def network(weights, images):
    """Return his logits, deltas, coefficients (A, k), prototypes (P, h, w) and level sizes of one image."""

    def conv(name, feature, **how):
        return F.conv2d(feature, weights[f"{name}.weight"], weights[f"{name}.bias"], **how)

    body = resnet50()
    names = {f"layer{n + 1}.": f"layers.{n}." for n in range(4)}
    own = {}
    for name in body.state_dict():
        his = name
        for ours, theirs in names.items():
            his = his.replace(ours, theirs) if name.startswith(ours) else his
        if not name.startswith("fc"):
            own[name] = weights[f"backbone.{his}"]
    body.load_state_dict(own, strict=False)
    body.eval()
    x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
    maps = []
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        x = stage(x)
        maps.append(x)
    c3, c4, c5 = maps[1:]

    def enlarged(feature, like):
        return F.interpolate(feature, like.shape[-2:], mode="bilinear", align_corners=False)

    m5 = conv("fpn.lat_layers.0", c5)
    m4 = enlarged(m5, c4) + conv("fpn.lat_layers.1", c4)
    m3 = enlarged(m4, c3) + conv("fpn.lat_layers.2", c3)
    p5, p4, p3 = (conv(f"fpn.pred_layers.{n}", m, padding=1).relu() for n, m in enumerate((m5, m4, m3)))
    p6 = conv("fpn.downsample_layers.0", p5, stride=2, padding=1)
    p7 = conv("fpn.downsample_layers.1", p6, stride=2, padding=1)
    outputs, sizes = ([], [], []), []
    for level in (p3, p4, p5, p6, p7):
        feature = conv("prediction_layers.0.upfeature.0", level, padding=1).relu()
        sizes.append(tuple(level.shape[-2:]))
        for part, name in zip(outputs, ("conf", "bbox", "mask"), strict=True):
            maps = conv(f"prediction_layers.0.{name}_layer", feature, padding=1)[0]
            part.append(
                maps.reshape(ANCHORS_PER_CELL, -1, *maps.shape[-2:]).permute(2, 3, 0, 1).flatten(0, 2)
            )
    logits, deltas, coefficients = (torch.cat(part) for part in outputs)
    x = p3
    for index in (0, 2, 4):
        x = conv(f"proto_net.{index}", x, padding=1).relu()
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False).relu()
    x = conv("proto_net.10", conv("proto_net.8", x, padding=1).relu()).relu()
    return logits, deltas, coefficients.tanh(), x[0], sizes


def square_anchors(sizes, scales, side):
    """Return his anchors (A, 4), center and sides in parts of the image, one by one."""
    anchors = []
    for (height, width), scale in zip(sizes, scales, strict=True):
        for row in range(height):
            for column in range(width):
                for ratio in (1, 1 / 2, 2):
                    breadth = scale * math.sqrt(ratio) / side
                    anchors.append([(column + 0.5) / width, (row + 0.5) / height, breadth, breadth])
    return np.array(anchors)


def decode(deltas, anchors):
    """Return boxes (A, 4) x1 y1 x2 y2 in parts of the image."""
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
    """Return (score, label, row) of what is kept, best first; scores are (A, classes)."""
    kept = []
    for label in range(scores.shape[1]):
        order = sorted(range(len(boxes)), key=lambda row: -scores[row, label])[:top_k]
        for place, row in enumerate(order):
            free = all(iou(boxes[row], boxes[better]) <= iou_thr for better in order[:place])
            if free and scores[row, label] > filter_thr:
                kept.append((float(scores[row, label]), label, row))
    return sorted(kept, key=lambda entry: -entry[0])[:max_num]


def mask(coefficients, prototypes, box, size):
    """Return the mask (H, W) bool of one box in parts of the image."""
    soft = (prototypes * coefficients[:, None, None]).sum(dim=0).sigmoid()
    height, width = soft.shape
    for row in range(height):
        for column in range(width):
            inside_x = max(box[0] * width - 1, 0) <= column < min(box[2] * width + 1, width)
            inside_y = max(box[1] * height - 1, 0) <= row < min(box[3] * height + 1, height)
            if not (inside_x and inside_y):
                soft[row, column] = 0
    return (F.interpolate(soft[None, None], size, mode="bilinear", align_corners=False)[0, 0] > 0.5).numpy()
