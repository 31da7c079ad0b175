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
    """The ground truth of one image, as torchvision's detectors take it.

    Keys:
        boxes: (n, 4) float x1 y1 x2 y2 in pixels of the network input, far edge exclusive.
        labels: (n,) int64, 0..classes-1.
        masks: (n, h, w) uint8 or bool, for the top left of the padded input.
        iscrowd: (n,), optional. Crowd regions teach nothing: their cells are left out of the class loss of
            their class.
        labelled: (k,) int64, optional: the classes that this image's labels cover. The others are left
            out of the class loss. All, if not given.
    """

    iscrowd: Tensor
    labelled: Tensor


class Instances(NamedTuple):
    """Instances of one image."""

    boxes: Tensor  # (n, 4) float32 x1 y1 x2 y2 in pixels of the network input
    labels: Tensor  # (n,) int64
    masks: Tensor  # (n, H, W) bool, padded to the network input


def non_crowd_instances(target: Target, size: tuple[int, int]) -> Instances:
    """Return the instances that are learned, their masks padded to the network input."""
    masks = target["masks"].bool()
    masks = pad(masks, (0, size[1] - masks.shape[-1], 0, size[0] - masks.shape[-2]))
    single = ~crowds(target)
    return Instances(target["boxes"].float()[single], target["labels"][single], masks[single])


def crowds(target: Target) -> Tensor:
    """Return which of the instances (n,) of a target are crowd regions."""
    crowd = target.get("iscrowd")
    return torch.zeros_like(target["labels"], dtype=torch.bool) if crowd is None else crowd.bool()


def check_targets(targets: list[Target] | None, images: Tensor, classes: int) -> None:
    """Raise ConfigError if targets do not fit images (N, 3, H, W) or the number of classes."""
    if targets is None or len(targets) != len(images):
        given = "none" if targets is None else len(targets)
        raise ConfigError(f"Train mode needs a target for each of the {len(images)} images, got {given}.")
    height, width = images.shape[-2:]
    for index, target in enumerate(targets):
        boxes, labels, masks = target["boxes"], target["labels"], target["masks"]
        count = len(labels)
        if boxes.shape != (count, 4) or masks.ndim != 3 or len(masks) != count:
            raise ConfigError(
                f"Target {index}: boxes {tuple(boxes.shape)} and masks {tuple(masks.shape)} for {count} "
                f"labels; expected ({count}, 4) and ({count}, h, w)."
            )
        if masks.shape[1] > height or masks.shape[2] > width:
            raise ConfigError(
                f"Target {index}: masks of {tuple(masks.shape[1:])} for an input of {(height, width)} pixels."
            )
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ConfigError(f"Target {index}: labels {labels.tolist()}; expected 0..{classes - 1}.")
