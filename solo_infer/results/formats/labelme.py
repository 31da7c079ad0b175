"""labelme: a JSON file for each image, with polygons, and masks where there are holes."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from solo_infer.results.formats.folder import LabelFolder, file_stem, source_path
from solo_infer.results.formats.polygons import trace
from solo_infer.results.formats.text import require_text

if TYPE_CHECKING:
    from solo_infer.results.result import Result

_VERSION = "5.5.0"  # of labelme; shapes of the type "mask" are known from 5.3


def to_labelme(result: Result, image_path: str) -> dict[str, Any]:
    """Return ``Result.to_labelme``."""
    image_path = require_text("image_path", image_path)
    height, width = result.image_size
    shapes: list[dict[str, Any]] = []
    for index, instance in enumerate(result.cpu()):
        mask = instance.mask.numpy()
        polygons = trace(mask)
        common = {"label": instance.name, "flags": {}, "description": f"score {instance.score:.4f}"}
        if any(polygon.holes for polygon in polygons):
            shapes.append({**common, "group_id": None, "shape_type": "mask", **_mask_shape(mask)})
            continue
        group = index if len(polygons) > 1 else None
        shapes += [
            {
                **common,
                "group_id": group,
                "shape_type": "polygon",
                "points": polygon.exterior.astype(float).tolist(),
                "mask": None,
            }
            for polygon in polygons
        ]
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _mask_shape(mask: np.ndarray) -> dict[str, Any]:
    """Return the first and the last pixel of the window around a mask, and its content as PNG."""
    from PIL import Image

    rows, columns = mask.any(axis=1).nonzero()[0].tolist(), mask.any(axis=0).nonzero()[0].tolist()
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    buffer = io.BytesIO()
    Image.fromarray(window.astype(np.uint8)).save(buffer, format="PNG")
    return {
        "points": [[float(columns[0]), float(rows[0])], [float(columns[-1]), float(rows[-1])]],
        "mask": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }


class LabelmeFolder(LabelFolder):
    """Writer of labelme files ``NAME.json``, which refer to their images by relative paths.

    Existing files are never replaced. The arguments are those of ``ResultFolder``.
    """

    def path_of(self, source: str) -> Path:
        """Return the file of a source, unless that of another image has the same name."""
        return self.folder / f"{file_stem(source)}.json"

    def _text(self, result: Result, path: Path) -> str:
        return json.dumps(to_labelme(result, _image_path(result.source, path.parent)))


def _image_path(source: str, folder: Path) -> str:
    if not source or "://" in source:
        return source_path(source).name
    absolute = os.path.abspath(os.path.expanduser(source))
    try:
        return Path(os.path.relpath(absolute, os.path.abspath(folder))).as_posix()
    except ValueError:  # on another drive
        return Path(absolute).as_posix()
