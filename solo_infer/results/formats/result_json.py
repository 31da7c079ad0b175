"""Results as JSON-ready values, and back. ``SCHEMA`` describes the values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from solo_infer.config.categories import Categories
from solo_infer.config.validation import is_finite, is_int
from solo_infer.errors import ResultError
from solo_infer.ops import packed_masks, rle
from solo_infer.runtime.messages import quoted

if TYPE_CHECKING:
    from solo_infer.results.result import Result

SCHEMA = Path(__file__).parents[2] / "assets" / "result.schema.json"
SCHEMA_VERSION = 1
MAX_BYTES = 1 << 29  # of the masks of a result, unless the caller allows more
_MAX_JSON = 1 << 26  # characters; parsed, they may take 20 times the memory
_MAX_TEXT = 65_536  # characters of a source or a class name
_MAX_ENTRIES = 100_000  # categories, and instances


def to_dict(result: Result, *, categories: bool = True) -> dict[str, Any]:
    """Return ``Result.to_dict``."""
    height, width = result.image_size
    names, ids = result.categories.names, result.categories.ids
    known = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    frame = {"frame_index": result.frame_index, "frame_time": result.frame_time}
    return {
        "schema_version": SCHEMA_VERSION,
        "source": result.source,
        **(frame if result.frame_index is not None else {}),
        "image_size": {"height": height, "width": width},
        **({"categories": known} if categories else {}),
        "instances": [
            {
                "score": instance.score,
                "label": instance.label,
                "name": instance.name,
                "category_id": ids[instance.label],
                "box": list(instance.box),
                "mask": instance.rle(),
            }
            for instance in result.cpu()
        ],
    }


def from_json(
    text: str | bytes, *, categories: Categories | None = None, max_bytes: int = MAX_BYTES
) -> Result:
    """Return ``Result.from_json``."""
    if not isinstance(text, str | bytes | bytearray):
        raise ResultError(f"JSON of type {type(text).__name__}: expected str or bytes.")
    if len(text) > _MAX_JSON:
        raise ResultError(
            f"JSON of length {len(text)}: expected at most {_MAX_JSON}. If it is from a source that you "
            "trust, pass the values of json.loads to Result.from_dict."
        )
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ResultError("The JSON is nested too deeply: expected that of Result.to_json.") from error
    except ValueError as error:
        raise ResultError(f"The text is not JSON ({error}): expected that of Result.to_json.") from error
    return from_dict(values, categories=categories, max_bytes=max_bytes)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def from_dict(values: Any, *, categories: Categories | None = None, max_bytes: int = MAX_BYTES) -> Result:
    """Return ``Result.from_dict``."""
    from solo_infer.results.result import Result

    _require(is_int(max_bytes), "max_bytes", max_bytes, "an integer")
    is_known = categories is None or isinstance(categories, Categories)
    _require(is_known, "categories", categories, "the Categories of a model")
    _require(isinstance(values, dict), "result", values, "an object as Result.to_dict returns it")
    version = values.get("schema_version")
    _require(
        is_int(version) and version == SCHEMA_VERSION,
        '"schema_version"',
        version,
        f"{SCHEMA_VERSION}, the version that this release of solo_infer reads",
    )
    source = values.get("source")
    _require(_is_text(source), '"source"', source, f"a text of at most {_MAX_TEXT} characters")
    frame, seconds = values.get("frame_index"), values.get("frame_time")
    is_valid = frame is None or (is_int(frame) and frame >= 0)
    _require(is_valid, '"frame_index"', frame, "an integer of at least 0")
    _require(seconds is None or is_finite(seconds), '"frame_time"', seconds, "a number of seconds")
    height, width = _read_size(values.get("image_size"))
    known = _read_categories(values.get("categories"), categories)
    instances = values.get("instances")
    _require(
        isinstance(instances, list) and len(instances) <= _MAX_ENTRIES,
        '"instances"',
        instances,
        f"a list of at most {_MAX_ENTRIES} objects",
    )
    row = -(-width // 8)
    required = len(instances) * height * row + height * width  # packed masks, and one unpacked
    if required > max_bytes:
        raise ResultError(
            f"{len(instances)} masks of height {height}, width {width} take {required} bytes of memory: "
            f"expected at most {max_bytes}. Pass a larger max_bytes to Result.from_dict or from_json if the "
            "result is from a source that you trust."
        )
    packed = torch.zeros((len(instances), height, row), dtype=torch.uint8, device="cpu")
    scores, labels, boxes = [], [], []
    for index, instance in enumerate(instances):
        try:
            score, label, box = _read_instance(instance, known, height, width)
            mask = _read_mask(instance.get("mask"), height, width)
        except ResultError as error:
            raise ResultError(f"Instance {index}: {error}") from error
        packed[index] = packed_masks.pack(torch.from_numpy(mask))
        scores.append(score)
        labels.append(label)
        boxes.append(box)
    return Result(
        scores=torch.tensor(scores, dtype=torch.float32, device="cpu"),
        labels=torch.tensor(labels, dtype=torch.int64, device="cpu"),
        boxes=torch.tensor(boxes, dtype=torch.float32, device="cpu").reshape(-1, 4),
        packed_masks=packed,
        image_size=(height, width),
        categories=known,
        source=str(source),
        frame_index=frame,
        frame_time=None if seconds is None else float(seconds),
    )


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ResultError(f"{name} is {quoted(value)}: expected {expected}.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _read_size(value: Any) -> tuple[int, int]:
    sides: list[Any] = [value.get("height"), value.get("width")] if isinstance(value, dict) else []
    is_valid = bool(sides) and all(is_int(side) and 0 < side <= rle.MAX_SIDE for side in sides)
    _require(
        is_valid and sides[0] * sides[1] <= rle.MAX_PIXELS,
        '"image_size"',
        value,
        f'"height" and "width" of 1 to {rle.MAX_SIDE} pixels, at most {rle.MAX_PIXELS} in all',
    )
    return sides[0], sides[1]


def _read_categories(value: Any, categories: Categories | None) -> Categories:
    """Return the categories of the values, or those of the caller; if there are both, they are equal."""
    if value is None:
        if categories is None:
            raise ResultError(
                'The result has no "categories": pass those of the model, model.config.categories.'
            )
        return categories
    _require(
        isinstance(value, list) and len(value) <= _MAX_ENTRIES,
        '"categories"',
        value,
        f"a list of at most {_MAX_ENTRIES} objects",
    )
    for entry in value:
        is_valid = isinstance(entry, dict) and _is_text(entry.get("name")) and is_int(entry.get("id"))
        _require(is_valid, "category", entry, '"id" (an integer) and "name" (a text)')
    names, ids = tuple(entry["name"] for entry in value), tuple(entry["id"] for entry in value)
    if len(set(ids)) != len(ids):
        raise ResultError('"categories": an id occurs more than once, expected unique ids.')
    found = Categories(names, ids)
    if categories is not None and categories != found:
        raise ResultError('"categories" are not those of categories=...: expected the same names and ids.')
    return found


def _read_instance(
    instance: Any, categories: Categories, height: int, width: int
) -> tuple[float, int, list[float]]:
    _require(isinstance(instance, dict), "it", instance, "an object")
    score, label, box = (instance.get(key) for key in ("score", "label", "box"))
    _require(is_finite(score) and 0 <= score <= 1, '"score"', score, "a number in 0..1")
    last = len(categories) - 1
    _require(is_int(label) and 0 <= label <= last, '"label"', label, f"the index of a category, 0..{last}")
    for key, expected in (("name", categories.names[label]), ("category_id", categories.ids[label])):
        value = instance.get(key)
        is_equal = type(value) is type(expected) and value == expected
        _require(is_equal, f'"{key}"', value, f"{quoted(expected)}, that of label {label}")
    is_valid = isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))
    _require(
        is_valid and 0 <= box[0] <= box[2] <= width and 0 <= box[1] <= box[3] <= height,
        '"box"',
        box,
        f"x1, y1, x2, y2 in pixels, inside of the image of height {height}, width {width}",
    )
    return float(score), label, [float(side) for side in box]


def _read_mask(value: Any, height: int, width: int) -> np.ndarray:
    _require(isinstance(value, dict), '"mask"', value, "RLE with the keys size and counts")
    try:
        counts, _ = rle.check(value, height, width)
    except ValueError as error:
        raise ResultError(f'"mask": {error} Expected COCO RLE of the size of the image.') from error
    return rle.decode({"size": [height, width], "counts": counts})


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the values."""
    content: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return content
