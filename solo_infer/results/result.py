"""Prediction results: the instances of one image."""

from __future__ import annotations

import io
import json
import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from solo_infer.config.categories import Categories
from solo_infer.config.validation import require_path
from solo_infer.errors import ResultError
from solo_infer.ops import packed_masks, rle
from solo_infer.runtime.device import resolve_device
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.output_files import refuse_overwriting

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Unpack

    from solo_infer.results.plot_options import PlotOptions

MultiIndex = slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]
_NOTEBOOK_PIXELS = 1200  # longest side of the drawing in a notebook, which embeds it in its file


@dataclass(frozen=True, eq=False)
class Instance:
    """One instance of a result.

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
    _packed: Tensor = field(repr=False)
    _width: int = field(repr=False)

    @property
    def mask(self) -> Tensor:
        """Mask (H, W), bool."""
        return packed_masks.unpack(self._packed, self._width)


@dataclass(frozen=True, eq=False)
class Result:
    """The instances of one image, best first. A result without instances has N = 0.

    Attributes:
        scores: (N,) float32 in 0..1, descending.
        labels: (N,) int64, class indices 0..classes-1, in the order of ``categories``.
        boxes: (N, 4) float32 x1 y1 x2 y2 in pixels of the image, far edge exclusive. SOLO's boxes are tight
            around the masks, and zeros for an empty mask; YOLACT's boxes are those that it detected.
        packed_masks: (N, H, ceil(W / 8)) uint8, eight pixels per byte, the first in the highest bit.
        image_size: (height, width) in pixels.
        categories: Names and COCO ids of all classes of the model.
        image: (H, W, 3) uint8 RGB, for drawing; None if it was not kept.
        source: Path or URL of the image, "" for an image in memory.
        timings: Seconds spent on this image by stage: "load" (possibly while other images were processed),
            "wait" (blocked on loading), "preprocess", "backbone", "pyramid", "classes", "masks" and "post".
            The time of a batch is divided evenly among its images. On CUDA, the stages before the last only
            measure kernel launches.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    packed_masks: Tensor
    image_size: tuple[int, int]
    categories: Categories
    image: np.ndarray | None = field(default=None, repr=False)
    source: str = ""
    timings: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> list[str]:
        """Class name of each instance."""
        return [self.categories.names[label] for label in self.labels.tolist()]

    @property
    def masks(self) -> Tensor:
        """Masks (N, H, W), bool; unpacked at each access to N x H x W bytes."""
        return packed_masks.unpack(self.packed_masks, self.image_size[1])

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.scores.device

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Instance]:
        scores, labels, boxes = self.scores.tolist(), self.labels.tolist(), self.boxes.tolist()
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
        number = _as_int(index)
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
        """Convert a slice, a boolean mask or a list of ints to indices (K,) int64."""
        count = len(self)
        try:
            indices = np.arange(count)[index] if isinstance(index, slice) else _as_array(index)
        except TypeError as error:
            raise ResultError(f"Index {quoted(index)}: {error}.") from error
        if indices.ndim != 1 or indices.dtype.kind not in "biu":
            raise ResultError(
                f"Index of type {type(index).__name__} ({indices.dtype} {indices.shape}): expected an "
                "int, a slice, a boolean mask with one value per instance, or a list of ints. To select "
                "classes, use filter(classes=...)."
            )
        if indices.dtype == np.bool_:
            if len(indices) != count:
                raise ResultError(
                    f"Boolean mask of {len(indices)} values for {count} instances: expected one value each."
                )
            indices = np.flatnonzero(indices)
        if not all(-count <= position < count for position in indices.tolist()):
            raise ResultError(f"Indices {indices.tolist()}: expected each in {-count}..{count - 1}.")
        return torch.from_numpy(indices.astype(np.int64)).to(self.device)

    def filter(
        self, min_score: float = 0.0, classes: str | int | Iterable[str | int] | None = None
    ) -> Result:
        """Return the instances with at least a given score, of the given classes.

        Args:
            min_score: Lowest score to keep, 0..1.
            classes: Names or labels of the classes to keep, or a single one. Defaults to all.

        Raises:
            ResultError: The model does not have a class, or the score is not in 0..1.
        """
        keep = self.scores >= as_fraction("min_score", min_score)
        if classes is not None:
            labels = torch.tensor(self.categories.labels(classes), dtype=torch.int64, device=self.device)
            keep &= torch.isin(self.labels, labels)
        return self._select(keep)

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

    def to_coco(self, image_id: int | str = 0, *, boxes: bool = True) -> list[dict[str, Any]]:
        """Return the instances as COCO results for ``pycocotools``.

        Each entry has "image_id", "category_id" (the official id for COCO's classes), "score", "bbox"
        (x, y, width, height in pixels) and "segmentation" (compressed RLE with text counts).

        Args:
            image_id: Id of the image in the annotation file.
            boxes: Include "bbox". ``COCO.loadRes`` then uses the area of the box instead of that of the mask,
                which changes mask AP by object size. Without "bbox", it derives both from the mask, as mmdet
                does.

        Raises:
            ResultError: The image id is neither an integer nor a text.
        """
        number = image_id if isinstance(image_id, str) else _as_int(image_id)
        if number is None:
            raise ResultError(f"image_id={quoted(image_id)}: expected an integer or a text.")
        ids = self.categories.ids
        return [
            {
                "image_id": number,
                "category_id": ids[instance.label],
                "score": instance.score,
                **({"bbox": _xywh(instance.box)} if boxes else {}),
                "segmentation": rle.encode(instance.mask.numpy()),
            }
            for instance in self.cpu()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: source, image size and instances with masks as compressed RLE."""
        height, width = self.image_size
        return {
            "source": self.source,
            "image_size": {"height": height, "width": width},
            "instances": [
                {
                    "score": instance.score,
                    "label": instance.label,
                    "name": instance.name,
                    "category_id": self.categories.ids[instance.label],
                    "box": list(instance.box),
                    "mask": rle.encode(instance.mask.numpy()),
                }
                for instance in self.cpu()
            ],
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return ``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def plot(
        self,
        image: np.ndarray | None = None,
        *,
        min_score: float = 0.0,
        alpha: float = 0.5,
        boxes: bool = False,
        captions: bool = True,
        font: str | os.PathLike[str] | None = None,
    ) -> Image.Image:
        """Return the image with the instances drawn on it.

        Args:
            image: (H, W, 3) uint8 RGB. Defaults to the segmented image.
            min_score: Lowest score to draw, 0..1.
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
        result = self.filter(min_score).cpu()
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
        if self.image is None:
            return None
        drawing = self.plot()
        drawing.thumbnail((_NOTEBOOK_PIXELS, _NOTEBOOK_PIXELS))
        buffer = io.BytesIO()
        drawing.save(buffer, format="PNG")
        return buffer.getvalue()

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


def _as_int(index: Any) -> int | None:
    """Convert an int, or a 0-d integer of numpy or torch, to int; return None for all other types."""
    is_bool = isinstance(index, bool) or "bool" in str(getattr(index, "dtype", ""))
    if is_bool or getattr(index, "ndim", 0) > 0:
        return None
    try:
        return operator.index(index)
    except (TypeError, ValueError, RuntimeError):
        return None


def _as_array(index: Any) -> np.ndarray:
    """Convert an index to a numpy array; an empty list becomes an empty array of int64."""
    try:
        array = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ResultError(f"Index of type {type(index).__name__}: {error}.") from error
    return array.astype(np.int64) if array.dtype.kind == "f" and array.shape == (0,) else array


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
