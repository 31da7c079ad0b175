"""What users get: the instances of one image."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from solo_infer.categories import Categories
from solo_infer.errors import ResultError
from solo_infer.ops import bits, rle

if TYPE_CHECKING:
    from PIL import Image

Index = int | slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]


@dataclass(frozen=True)
class Instance:
    """One instance of a result.

    Attributes:
        score: 0..1.
        label: 0..classes-1.
        name: Class name.
        box: (x1, y1, x2, y2) in pixels of the image, far edge exclusive; zeros if the mask is empty.
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
        return bits.unpack(self._packed, self._width)


@dataclass(frozen=True)
class Result:
    """The instances of one image, best first; an image without any gives the same type with N = 0.

    Attributes:
        scores: (N,) float32, descending, 0..1.
        labels: (N,) int64, 0..classes-1, in the order of ``categories``.
        boxes: (N, 4) float32 x1 y1 x2 y2 in pixels of the image, far edge exclusive, tight around the
            masks; zeros for an empty mask.
        packed_masks: (N, H, ceil(W / 8)) uint8, eight pixels a byte, the first in the highest bit.
        image_size: (height, width) in pixels.
        categories: The names and COCO ids of all classes of the model.
        image: (H, W, 3) uint8 RGB, for drawing; None if it was not kept.
        source: The path or URL that the image was given by, "" for one in memory.
        timings: Seconds spent on this image, by stage. Images that shared a batch share its time
            evenly. On CUDA the stages before the last only count the launching of their work.
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
        return bits.unpack(self.packed_masks, self.image_size[1])

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.scores.device

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Instance]:
        for index in range(len(self)):
            yield self._instance(index)

    def __getitem__(self, index: Index) -> Any:
        """Return an ``Instance`` for an int, else a ``Result`` (slice, boolean mask, list of ints).

        Raises:
            IndexError: An int is out of range, as with a list.
            ResultError: A boolean mask has not one value per instance, or the index is of another type.
        """
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            if not -len(self) <= index < len(self):
                raise IndexError(f"instance {index} of a result with {len(self)}")
            return self._instance(int(index) % len(self))
        return self._select(index if isinstance(index, slice) else self._positions(index))

    def _instance(self, index: int) -> Instance:
        label = int(self.labels[index])
        x1, y1, x2, y2 = self.boxes[index].tolist()
        return Instance(
            score=float(self.scores[index]),
            label=label,
            name=self.categories.names[label],
            box=(x1, y1, x2, y2),
            _packed=self.packed_masks[index],
            _width=self.image_size[1],
        )

    def _select(self, index: slice | Tensor) -> Result:
        return replace(
            self,
            scores=self.scores[index],
            labels=self.labels[index],
            boxes=self.boxes[index],
            packed_masks=self.packed_masks[index],
        )

    def _positions(self, index: Any) -> Tensor:
        """Turn a boolean mask or integer positions into an index tensor."""
        given = torch.as_tensor(index, device=self.device) if not _is_empty(index) else self.labels[:0]
        if given.ndim != 1 or given.is_floating_point():
            raise ResultError(
                f"Index of shape {tuple(given.shape)} and dtype {given.dtype}: expected an int, a slice, "
                "a boolean mask with a value per instance, or a list of ints."
            )
        if given.dtype == torch.bool and len(given) != len(self):
            raise ResultError(
                f"Boolean mask of {len(given)} values for {len(self)} instances: expected one value each."
            )
        if given.dtype != torch.bool and len(given) and not bool((given.abs() <= len(self)).all()):
            raise ResultError(f"Positions {given.tolist()}: expected -{len(self)}..{len(self) - 1}.")
        return given

    def filter(self, min_score: float = 0.0, classes: Iterable[str | int] | None = None) -> Result:
        """Return the instances with at least this score, of these classes (names or labels).

        Raises:
            ResultError: A class is not one of the model's.
        """
        keep = self.scores >= min_score
        if classes is not None:
            wanted = [classes] if isinstance(classes, str) else classes
            labels = torch.tensor([self._label(item) for item in wanted], dtype=torch.int64)
            keep &= torch.isin(self.labels, labels.to(self.device))
        return self[keep]

    def _label(self, item: str | int) -> int:
        names = self.categories.names
        if isinstance(item, str) and item in names:
            return names.index(item)
        if isinstance(item, int) and 0 <= item < len(names):
            return item
        raise ResultError(f"Class {item!r}: expected one of {list(names)} or a label below {len(names)}.")

    def to(self, device: str | torch.device) -> Result:
        """Return the result with its tensors on a device."""
        return replace(
            self,
            scores=self.scores.to(device),
            labels=self.labels.to(device),
            boxes=self.boxes.to(device),
            packed_masks=self.packed_masks.to(device),
        )

    def cpu(self) -> Result:
        """Return the result with its tensors on the CPU."""
        return self.to("cpu")

    def numpy(self) -> dict[str, np.ndarray]:
        """Return "scores", "labels", "boxes" and "masks" as numpy arrays of the same shapes and types."""
        here = self.cpu()
        return {name: getattr(here, name).numpy() for name in ("scores", "labels", "boxes", "masks")}

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """Return the instances as COCO results, as ``pycocotools`` reads them.

        Each has "image_id", "category_id" (the official id for COCO's classes), "score", "bbox"
        (x, y, width, height in pixels) and "segmentation" (compressed RLE with text counts).
        """
        ids = self.categories.ids
        return [
            {
                "image_id": image_id,
                "category_id": ids[instance.label],
                "score": instance.score,
                "bbox": _xywh(instance.box),
                "segmentation": rle.encode(instance.mask.cpu().numpy()),
            }
            for instance in self
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
                    "mask": rle.encode(instance.mask.cpu().numpy()),
                }
                for instance in self
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
        from solo_infer.drawing import draw_instances

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
        from solo_infer.drawing import save_picture

        return save_picture(self.plot(**options), Path(path))

    def _repr_png_(self) -> bytes | None:
        """Show the drawing in notebooks."""
        if self.image is None:
            return None
        buffer = io.BytesIO()
        self.plot().save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.image_size
        shown = ", ".join(f"{instance.name} {instance.score:.2f}" for instance in self[:5])
        more = ", ..." if len(self) > 5 else ""
        source = f" {self.source!r}" if self.source else ""
        return f"<Result{source} {width}x{height} px, {len(self)} instances: {shown}{more}>"


def _is_empty(index: Any) -> bool:
    return hasattr(index, "__len__") and len(index) == 0


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
