"""What a YOLACT network is trained for, with mmdet's targets, weights and averages.

Beyond mmdet, crowd regions and classes that an image's labels leave out teach nothing. Of more than
``MASKS`` positive anchors mmdet learns the masks of a random choice; here it is every so-many-th, which is
the same in each run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.models.target import Instances, Target, check_targets, crowds, non_crowd_instances
from solo_infer.models.yolact.anchors import encode
from solo_infer.models.yolact.masks import crop, mask_scores
from solo_infer.models.yolact.targets import BACKGROUND, assign_anchors
from solo_infer.runtime.distributed import sum_over_processes

if TYPE_CHECKING:
    from solo_infer.models.yolact.network import YOLACTNetwork

BOX_WEIGHT, MASK_WEIGHT, SEMANTIC_WEIGHT = 1.5, 6.125, 1.0  # beside 1 of the class loss (configs/yolact)
NEGATIVES = 3  # hardest background anchors that count for each positive one (neg_pos_ratio)
MASKS = 100  # that are learned of an image at a time (max_masks_to_train)


class ImageTargets(NamedTuple):
    """What the network shall say of one image."""

    instances: Instances
    owners: Tensor  # (A,) int64, the instance of each anchor, ``BACKGROUND`` or ``NEUTRAL``
    positive: Tensor  # (P,) int64, the anchors that have one, ascending
    untaught: Tensor  # (classes,) bool, classes that the image's labels leave out


def yolact_losses(network: YOLACTNetwork, images: Tensor, targets: list[Target] | None) -> dict[str, Tensor]:
    """Return {"loss_cls", "loss_bbox", "loss_mask", "loss_segm"}, scalars, of images (N, 3, H, W).

    Raises:
        ConfigError: The targets do not fit the images or the classes.
    """
    check_targets(targets, images, network.config.num_classes)
    assert targets is not None
    size = (images.shape[-2], images.shape[-1])
    levels = network.features(images)
    found, prototypes = network.bbox_head(levels), network.mask_head(levels[0])
    semantic = network.mask_head.segm_branch(levels[0])
    anchors = network.anchors(levels, size)
    wanted = [_image_targets(target, anchors, size, network.config.num_classes) for target in targets]
    channels = [network.semantic_channel(label) for label in range(network.config.num_classes)]
    losses: dict[str, list[Tensor]] = {name: [] for name in network.losses}
    with torch.autocast(images.device.type, enabled=False):  # a cross entropy that halves cannot hold
        for index, image in enumerate(wanted):
            losses["loss_cls"].append(class_loss(found.logits[index], image))
            losses["loss_bbox"].append(box_loss(found.deltas[index], anchors, image))
            losses["loss_mask"].append(
                mask_loss(found.coefficients[index], prototypes[index].float(), image, size)
            )
            losses["loss_segm"].append(semantic_loss(semantic[index].float(), image, channels))
    factors = _factors(wanted, semantic)
    return {name: torch.stack(parts).sum() * factors[name] for name, parts in losses.items()}


def _factors(wanted: list[ImageTargets], semantic: Tensor) -> dict[str, float]:
    """Return what the sum of each loss is multiplied by: its weight over its average."""
    positives = [len(image.positive) for image in wanted]
    anchors, share = sum_over_processes(sum(max(count, 1) for count in positives), semantic.device)
    masks, _ = sum_over_processes(sum(min(count, MASKS) for count in positives), semantic.device)
    return {
        "loss_cls": 1.0 / (anchors * share),
        "loss_bbox": BOX_WEIGHT / (anchors * share),
        "loss_mask": MASK_WEIGHT / (max(masks, 1.0) * share),
        "loss_segm": SEMANTIC_WEIGHT / (len(wanted) * semantic.shape[-2] * semantic.shape[-1]),
    }


def _image_targets(target: Target, anchors: Tensor, size: tuple[int, int], classes: int) -> ImageTargets:
    instances = non_crowd_instances(target, size)
    has_area = (instances.boxes[:, 2:] > instances.boxes[:, :2]).all(dim=1)
    instances = Instances(*(values[has_area] for values in instances))
    regions = target["boxes"][crowds(target)].float()
    owners = assign_anchors(anchors, instances.boxes, regions)
    untaught = torch.zeros(classes, dtype=torch.bool, device=anchors.device)
    if "labelled" in target:
        untaught[:] = True
        untaught[target["labelled"]] = False
    return ImageTargets(instances, owners, torch.nonzero(owners >= 0).flatten(), untaught)


def class_loss(logits: Tensor, image: ImageTargets) -> Tensor:
    """Return the cross entropy of the positive anchors and of the hardest of the others.

    Args:
        logits: (A, classes + 1) float32, the background last.
        image: Where no anchor is positive, all others count.
    """
    labels = torch.full_like(image.owners, logits.shape[1] - 1)
    labels[image.positive] = image.instances.labels[image.owners[image.positive]]
    logits = logits.masked_fill(F.pad(image.untaught, (0, 1)), -torch.inf)
    losses = F.cross_entropy(logits, labels, reduction="none")
    negative = losses[image.owners == BACKGROUND]
    count = NEGATIVES * len(image.positive) or len(negative)
    return losses[image.positive].sum() + negative.topk(min(count, len(negative))).values.sum()


def box_loss(deltas: Tensor, anchors: Tensor, image: ImageTargets) -> Tensor:
    """Return the smooth L1 loss of the deltas (A, 4) of the positive anchors."""
    boxes = image.instances.boxes[image.owners[image.positive]]
    wanted = encode(boxes, anchors[image.positive])
    return F.smooth_l1_loss(deltas[image.positive], wanted, reduction="sum")


def mask_loss(coefficients: Tensor, prototypes: Tensor, image: ImageTargets, size: tuple[int, int]) -> Tensor:
    """Return the cross entropy of positive anchors' masks inside the true boxes, by the boxes' areas.

    Args:
        coefficients: (A, P) of all anchors.
        prototypes: (P, h, w).
        image: Its boxes are in pixels of the network input.
        size: Height and width of that in pixels.
    """
    chosen = _evenly(image.positive, MASKS)
    owners = image.owners[chosen]
    height, width = size
    relative = image.instances.boxes[owners] / prototypes.new_tensor([width, height] * 2)
    scores = crop(mask_scores(coefficients[chosen], prototypes), relative)
    wanted = _shrunk(image.instances.masks, scores.shape[-2:])[owners]
    losses = F.binary_cross_entropy(scores, wanted, reduction="none").mean(dim=(1, 2))
    return (losses / (relative[:, 2:] - relative[:, :2]).prod(dim=1)).sum()


def semantic_loss(logits: Tensor, image: ImageTargets, channels: list[int]) -> Tensor:
    """Return the cross entropy of class maps; 0 of an image without instances (mmdet's).

    Args:
        logits: (classes, h, w) float32.
        image: Its classes are learned as the union of their instances' masks.
        channels: The map of each class.
    """
    wanted = torch.zeros_like(logits)
    for mask, label in zip(
        _shrunk(image.instances.masks, logits.shape[-2:]), image.instances.labels.tolist(), strict=True
    ):
        wanted[channels[label]] = torch.maximum(wanted[channels[label]], mask)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=(1, 2))
    taught = ~image.untaught[torch.tensor(channels, device=logits.device).argsort()]
    return (losses * taught).sum() * (len(image.instances.labels) > 0)


def _shrunk(masks: Tensor, size: torch.Size) -> Tensor:
    """Return bool masks (n, H, W) as float (n, h, w), 1 where they cover more than half."""
    if len(masks) == 0:
        return masks.new_zeros((0, *size), dtype=torch.float32)
    soft = F.interpolate(masks[None].float(), size=tuple(size), mode="bilinear", align_corners=False)
    return (soft[0] > 0.5).float()


def _evenly(members: Tensor, most: int) -> Tensor:
    """Return members (P,), or so many of them from first to last."""
    if len(members) <= most:
        return members
    return members[torch.arange(most, device=members.device) * len(members) // most]
