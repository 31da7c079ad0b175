"""Reader of the label files of the YOLO format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from solo_infer.errors import DataError
from solo_infer.runtime.messages import describe_error, quoted
from solo_infer.runtime.text_files import read_text

_MAX_BYTES = 2**26
_BOX_NUMBERS = 4  # center x, center y, width, height
_MIN_NUMBERS = 6  # of a polygon
_MAX_OUTSIDE = 0.1  # of the image's side by which a polygon may leave it


class Labels(NamedTuple):
    """Content of a label file.

    Attributes:
        instances: Line number from 1, class number, and the polygon x, y, x, y, ... as fractions of the
            image's width and height; None for a box.
        duplicates: Number of lines left out because an earlier one is equal.
    """

    instances: list[tuple[int, int, list[float] | None]]
    duplicates: int


def read_labels(path: str, classes: int) -> Labels:
    """Read a label file.

    Args:
        path: Text file with a line for each instance: its class number, then a polygon of three points or
            more, or a box.
        classes: Number of classes.

    Raises:
        DataError: The file cannot be read, or a line is malformed; the message names the line.
    """
    instances: list[tuple[int, int, list[float] | None]] = []
    seen: set[str] = set()
    lines = 0
    for number, line in _read_lines(path):
        lines += 1
        if line not in seen:
            seen.add(line)
            try:
                instances.append((number, *_parse(line, classes)))
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
    return Labels(instances, lines - len(instances))


def _read_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty with their numbers from 1."""
    try:
        if not os.path.isfile(path):
            raise ValueError("missing, or not a regular file")
        if os.path.getsize(path) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({describe_error(error)}): expected the labels of an image as text."
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.split():
            yield number, " ".join(words)


def _parse(line: str, classes: int) -> tuple[int, list[float] | None]:
    """Return the class number and the polygon of a line, None for a box."""
    words = line.split(" ")
    values = [_to_number(word) for word in words]
    label, numbers = values[0], values[1:]
    if not (0 <= label < classes and label == int(label)):
        raise ValueError(
            f'the class number is {quoted(words[0])}: expected an integer in 0..{classes - 1}, as in "names".'
        )
    if len(numbers) != _BOX_NUMBERS and (len(numbers) < _MIN_NUMBERS or len(numbers) % 2):
        raise ValueError(
            f"{len(numbers)} numbers after the class number: expected a polygon x y x y ... of three points "
            "or more (or the four of a box, which has no mask)."
        )
    outside = next((value for value in numbers if not -_MAX_OUTSIDE <= value <= 1 + _MAX_OUTSIDE), None)
    if outside is not None:
        raise ValueError(
            f"the coordinate {quoted(outside)} is not a fraction of the image's size: expected numbers in "
            f"0..1 (at most {_MAX_OUTSIDE} outside), not pixels."
        )
    return int(label), None if len(numbers) == _BOX_NUMBERS else numbers


def _to_number(word: str) -> float:
    try:
        if "_" in word:  # which float accepts
            raise ValueError
        return float(word)
    except ValueError:
        raise ValueError(f"{quoted(word)} is not a number: expected a class number and a polygon.") from None
