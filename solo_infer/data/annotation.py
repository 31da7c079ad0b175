"""One instance of a COCO annotation file, and what keeps it from being used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from enum import Enum
from typing import Any, NamedTuple

from solo_infer.config.validation import is_finite
from solo_infer.data.segmentation import to_rle
from solo_infer.runtime.messages import quoted

ImageId = int | str

_FLAGS = {"0": False, "false": False, "1": True, "true": True}


class Annotation(NamedTuple):
    """An instance of an annotation file. Optional keys that are missing or null are None or False.

    Attributes:
        id: Annotation id, not checked.
        image_id: Id of its image.
        category_id: Id of its class.
        segmentation: Polygons or RLE as in the file, not checked; see ``rle``.
        area: Area in pixels as in the file.
        is_crowd: Whether "iscrowd" is set.
        is_ignored: Whether "ignore" is set. Training treats the instance like a crowd. pycocotools, and
            therefore the evaluation, disregards the key.
        bbox: Box (x, y, width, height) in pixels.
    """

    id: Any
    image_id: ImageId
    category_id: int
    segmentation: Any = None
    area: float | None = None
    is_crowd: bool = False
    is_ignored: bool = False
    bbox: tuple[float, float, float, float] | None = None

    @property
    def name(self) -> str:
        """Description for messages, such as "annotation 5 of image 139"."""
        number = "" if self.id is None else f" {quoted(self.id)}"
        return f"annotation{number} of image {quoted(self.image_id)}"

    def rle(self, height: int, width: int) -> tuple[bytes, int] | None:
        """Return the mask as counts of compressed RLE and its area in pixels, None if there is no mask.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.

        Raises:
            ValueError: The segmentation is malformed; the message names the annotation.
        """
        try:
            return to_rle(self.segmentation, height, width)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


def read_annotation(entry: dict[str, Any]) -> Annotation:
    """Return an entry of "annotations", whose "image_id" and "category_id" are checked already.

    Raises:
        ValueError: An optional key has an invalid value; the message names the annotation.
    """
    annotation = Annotation(
        entry.get("id"), entry["image_id"], entry["category_id"], entry.get("segmentation")
    )
    try:
        area = entry.get("area")
        return annotation._replace(
            area=None if area is None else check_number("area", area),
            is_crowd=_read_flag("iscrowd", entry.get("iscrowd")),
            is_ignored=_read_flag("ignore", entry.get("ignore")),
            bbox=_read_box(entry.get("bbox")),
        )
    except ValueError as error:
        raise ValueError(f"{annotation.name}: {error}") from error


def check_number(key: str, value: Any) -> float:
    """Return the number of a key.

    Raises:
        ValueError: The value is not a finite number.
    """
    if not is_finite(value):
        raise ValueError(f'"{key}" is {quoted(value)}: expected a finite number.')
    return float(value)


def _read_flag(key: str, value: Any) -> bool:
    if value is None or value is False:
        return False
    flag = _FLAGS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(flag, int | float) or flag not in (0, 1):
        raise ValueError(f'"{key}" is {quoted(value)}: expected 0 or 1.')
    return bool(flag)


def _read_box(value: Any) -> tuple[float, float, float, float] | None:
    if value is None or value == []:
        return None
    if not (isinstance(value, list) and len(value) == 4 and all(map(is_finite, value))):
        raise ValueError(f'"bbox" is {quoted(value)}: expected x, y, width and height in pixels.')
    left, top, width, height = map(float, value)
    return left, top, width, height


def is_listed(value: Any, ids: Collection[ImageId]) -> bool:
    """Return whether a value of any type is one of some ids; ``True`` is not the id 1."""
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value in ids


class Omission(Enum):
    """Reason to leave out an instance: a description, and what helps if it concerns all instances."""

    NO_MASK = (
        "without a mask (a polygon of three points or more, or RLE)",
        'Masks cannot be read from a data set of boxes: add polygons in pixels or RLE as "segmentation".',
    )
    AREA = (
        'with an "area" of 0 or less',
        'Correct "area", or remove it: then the area of the mask is used.',
    )
    BOX = (
        'with a "bbox" outside of the image or thinner than a pixel',
        'Give "bbox" as x, y, width and height in pixels, or remove it.',
    )
    EMPTY = (
        "with a mask that covers no pixel of the image",
        "Give polygons in pixels of the image, not as fractions of its size.",
    )


def describe_omissions(omissions: Counter[Omission]) -> str:
    """Return numbers and reasons, such as "2 without a mask (...), 1 with an "area" of 0 or less"."""
    return ", ".join(f"{count} {reason.value[0]}" for reason, count in omissions.most_common())


def hints(omissions: Counter[Omission]) -> str:
    """Return what helps against omissions, the most frequent first."""
    return " ".join(reason.value[1] for reason, _ in omissions.most_common())
