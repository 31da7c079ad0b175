"""COCO: results (a list of detections) and data sets (images, categories and annotations)."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from solo_infer.config.categories import Categories
from solo_infer.config.validation import require_path
from solo_infer.errors import ResultError
from solo_infer.ops import rle
from solo_infer.results.formats.folder import source_path
from solo_infer.results.formats.image_ids import ImageIds
from solo_infer.results.formats.polygons import joined, trace
from solo_infer.results.formats.streamed import StreamedFile
from solo_infer.runtime.messages import quoted

if TYPE_CHECKING:
    import numpy as np

    from solo_infer.results.result import Result


def to_coco(result: Result, image_id: int | str, *, boxes: bool = True) -> list[dict[str, Any]]:
    """Return ``Result.to_coco``."""
    ids = result.categories.ids
    return [
        {
            "image_id": image_id,
            "category_id": ids[instance.label],
            "score": instance.score,
            **({"bbox": _xywh(instance.box)} if boxes else {}),
            "segmentation": instance.rle(),
        }
        for instance in result.cpu()
    ]


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def to_annotations(
    result: Result, image_id: int | str, *, first_id: int = 1, polygons_only: bool = False
) -> list[dict[str, Any]]:
    """Return the instances as "annotations" of a COCO data set.

    Each one has "id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd" (0) and "score",
    which COCO's tools ignore. Area and box are those of the mask. "segmentation" is a list of polygons along
    the edges of pixels, one for each part of the mask, or compressed RLE if the mask has holes, which
    polygons of COCO cannot have. pycocotools rasterizes both to the mask exactly. Instances without pixels
    are left out.

    Args:
        result: Result.
        image_id: Id of the image in "images".
        first_id: Id of the first annotation; the others follow.
        polygons_only: Whether to write polygons for masks with holes as well: each part is one ring, in which
            bridges join the holes to the outline (``polygons.joined``).
    """
    ids = result.categories.ids
    annotations: list[dict[str, Any]] = []
    for instance in result.cpu():
        mask = instance.mask.numpy()
        if not mask.any():
            continue
        rows, columns = mask.any(axis=1).nonzero()[0].tolist(), mask.any(axis=0).nonzero()[0].tolist()
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": ids[instance.label],
                "segmentation": _segmentation(mask, polygons_only),
                "area": int(mask.sum()),
                "bbox": [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]],
                "iscrowd": 0,
                "score": instance.score,
            }
        )
    return annotations


def _segmentation(mask: np.ndarray, polygons_only: bool) -> list[list[int]] | dict[str, Any]:
    polygons = trace(mask)
    if not polygons_only and any(polygon.holes for polygon in polygons):
        return rle.encode(mask)
    return [joined(polygon.rings).ravel().tolist() for polygon in polygons]


class CocoFile(StreamedFile):
    """Context manager that writes a COCO results file (a list, for ``COCO.loadRes``) result by result.

    In addition to COCO's keys, each instance has the "file_name" of its image. It has no "bbox", so that mask
    AP by object size is correct (see ``Result.to_coco``).

    Args:
        target: Path of the file, or a binary stream; see ``StreamedFile``.
        image_ids: ``ImageIds``, or image ids by file name. Defaults to ids derived from the sources.
        min_score: Lowest score to write, 0..1.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        image_ids: Mapping[str, int | str] | ImageIds | None = None,
        *,
        min_score: float = 0.0,
    ) -> None:
        super().__init__(target, min_score=min_score)
        self._ids = image_ids if isinstance(image_ids, ImageIds) else ImageIds(image_ids)
        self._separator = "\n"

    def _opening(self) -> str:
        return "["

    def _entries(self, result: Result) -> str:
        name = source_path(result.source).name
        entries = to_coco(result, self._ids.of(result.source, result.frame_index), boxes=False)
        frame = {"frame_index": result.frame_index, "frame_time": result.frame_time}
        extra = {"file_name": name, **(frame if result.frame_index is not None else {})}
        text = ",\n".join(json.dumps({**entry, **extra}) for entry in entries)
        if not text:
            return ""
        text, self._separator = self._separator + text, ",\n"
        return text

    def _closing(self) -> Iterator[str]:
        yield "\n]\n"


