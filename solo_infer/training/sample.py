"""Training samples: an image with its instances, and geometric changes of both.

The box of an instance is always the bounding box of its mask. Operations on masks can therefore be limited to
the boxes, which keeps images with hundreds of small instances fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from solo_infer.models.target import Target


class Sample(NamedTuple):
    """A training image and its instances.

    Attributes:
        image: (3, H, W) uint8 RGB.
        target: masks (n, H, W) bool, none of them empty; boxes (n, 4) float32, their bounding boxes x1 y1 x2
            y2 in pixels, far edge exclusive; labels (n,) int64; iscrowd (n,) bool; labelled (k,) int64, only
            if the annotations of the image do not cover all classes.
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
    """Return a sample without the instances whose box is empty; see ``Sample`` for the arguments."""
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


def mask_bounds(masks: Tensor, within: Tensor | None = None) -> Tensor:
    """Return the bounding boxes of masks; ``torchvision.ops.masks_to_boxes`` fails for empty masks.

    Args:
        masks: (n, H, W) bool on the CPU.
        within: (n, 4) integral boxes inside the image; pixels outside of them are ignored. Defaults to the
            whole image.

    Returns:
        (n, 4) float32 x1 y1 x2 y2, far edge exclusive; four zeros for an empty mask.
    """
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    if within is None:
        within = _on_cpu([0, 0, masks.shape[-1], masks.shape[-2]], torch.int64).repeat(len(masks), 1)
    windows = zip(masks.numpy(), _to_int(within), strict=True)
    for index, (mask, (left, top, right, bottom)) in enumerate(windows):
        window = mask[top:bottom, left:right]
        rows, columns = np.flatnonzero(window.any(axis=1)), np.flatnonzero(window.any(axis=0))
        if len(rows):
            boxes[index] = left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
    return torch.from_numpy(boxes)


def mask_areas(masks: Tensor, boxes: Tensor) -> Tensor:
    """Return the number of pixels (n,) int64 of masks (n, H, W) bool inside boxes (n, 4)."""
    counts = [
        np.count_nonzero(mask[top:bottom, left:right])
        for mask, (left, top, right, bottom) in zip(masks.numpy(), _to_int(boxes), strict=True)
    ]
    return torch.tensor(counts, dtype=torch.int64, device="cpu")


def resize(sample: Sample, height: int, width: int) -> Sample:
    """Scale to a size in pixels; instances that become too small to cover a pixel are dropped."""
    if (height, width) == sample.shape:
        return sample
    image = F.resize(sample.image, [height, width], antialias=False)
    masks = resize_masks(sample.target["masks"], sample.target["boxes"], height, width)
    scale = _on_cpu([width / sample.shape[1], height / sample.shape[0]], torch.float32).repeat(2)
    scaled = sample.target["boxes"].as_subclass(Tensor) * scale
    # One more pixel on each side absorbs the rounding of float32.
    within = torch.cat([scaled[:, :2].floor() - 1, scaled[:, 2:].ceil() + 1], dim=1)
    return _with_masks(sample, image, masks, within)


def resize_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Scale masks (n, H, W) bool with bounding boxes (n, 4) to (n, height, width) bool.

    Each new pixel takes the value at its center. Bilinear interpolation would give smoother outlines of
    enlarged masks, but needs a float copy of all masks, and the head is trained at a quarter of the size.
    """
    old_height, old_width = masks.shape[-2:]
    rows, columns = nearest_indices(old_height, height), nearest_indices(old_width, width)
    resized = np.zeros((len(masks), height, width), dtype=bool)
    for mask, output, (left, top, right, bottom) in zip(masks.numpy(), resized, _to_int(boxes), strict=True):
        first_row, end_row = np.searchsorted(rows, (top, bottom))
        first_column, end_column = np.searchsorted(columns, (left, right))
        window = mask[rows[first_row:end_row]]
        output[first_row:end_row, first_column:end_column] = window[:, columns[first_column:end_column]]
    return torch.from_numpy(resized)


def flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    target = sample.target
    image, masks, boxes = map(F.horizontal_flip, (sample.image, target["masks"], target["boxes"]))
    return make_sample(image, masks, boxes, target["labels"], target["iscrowd"], target.get("labelled"))


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Crop to a window inside the image; instances without a pixel in it are dropped."""
    if (height, width) == sample.shape:
        return sample
    image, masks = (F.crop(item, top, left, height, width) for item in (sample.image, sample.target["masks"]))
    moved = sample.target["boxes"].as_subclass(Tensor) - _on_cpu([left, top, left, top], torch.int64)
    return _with_masks(sample, image, masks, moved)


def pad(sample: Sample, height: int, width: int, fill: tuple[int, int, int] = (0, 0, 0)) -> Sample:
    """Pad with a color, right and bottom, to a size in pixels."""
    old_height, old_width = sample.shape
    if (height, width) == (old_height, old_width):
        return sample
    margins = [0, 0, width - old_width, height - old_height]
    image = F.pad(sample.image, margins, fill=list(fill))
    masks = F.pad(sample.target["masks"], margins)
    return _with_masks(sample, image, masks, sample.target["boxes"].as_subclass(Tensor))


def select_instances(target: Target, indices: Tensor) -> Target:
    """Return a target with some of its instances, given by a bool mask (n,) or indices (k,)."""
    selected = {key: target[key][indices] for key in ("boxes", "labels", "masks", "iscrowd")}
    return {**target, **selected}  # type: ignore[typeddict-item]


def _with_masks(sample: Sample, image: Tensor, masks: Tensor, within: Tensor) -> Sample:
    """Return a sample with a new image and masks.

    Args:
        sample: Sample that gives labels and crowds.
        image: (3, H, W) uint8.
        masks: (n, H, W) bool.
        within: (n, 4) boxes that contain the masks; they may exceed the image.
    """
    height, width = masks.shape[-2:]
    limits = _on_cpu([width, height, width, height], torch.int64)
    target = sample.target
    boxes = mask_bounds(masks, torch.minimum(within.clamp(min=0), limits))
    return make_sample(image, masks, boxes, target["labels"], target["iscrowd"], target.get("labelled"))


def _on_cpu(values: Sequence[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device="cpu")


def _to_int(boxes: Tensor) -> np.ndarray:
    return boxes.numpy().astype(np.int64)


def nearest_indices(old_size: int, new_size: int) -> np.ndarray:
    """Return the old pixel at the center of each new pixel along an axis, (new_size,) int64 ascending."""
    return ((2 * np.arange(new_size) + 1) * old_size) // (2 * new_size)
