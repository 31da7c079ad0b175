"""Start of a training run: model, recipe and data, with which a resumed run is compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from solo_infer.config import ModelConfig
from solo_infer.runtime.messages import quoted
from solo_infer.training.annotation_index import AnnotationIndex
from solo_infer.training.recipe import Recipe

_MAX_DIFFERENCES = 6  # in a message
_MAX_LISTED = 4  # elements of a list that a message shows whole
_MAX_VALUE = 60  # characters
_NAMES = {
    "categories.names": "classes",
    "categories.ids": "category ids",
    "images_digest": "checksum of image names and sizes",
    "annotations_digest": "checksum of annotations",
}


def fingerprint(index: AnnotationIndex) -> dict[str, Any]:
    """Return JSON-ready values that change with the images, sizes, masks or labels of a data set.

    The folder of the images does not count, so that a data set can be moved.
    """
    images, annotations = hashlib.sha256(), hashlib.sha256()
    for image in range(len(index)):
        images.update(index.name(image).encode("utf-8", "surrogateescape") + b"\0")
    for array in (index.shapes, index.labelled):
        images.update(array.tobytes())
    for array in (index.starts, index.labels, index.iscrowd):
        annotations.update(array.tobytes())
    for instance in range(len(index.labels)):
        annotations.update(index.counts[instance] + b"\0")
    return {
        "images": len(index),
        "instances": len(index.labels),
        "images_digest": images.hexdigest()[:12],
        "annotations_digest": annotations.hexdigest()[:12],
    }


def model_differences(saved: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """Return descriptions of the differences between a model's saved configuration and another one.

    Raises:
        ConfigError: The saved configuration is invalid.
    """
    return _differences(ModelConfig.from_dict(saved).to_dict(), config.to_dict())


def recipe_differences(saved: Recipe, recipe: Recipe) -> list[str]:
    """Return descriptions of the settings that a resumed run may not change, but does."""
    return _differences(dataclasses.asdict(saved.resume_key()), dataclasses.asdict(recipe.resume_key()))


def data_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return descriptions of the differences between two data sets; see ``fingerprint``."""
    return _differences(saved, current)


def summarize(differences: list[str]) -> str:
    """Return the first differences for a message."""
    more = len(differences) - _MAX_DIFFERENCES
    return "; ".join(differences[:_MAX_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return "name old -> new" for each value that differs, with the names of nested values as "a.b"."""
    before, after = _flatten(old), _flatten(new)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [_describe(_NAMES.get(name, name), before.get(name), after.get(name)) for name in names]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(values)).items():  # tuples become lists, as in a file
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _describe(name: str, old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list) and max(len(old), len(new)) > _MAX_LISTED:
        if len(old) != len(new):
            return f"number of {name} {len(old)} -> {len(new)}"
        place = next(index for index, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
        name, old, new = f"{name}[{place}]", old[place], new[place]
    return f"{name} {quoted(old, _MAX_VALUE)} -> {quoted(new, _MAX_VALUE)}"