class CocoDataset(StreamedFile):
    """Context manager that writes a COCO data set (images, annotations and categories) result by result.

    It is the format of annotation files, which annotation tools import and ``fine_tune`` and ``evaluate``
    read. See ``to_annotations`` for the annotations. File names are unique: of equal ones, the second gets
    the suffix "_2".

    Args:
        target: Path of the file, or a binary stream; see ``StreamedFile``.
        image_ids: ``ImageIds``, or image ids by file name. Defaults to ids derived from the sources.
        min_score: Lowest score to write, 0..1.
        root: Folder of the images, to which each "file_name" is relative. It is the last part of the path for
            images that are elsewhere. Defaults to the last part for all.
        polygons_only: See ``to_annotations``.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        image_ids: Mapping[str, int | str] | ImageIds | None = None,
        *,
        min_score: float = 0.0,
        root: str | os.PathLike[str] | None = None,
        polygons_only: bool = False,
    ) -> None:
        super().__init__(target, min_score=min_score)
        self._ids = image_ids if isinstance(image_ids, ImageIds) else ImageIds(image_ids)
        self._root = None if root is None else os.path.abspath(require_path("root", root))
        self._polygons_only = polygons_only
        self._categories: Categories | None = None
        self._names: Counter[str] = Counter()
        self._next_id = 1  # COCO's evaluation never matches an annotation with the id 0
        self._image_lines = tempfile.TemporaryFile("w+", encoding="utf-8")  # the annotations come first

    def _opening(self) -> str:
        return '{"info": {"description": "Instances predicted by solo_infer"},\n"annotations": ['

    def _entries(self, result: Result) -> str:
        if self._categories not in (None, result.categories):
            raise ResultError(
                f"{quoted(result.source)} has other categories than the results before it: expected results "
                "of one model."
            )
        self._categories = result.categories
        height, width = result.image_size
        image_id = self._ids.of(result.source, result.frame_index)
        image = {
            "id": image_id,
            "file_name": self._file_name(result.source),
            "height": height,
            "width": width,
        }
        self._image_lines.write(f"{json.dumps(image)}\n")
        annotations = to_annotations(
            result, image_id, first_id=self._next_id, polygons_only=self._polygons_only
        )
        text = "".join(
            f"{',' if annotation['id'] > 1 else ''}\n{json.dumps(annotation)}" for annotation in annotations
        )
        self._next_id += len(annotations)
        return text

    def _file_name(self, source: str) -> str:
        path = source_path(source)
        name = path.name if path.name not in ("", "..") else "image.jpg"
        if self._root is not None and source and "://" not in source:
            absolute = os.path.abspath(os.path.expanduser(source))
            if absolute.startswith(os.path.join(self._root, "")):
                name = Path(os.path.relpath(absolute, self._root)).as_posix()
        first = Path(name)
        key = name
        while self._names[name]:
            self._names[key] += 1
            name = first.with_stem(f"{first.stem}_{self._names[key]}").as_posix()
        self._names[name] += 1
        return name

    def _closing(self) -> Iterator[str]:
        yield '\n],\n"images": ['
        self._image_lines.seek(0)
        # An interrupted result may have a line, but is not counted.
        for index, line in enumerate(islice(self._image_lines, self._images)):
            yield f"{',' if index else ''}\n{line.rstrip()}"
        categories = self._categories or Categories((), ())
        entries = [
            {"id": number, "name": name}
            for number, name in zip(categories.ids, categories.names, strict=True)
        ]
        yield f'\n],\n"categories": {json.dumps(entries)}}}\n'

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._image_lines:
            super().__exit__(error_type, error, traceback)
