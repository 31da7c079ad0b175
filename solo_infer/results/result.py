"""What users get: the instances of one image."""

from __future__ import annotations

import io
import json
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
from solo_infer.errors import ResultError
from solo_infer.ops import packed_masks, rle
from solo_infer.runtime.device import resolve_device

if TYPE_CHECKING:
    from PIL import Image

Several = slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]
_NOTEBOOK_PIXELS = 1200  # greatest side of the picture in a notebook, which stores it in its file


@dataclass(frozen=True, eq=False)
class Instance:
    """One instance of a result.

    Attributes:
        score: 0..1.
        label: 0..classes-1.
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
        """The mask (H, W), bool."""
        return packed_masks.unpack(self._packed, self._width)


@dataclass(frozen=True, eq=False)
class Result:
    """The instances of one image, best first; an image without any gives the same type with N = 0.

    Attributes:
        scores: (N,) float32, descending, 0..1.
        labels: (N,) int64, 0..classes-1, in the order of ``categories``.
        boxes: (N, 4) float32 x1 y1 x2 y2 in pixels of the image, far edge exclusive. SOLO's are tight
            around the masks, zeros for an empty one; YOLACT's are the boxes that it detected.
        packed_masks: (N, H, ceil(W / 8)) uint8, eight pixels a byte, the first in the highest bit.
        image_size: (height, width) in pixels.
        categories: The names and COCO ids of all classes of the model.
        image: (H, W, 3) uint8 RGB, for drawing; None if it was not kept.
        source: The path or URL that the image was given by, "" for one in memory.
        timings: Seconds spent on this image, by stage: "load" (which may go on beside other images' stages),
            "wait" (for that, with nothing else done), "preprocess", "backbone", "pyramid", "classes", "masks"
            and "post". Images that shared a batch share its time evenly. On CUDA the stages before the last
            only count the launching of their work.
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
        """The class name of each instance."""
        return [self.categories.names[label] for label in self.labels.tolist()]

    @property
    def masks(self) -> Tensor:
        """The masks (N, H, W), bool; unpacked at each access, N x H x W bytes."""
        return packed_masks.unpack(self.packed_masks, self.image_size[1])

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
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
    def __getitem__(self, index: Several) -> Result: ...

    def __getitem__(self, index: Any) -> Instance | Result:
        """Return an ``Instance`` for an int, else a ``Result`` (slice, boolean mask, list of ints).

        Numpy's and torch's integers, masks and arrays of positions count too. What comes back shares no
        memory with the masks of this result, so that a few kept instances do not keep all of them.

        Raises:
            IndexError: An int is out of range, as with a list.
            ResultError: A boolean mask has not one value per instance, a position in a list is out of
                range, or the index is of another type.
        """
        number = _as_int(index)
        if number is None:
            return self._select(self._positions(index))
        if not -len(self) <= number < len(self):
            raise IndexError(f"instance {number} of a result with {len(self)}")
        (instance,) = self._select(self._positions([number]))
        return instance

    def _select(self, index: Tensor) -> Result:
        return replace(
            self,
            scores=self.scores[index],
            labels=self.labels[index],
            boxes=self.boxes[index],
            packed_masks=self.packed_masks[index],
        )

    def _positions(self, index: Any) -> Tensor:
        """Turn a slice, a boolean mask or a list of positions into positions (K,) int64."""
        count = len(self)
        given = np.arange(count)[index] if isinstance(index, slice) else _as_array(index)
        if given.ndim != 1 or given.dtype.kind not in "biu":
            raise ResultError(
                f"Index of type {type(index).__name__} ({given.dtype} {given.shape}): expected an int, "
                "a slice, a boolean mask with a value per instance, or a list of ints. For classes use "
                "filter(classes=...)."
            )
        if given.dtype == np.bool_:
            if len(given) != count:
                raise ResultError(
                    f"Boolean mask of {len(given)} values for {count} instances: expected one value each."
                )
            given = np.flatnonzero(given)
        if not all(-count <= position < count for position in given.tolist()):
            raise ResultError(f"Positions {given.tolist()}: expected each in {-count}..{count - 1}.")
        return torch.from_numpy(given.astype(np.int64)).to(self.device)

    def filter(
        self, min_score: float = 0.0, classes: str | int | Iterable[str | int] | None = None
    ) -> Result:
        """Return the instances with at least this score, of these classes (names or labels, or just one).

        Raises:
            ResultError: A class is not one of the model's, or the score is not in 0..1.
        """
        if not 0.0 <= min_score <= 1.0:
            raise ResultError(f"min_score={min_score!r}: expected a score in 0..1.")
        keep = self.scores >= min_score
        if classes is not None:
            wanted = torch.tensor(self.categories.labels(classes), dtype=torch.int64)
            keep &= torch.isin(self.labels, wanted.to(self.device))
        return self._select(keep)

    def to(self, device: str | torch.device) -> Result:
        """Return the result with its tensors on a device.

        Raises:
            DeviceError: The device is unknown or not available here.
        """
        where = resolve_device(device)
        return replace(
            self,
            scores=self.scores.to(where),
            labels=self.labels.to(where),
            boxes=self.boxes.to(where),
            packed_masks=self.packed_masks.to(where),
        )

    def cpu(self) -> Result:
        """Return the result with its tensors on the CPU."""
        return self.to("cpu")

    def numpy(self) -> dict[str, np.ndarray]:
        """Return "scores", "labels", "boxes" and "masks" as numpy arrays of the same shapes and types."""
        here = self.cpu()
        return {name: getattr(here, name).numpy() for name in ("scores", "labels", "boxes", "masks")}

    def to_coco(self, image_id: int | str = 0, *, boxes: bool = True) -> list[dict[str, Any]]:
        """Return the instances as COCO results, as ``pycocotools`` reads them.

        Each has "image_id", "category_id" (the official id for COCO's classes), "score", "bbox"
        (x, y, width, height in pixels) and "segmentation" (compressed RLE with text counts).

        Args:
            image_id: The image's id in the annotation file.
            boxes: Give "bbox". ``COCO.loadRes`` takes its area for the mask's, which shifts mask AP by
                object size; without "bbox" it derives both box and area from the mask, as mmdet does.
        """
        number = image_id if isinstance(image_id, str) else operator.index(image_id)
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
        """Return JSON-ready values: the image's size and source, each instance with its RLE mask."""
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
    ) -> Image.Image:
        """Return the image with the instances drawn on it.

        Args:
            image: (H, W, 3) uint8 RGB; the image that was segmented if not given.
            min_score: Leave out instances below this score.
            alpha: Opacity of the masks, 0..1.
            boxes: Draw boxes.
            captions: Write class name and score.

        Raises:
            ResultError: No image was kept, or it has another size than the masks.
        """
        from solo_infer.results.drawing import draw_instances

        canvas = self.image if image is None else image
        if canvas is None:
            raise ResultError("The result holds no image to draw on: pass it as image=(H, W, 3) uint8 RGB.")
        shown = self.filter(min_score).cpu()
        return draw_instances(
            canvas,
            masks=(instance.mask.numpy() for instance in shown),
            boxes=shown.boxes.numpy(),
            labels=shown.labels.numpy(),
            names=shown.names,
            scores=shown.scores.numpy(),
            alpha=alpha,
            boxes_visible=boxes,
            captions=captions,
        )

    def save(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Write the drawing to a picture file (type by suffix); options are those of ``plot``.

        Raises:
            ResultError: The suffix is no picture's, or the file cannot be written.
        """
        from solo_infer.results.drawing import save_picture

        return save_picture(self.plot(**options), Path(path))

    def _repr_png_(self) -> bytes | None:
        """Show the drawing in notebooks, made smaller where it is large."""
        if self.image is None:
            return None
        picture = self.plot()
        picture.thumbnail((_NOTEBOOK_PIXELS, _NOTEBOOK_PIXELS))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.image_size
        shown = ", ".join(f"{instance.name} {instance.score:.2f}" for instance in self[:5])
        found = f"{len(self)} instance{'' if len(self) == 1 else 's'}" + (f": {shown}" if shown else "")
        more = ", ..." if len(self) > 5 else ""
        source = f" {self.source!r}" if self.source else ""
        return f"<Result{source} {width}x{height} px, {found}{more}>"


def _as_int(index: Any) -> int | None:
    """Return the int that an int, or a 0-d integer of numpy or torch, stands for; None for all else."""
    is_bool = isinstance(index, bool) or "bool" in str(getattr(index, "dtype", ""))
    if is_bool or getattr(index, "ndim", 0) > 0:
        return None
    try:
        return operator.index(index)
    except TypeError:
        return None


def _as_array(index: Any) -> np.ndarray:
    """Return an index as a numpy array; what holds nothing counts as no positions."""
    try:
        given = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
    except (TypeError, ValueError) as error:
        raise ResultError(f"Index of type {type(index).__name__}: {error}.") from error
    return given.astype(np.int64) if given.dtype.kind == "f" and given.shape == (0,) else given


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
