"""Ground truth of images, as every network takes it for training."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import pad

from solo_infer.errors import ConfigError


class _Required(TypedDict):
    boxes: Tensor
    labels: Tensor
    masks: Tensor


class Target(_Required, total=False):
    """Ground truth of one image, in the layout of torchvision's detectors.

    Keys:
        boxes: (n, 4) float x1 y1 x2 y2 in pixels of the network input, far edge exclusive.
        labels: (n,) int64, 0..classes-1.
        masks: (n, h, w) uint8 or bool, for the top left of the padded input.
        iscrowd: (n,), optional. Crowd regions are ignored: their cells are left out of the class loss of
            their class.
        labelled: (k,) int64, optional. Classes that the labels of this image cover; the others are left out
            of the class loss. Defaults to all classes.
    """

    iscrowd: Tensor
    labelled: Tensor


class Instances(NamedTuple):
    """Instances of one image."""

    boxes: Tensor  # (n, 4) float32 x1 y1 x2 y2 in pixels of the network input
    labels: Tensor  # (n,) int64
    masks: Tensor  # (n, H, W) bool, padded to the network input


def non_crowd_instances(target: Target, size: tuple[int, int]) -> Instances:
    """Return the instances of a target that are no crowd regions, with masks padded to a size.

    Args:
        target: Ground truth of one image.
        size: (height, width) of the network input in pixels.
    """
    masks = target["masks"].bool()
    masks = pad(masks, (0, size[1] - masks.shape[-1], 0, size[0] - masks.shape[-2]))
    single = ~crowd_mask(target)
    return Instances(target["boxes"].float()[single], target["labels"][single], masks[single])


def crowd_mask(target: Target) -> Tensor:
    """Return which instances (n,), bool, of a target are crowd regions."""
    crowd = target.get("iscrowd")
    return torch.zeros_like(target["labels"], dtype=torch.bool) if crowd is None else crowd.bool()


def unlabelled_classes(target: Target, num_classes: int) -> Tensor:
    """Return the classes (num_classes,), bool, that the labels of an image do not cover."""
    unlabelled = torch.zeros(num_classes, dtype=torch.bool, device=target["labels"].device)
    if "labelled" in target:
        unlabelled[:] = True
        unlabelled[target["labelled"]] = False
    return unlabelled


def check_targets(targets: list[Target] | None, images: Tensor, num_classes: int) -> list[Target]:
    """Return the targets of images (N, 3, H, W).

    Raises:
        ConfigError: They are missing, or do not match the images or the number of classes.
    """
    if targets is None or len(targets) != len(images):
        count = "none" if targets is None else len(targets)
        raise ConfigError(f"Train mode needs one target for each of {len(images)} images, got {count}.")
    for index, target in enumerate(targets):
        _check_target(f"Target {index}", target, (images.shape[-2], images.shape[-1]), num_classes)
    return targets


def _check_target(name: str, target: Target, size: tuple[int, int], num_classes: int) -> None:
    boxes, labels, masks = target["boxes"], target["labels"], target["masks"]
    count = len(labels)
    if boxes.shape != (count, 4) or masks.ndim != 3 or len(masks) != count:
        raise ConfigError(
            f"{name}: boxes {tuple(boxes.shape)} and masks {tuple(masks.shape)} for {count} labels; "
            f"expected ({count}, 4) and ({count}, h, w)."
        )
    if masks.shape[1] > size[0] or masks.shape[2] > size[1]:
        raise ConfigError(f"{name}: masks of {tuple(masks.shape[1:])} for an input of {size} pixels.")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ConfigError(f"{name}: labels {labels.tolist()}; expected 0..{num_classes - 1}.")
