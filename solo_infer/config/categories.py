"""Class names and the category ids that COCO-format files use for them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from solo_infer.config.suggestions import did_you_mean
from solo_infer.config.validation import bounded_repr
from solo_infer.errors import ConfigError, ResultError


@dataclass(frozen=True)
class Categories:
    """Classes of a model; a label 0..n-1 is an index into both tuples.

    Attributes:
        names: Class names.
        ids: COCO category ids, all different. Defaults to 1..n.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names, ids = _as_tuple("names", self.names), _as_tuple("ids", self.ids)
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(f"Category names {bounded_repr(names)}: expected a sequence of strings.")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "ids", ids or tuple(range(1, len(names) + 1)))
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in self.ids):
            raise ConfigError(f"Category ids {bounded_repr(self.ids)}: expected integers.")
        if len(self.ids) != len(self.names) or len(set(self.ids)) != len(self.ids):
            raise ConfigError(
                f"{len(self.names)} names need as many different ids, got {bounded_repr(self.ids)}."
            )

    def __len__(self) -> int:
        return len(self.names)

    def labels(self, classes: str | int | Iterable[str | int]) -> list[int]:
        """Return the labels of one class or several, each given by its name or label.

        Raises:
            ResultError: There is no such class; the message suggests similar names.
        """
        if isinstance(classes, str):
            return [self._label(classes)]
        try:
            several = list(classes)  # type: ignore[arg-type]
        except TypeError:  # a single label, also of numpy or torch
            several = [classes]  # type: ignore[list-item]
        return [self._label(item) for item in several]

    def _label(self, item: str | int) -> int:
        if isinstance(item, str):
            if item in self.names:
                return self.names.index(item)
            raise ResultError(
                f"No class {bounded_repr(item)}. {did_you_mean(item, self.names)}"
                f"Classes: {', '.join(self.names)}."
            )
        try:
            label = operator.index(item)  # numpy's and torch's integers too
        except (TypeError, ValueError, RuntimeError):
            label = -1
        if isinstance(item, bool) or not 0 <= label < len(self):
            raise ResultError(f"Class {bounded_repr(item)}: expected a name, or a label 0..{len(self) - 1}.")
        return label


def _as_tuple(name: str, values: Any) -> tuple[Any, ...]:
    """Return a sequence as a tuple; text is none, although it has characters."""
    if isinstance(values, Iterable) and not isinstance(values, str | bytes):
        try:
            return tuple(values)
        except TypeError:  # an array without axes
            pass
    raise ConfigError(f"Category {name} {bounded_repr(values)}: expected a sequence.")


_COCO_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, "
    "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, "
    "backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, "
    "baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, "
    "bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, "
    "potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, "
    "oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
# Ids 1..90 without the ten that COCO's instance annotations never used.
_UNUSED_COCO_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}

COCO = Categories(
    tuple(_COCO_NAMES.split(", ")),
    tuple(number for number in range(1, 91) if number not in _UNUSED_COCO_IDS),
)


def unnamed(count: int) -> Categories:
    """Return COCO's categories if there are 80 classes, else "class 0", "class 1", ..."""
    return COCO if count == len(COCO) else Categories(tuple(f"class {label}" for label in range(count)))
