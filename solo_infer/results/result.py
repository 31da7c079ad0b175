"""Prediction results: the instances of one image."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from solo_infer.config.categories import Categories
from solo_infer.config.display import DISPLAY_THRESHOLD
from solo_infer.config.keywords import (
    FILTER_KEYWORDS,
    PLOT_KEYWORDS,
    SAVE_RESULT_KEYWORDS,
    explain_keywords,
)
from solo_infer.config.validation import as_int, require_path
from solo_infer.errors import ResultError
from solo_infer.ops import mask_crops
from solo_infer.ops.mask_crops import MaskCrop, MaskCrops
from solo_infer.results.exports import ResultExports
from solo_infer.results.indexing import MultiIndex, as_indices
from solo_infer.runtime.device import resolve_device
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.output_files import refuse_overwriting

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Unpack

    from solo_infer.results.formats.polygons import Polygon
    from solo_infer.results.plot_options import PlotOptions


@dataclass(frozen=True, eq=False)
class Instance:
    """One instance of a result.

    It does not keep the image in memory: its picture in notebooks shows the image as long as the result or
    another object holds that.

    Attributes:
        score: Confidence, 0..1.
        label: Class index, 0..classes-1.
        name: Class name.
        box: (x1, y1, x2, y2) in pixels of the image; see ``Result.boxes``.
    """

    score: float
    label: int
    name: str
    box: tuple[float, float, float, float]
    _packed: Tensor | MaskCrop = field(repr=False)
    _width: int = field(repr=False)
    _image: weakref.ref[np.ndarray] | None = field(default=None, repr=False)

    @property
    def mask(self) -> Tensor:
        """Mask (H, W), bool."""
        return mask_crops.unpack(self._packed, self._width)

    def rle(self) -> dict[str, Any]:
        """Return the mask as COCO's compressed RLE {"size": [H, W], "counts": text}."""
        return mask_crops.encode_rle(self._packed, self._width)

    def polygons(self) -> list[Polygon]:
        """Return the polygons of the mask: one for each part, with holes. See ``Result.to_polygons``."""
        from solo_infer.results.formats.polygons import trace

        return trace(self.mask.cpu().numpy())

    def _repr_png_(self) -> bytes:
        """Return a picture of the instance as PNG for notebooks."""
        from solo_infer.results.notebook import instance_png

        image = None if self._image is None else self._image()
        return instance_png(image, self.mask.cpu().numpy(), self.box, self.name, self.score)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_image"}


