"""A training image with its instances, and the changes of size that keep them together.

The box of an instance is always the bounds of its mask, so that work on masks can stay inside the boxes:
images with hundreds of small instances stay quick.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as kernels

from solo_infer.models.solo.objective import Target


class Sample(NamedTuple):
    """A training image and its instances.

    Attributes:
        image: (3, H, W) uint8 RGB.
        target: masks (n, H, W) bool, none of them empty; boxes (n, 4) float32, their bounds x1 y1 x2 y2 in
            pixels, far edge exclusive; labels (n,) int64; iscrowd (n,) bool; labelled (k,) int64, only if
            the image's labels do not cover all classes.
    """

    image: tv_tensors.Image
    target: Target

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[-2], self.image.shape[-1]


def make_sample(
    image: Tensor, masks: Tensor, boxes: Tensor, labels: Tensor, iscrowd: Tensor, labelled: Tensor | None
) -> Sample:
    """Return a sample of what its attributes say, without instances whose box is empty."""
    kept = boxes[:, 2] > boxes[:, 0]
    if not kept.all():
        masks, boxes, labels, iscrowd = masks[kept], boxes[kept], labels[kept], iscrowd[kept]
    target: Target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(image.shape[-2:])),
        "labels": labels,
        "masks": tv_tensors.Mask(masks),
        "iscrowd": iscrowd,
    }
    if labelled is not None:
        target["labelled"] = labelled
    return Sample(tv_tensors.Image(image), target)


def bounds(masks: Tensor, within: Tensor | None = None) -> Tensor:
    """Return the bounds (n, 4) float32 x1 y1 x2 y2, far edge exclusive, of masks (n, H, W) bool.

    Args:
        masks: On the CPU.
        within: (n, 4) whole numbers: boxes inside the image, outside of which nothing counts.

    Returns:
        Four zeros for a mask without a pixel.
    """
    found = np.zeros((len(masks), 4), dtype=np.float32)
    if within is None:
        within = torch.tensor([0, 0, masks.shape[-1], masks.shape[-2]]).repeat(len(masks), 1)
    for index, (mask, (left, top, right, bottom)) in enumerate(
        zip(masks.numpy(), _whole(within), strict=True)
    ):
        part = mask[top:bottom, left:right]
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        if len(rows):
            found[index] = left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
    return torch.from_numpy(found)


def areas(masks: Tensor, boxes: Tensor) -> Tensor:
    """Return how many pixels (n,) int64 of masks (n, H, W) bool lie inside boxes (n, 4)."""
    counts = [
        np.count_nonzero(mask[top:bottom, left:right])
        for mask, (left, top, right, bottom) in zip(masks.numpy(), _whole(boxes), strict=True)
    ]
    return torch.tensor(counts, dtype=torch.int64)


def resize(sample: Sample, height: int, width: int) -> Sample:
    """Scale to a size in pixels; instances that become too small to hit a pixel are dropped."""
    if (height, width) == sample.shape:
        return sample
    image = kernels.resize(sample.image, [height, width], antialias=False)
    masks = resize_masks(sample.target["masks"], sample.target["boxes"], height, width)
    scale = torch.tensor([width / sample.shape[1], height / sample.shape[0]]).repeat(2)
    scaled = sample.target["boxes"].as_subclass(Tensor) * scale
    # A pixel more on each side, for what float32 rounds away.
    within = torch.cat([scaled[:, :2].floor() - 1, scaled[:, 2:].ceil() + 1], dim=1)
    return _with_masks(sample, image, masks, within)


def resize_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Scale masks (n, H, W) bool with bounds (n, 4) to (n, height, width) bool.

    Each new pixel takes the value under its center. Bilinear and a threshold would draw a smoother outline
    where masks grow, but the head learns them at a quarter of the size, and it needs a float copy of all.
    """
    old_height, old_width = masks.shape[-2:]
    rows, columns = centers(old_height, height), centers(old_width, width)
    resized = np.zeros((len(masks), height, width), dtype=bool)
    for mask, new, (left, top, right, bottom) in zip(masks.numpy(), resized, _whole(boxes), strict=True):
        first_row, end_row = np.searchsorted(rows, (top, bottom))
        first_column, end_column = np.searchsorted(columns, (left, right))
        part = mask[rows[first_row:end_row]]
        new[first_row:end_row, first_column:end_column] = part[:, columns[first_column:end_column]]
    return torch.from_numpy(resized)


def flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    image, masks, boxes = (
        kernels.horizontal_flip(part)
        for part in (sample.image, sample.target["masks"], sample.target["boxes"])
    )
    target = sample.target
    return make_sample(image, masks, boxes, target["labels"], target["iscrowd"], target.get("labelled"))


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Cut out a window inside the image; instances without a pixel in it are dropped."""
    if (height, width) == sample.shape:
        return sample
    image, masks = (
        kernels.crop(part, top, left, height, width) for part in (sample.image, sample.target["masks"])
    )
    moved = sample.target["boxes"].as_subclass(Tensor) - torch.tensor([left, top, left, top])
    return _with_masks(sample, image, masks, moved)


def pad(sample: Sample, height: int, width: int, fill: tuple[int, int, int] = (0, 0, 0)) -> Sample:
    """Add pixels of a color, right and bottom, up to a size in pixels."""
    old_height, old_width = sample.shape
    if (height, width) == (old_height, old_width):
        return sample
    margins = [0, 0, width - old_width, height - old_height]
    image = kernels.pad(sample.image, margins, fill=list(fill))
    masks = kernels.pad(sample.target["masks"], margins)
    return _with_masks(sample, image, masks, sample.target["boxes"].as_subclass(Tensor))


def chosen(target: Target, kept: Tensor) -> Target:
    """Return a target with only those instances that a bool tensor (n,) or indices (k,) name."""
    parts = {key: target[key][kept] for key in ("boxes", "labels", "masks", "iscrowd")}
    return {**target, **parts}  # type: ignore[typeddict-item]


def _with_masks(sample: Sample, image: Tensor, masks: Tensor, within: Tensor) -> Sample:
    """Return a sample of a new image and masks that lie within boxes (n, 4), cut at the image's edges."""
    height, width = masks.shape[-2:]
    limits = torch.tensor([width, height, width, height])
    target = sample.target
    boxes = bounds(masks, torch.minimum(within.clamp(min=0), limits))
    return make_sample(image, masks, boxes, target["labels"], target["iscrowd"], target.get("labelled"))


def _whole(boxes: Tensor) -> np.ndarray:
    return boxes.numpy().astype(np.int64)


def centers(old: int, new: int) -> np.ndarray:
    """Return which old pixel lies under the center of each new one, (new,) ascending."""
    return ((2 * np.arange(new) + 1) * old) // (2 * new)