@dataclass(frozen=True, eq=False)
class Result(ResultExports):
    """The instances of one image, best first. A result without instances has N = 0.

    Attributes:
        scores: (N,) float32 in 0..1, descending.
        labels: (N,) int64, class indices 0..classes-1, in the order of ``categories``.
        boxes: (N, 4) float32 x1 y1 x2 y2 in pixels of the image, far edge exclusive. SOLO's boxes are tight
            around the masks, and zeros for an empty mask; YOLACT's boxes are those that it detected.
        packed_masks: (N, H, ceil(W / 8)) uint8, eight pixels per byte, the first in the highest bit. Of an
            image that was segmented by tiles, ``MaskCrops``, which holds only the part of each mask that has
            pixels; its method ``full`` returns the tensor.
        image_size: (height, width) in pixels.
        categories: Names and COCO ids of all classes of the model.
        image: (H, W, 3) uint8 RGB, for drawing; None if it was not kept.
        source: Path or URL of the image, "" for an image in memory.
        timings: Seconds spent on this image by stage: "load" (possibly while other images were processed),
            "wait" (blocked on loading), "preprocess", "backbone", "pyramid", "classes", "masks", "post"
            and "stitch" (of tiles). The time of a batch is divided evenly among its images. On CUDA, the
            stages before the last only measure kernel launches.
        display_threshold: Lowest score that pictures show unless they are drawn with another ``min_score``,
            0..1. A ``min_score`` of the call or of ``filter`` replaces the default of 0.3.
        frame_index: Position of the image among the frames of a video, from 0; None for other images.
        frame_time: Seconds from the first frame of a video, None for other images.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    packed_masks: Tensor | MaskCrops
    image_size: tuple[int, int]
    categories: Categories
    image: np.ndarray | None = field(default=None, repr=False)
    source: str = ""
    timings: Mapping[str, float] = field(default_factory=dict, repr=False)
    display_threshold: float = field(default=DISPLAY_THRESHOLD, repr=False)
    frame_index: int | None = None
    frame_time: float | None = None

    @property
    def names(self) -> list[str]:
        """Class name of each instance."""
        return [self.categories.names[label] for label in self.labels.tolist()]

    @property
    def masks(self) -> Tensor:
        """Masks (N, H, W), bool; unpacked at each access to N x H x W bytes."""
        return mask_crops.unpack(self.packed_masks, self.image_size[1])

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.scores.device

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Instance]:
        scores, labels, boxes = self.scores.tolist(), self.labels.tolist(), self.boxes.tolist()
        image = None if self.image is None else weakref.ref(self.image)
        for score, label, (x1, y1, x2, y2), packed in zip(
            scores, labels, boxes, self.packed_masks, strict=True
        ):
            yield Instance(
                score=score,
                label=label,
                name=self.categories.names[label],
                box=(x1, y1, x2, y2),
                _packed=packed.clone(),
                _width=self.image_size[1],
                _image=image,
            )

    @overload
    def __getitem__(self, index: int | np.integer) -> Instance: ...

    @overload
    def __getitem__(self, index: MultiIndex) -> Result: ...

    def __getitem__(self, index: Any) -> Instance | Result:
        """Return an ``Instance`` for an int, or a ``Result`` for a slice, a boolean mask or a list of ints.

        Integers, boolean masks and index arrays of numpy and torch are supported too. The returned masks are
        copies, so that keeping a few instances does not keep all masks in memory.

        Raises:
            IndexError: An int is out of range.
            ResultError: A boolean mask does not have one value per instance, an index in a list is out of
                range, or the index is of another type.
        """
        number = as_int(index)
        if number is None:
            return self._select(self._indices(index))
        if not -len(self) <= number < len(self):
            raise IndexError(f"instance {number} of a result with {len(self)}")
        (instance,) = self._select(self._indices([number]))
        return instance

    def _select(self, index: Tensor) -> Result:
        return replace(
            self,
            scores=self.scores[index],
            labels=self.labels[index],
            boxes=self.boxes[index],
            packed_masks=self.packed_masks[index],
        )

    def _indices(self, index: MultiIndex) -> Tensor:
        return torch.from_numpy(as_indices(index, len(self))).to(self.device)

    @explain_keywords("filter", FILTER_KEYWORDS)
    def filter(
        self, min_score: float | None = None, classes: str | int | Iterable[str | int] | None = None
    ) -> Result:
        """Return the instances with at least a given score, of the given classes.

        Args:
            min_score: Lowest score to keep, 0..1, and to draw. Defaults to any.
            classes: Names or labels of the classes to keep, or a single one. Defaults to all.

        Raises:
            ResultError: The model does not have a class, or the score is not in 0..1.
        """
        lowest = 0.0 if min_score is None else as_fraction("min_score", min_score)
        keep = self.scores >= lowest
        if classes is not None:
            labels = torch.tensor(self.categories.labels(classes), dtype=torch.int64, device=self.device)
            keep &= torch.isin(self.labels, labels)
        kept = self._select(keep)
        return kept if min_score is None else replace(kept, display_threshold=lowest)

    def to(self, device: str | torch.device) -> Result:
        """Return the result with its tensors on a device.

        Raises:
            DeviceError: The device is unknown or not available.
        """
        target = resolve_device(device)
        return replace(
            self,
            scores=self.scores.to(target),
            labels=self.labels.to(target),
            boxes=self.boxes.to(target),
            packed_masks=self.packed_masks.to(target),
        )

    def cpu(self) -> Result:
        """Return the result with its tensors on the CPU."""
        return self.to("cpu")

    def numpy(self) -> dict[str, np.ndarray]:
        """Return "scores", "labels", "boxes" and "masks" as numpy arrays of the same shapes and dtypes."""
        result = self.cpu()
        return {name: getattr(result, name).numpy() for name in ("scores", "labels", "boxes", "masks")}

    @explain_keywords("plot", PLOT_KEYWORDS)
    def plot(
        self,
        image: np.ndarray | None = None,
        *,
        min_score: float | None = None,
        alpha: float = 0.5,
        boxes: bool = False,
        captions: bool = True,
        font: str | os.PathLike[str] | None = None,
    ) -> Image.Image:
        """Return the image with the instances drawn on it.

        Args:
            image: (H, W, 3) uint8 RGB. Defaults to the segmented image.
            min_score: Lowest score to draw, 0..1. Defaults to ``display_threshold``.
            alpha: Opacity of the masks, 0..1.
            boxes: Whether to draw boxes.
            captions: Whether to write class names and scores.
            font: Font file for the captions. Defaults to a font of the system that has the characters.

        Raises:
            ResultError: The image was not kept, is of another size than the masks, or the font cannot be
                read.
        """
        from solo_infer.results.drawing import draw_instances

        canvas = self.image if image is None else image
        if canvas is None:
            raise ResultError("The result has no image to draw on: pass it as image=(H, W, 3) uint8 RGB.")
        alpha = as_fraction("alpha", alpha)
        result = self.filter(self.display_threshold if min_score is None else min_score).cpu()
        return draw_instances(
            canvas,
            masks=(instance.mask.numpy() for instance in result),
            boxes=result.boxes.numpy(),
            names=result.names,
            scores=result.scores.numpy(),
            alpha=alpha,
            boxes_visible=boxes,
            captions=captions,
            font=font,
        )

    @explain_keywords("save", SAVE_RESULT_KEYWORDS)
    def save(self, path: str | os.PathLike[str], **options: Unpack[PlotOptions]) -> Path:
        """Write the drawing to an image file and return its path.

        Args:
            path: Path of the file; its suffix selects the format.
            options: Options of ``plot``.

        Raises:
            ResultError: The suffix is not that of an image format, the file cannot be written, or it is the
                image that was segmented.
        """
        from solo_infer.results.drawing import save_image

        path = require_path("path", path)
        if self.source and "://" not in self.source:
            refuse_overwriting({"The drawing": path}, {"the segmented image": [self.source]})
        return save_image(self.plot(**options), path)

    def _repr_png_(self) -> bytes | None:
        """Return the drawing as PNG for notebooks, reduced in size if it is large."""
        from solo_infer.results.notebook import drawing_png

        return None if self.image is None else drawing_png(self.plot())

    def __repr__(self) -> str:
        height, width = self.image_size
        first = ", ".join(f"{instance.name} {instance.score:.2f}" for instance in self[:5])
        instances = f"{len(self)} instance{'' if len(self) == 1 else 's'}" + (f": {first}" if first else "")
        more = ", ..." if len(self) > 5 else ""
        source = f" {self.source!r}" if self.source else ""
        return f"<Result{source} {width}x{height} px, {instances}{more}>"


def as_fraction(name: str, value: Any) -> float:
    """Return a number in 0..1 as float.

    Raises:
        ResultError: It is something else.
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bytearray) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise ResultError(f"{name}={quoted(value)}: expected a number in 0..1.")
    return number
