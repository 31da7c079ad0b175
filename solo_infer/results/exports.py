"""Conversions of results to the formats of other programs, and back from JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from solo_infer.config.categories import Categories
from solo_infer.config.validation import as_int
from solo_infer.errors import ResultError
from solo_infer.results.formats.result_json import MAX_BYTES
from solo_infer.runtime.messages import quoted

if TYPE_CHECKING:
    from PIL import Image

    from solo_infer.results.formats.polygons import Polygon
    from solo_infer.results.result import Result


class ResultExports:
    """Base class of ``Result`` with its conversions. Each format is a module of ``results/formats``."""

    def to_dict(self, *, categories: bool = True) -> dict[str, Any]:
        """Return JSON-ready values: source, image size, and instances with masks as compressed RLE.

        ``from_dict`` reads them. ``assets/result.schema.json`` in the package is their JSON schema, whose
        version is the value of "schema_version".

        Args:
            categories: Include the names and ids of all classes of the model, which a client needs to rebuild
                the result without the model.
        """
        from solo_infer.results.formats.result_json import to_dict

        return to_dict(self._result, categories=categories)

    def to_json(self, indent: int | None = None, *, categories: bool = True) -> str:
        """Return ``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(categories=categories), indent=indent)

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], *, categories: Categories | None = None, max_bytes: int = MAX_BYTES
    ) -> Result:
        """Return the result of which ``to_dict`` returned the values, on the CPU.

        Scores, labels, boxes and masks are equal to those of the original; image and timings are missing. All
        values are checked, so that they may come from a source that is not trusted. Unknown keys are ignored.

        Args:
            values: Values of ``to_dict``, also after a way through JSON.
            categories: Classes of the model, for values without "categories".
            max_bytes: Upper limit of the memory for the masks in bytes.

        Raises:
            ResultError: The values are not those of a result, or need more memory.
        """
        from solo_infer.results.formats.result_json import from_dict

        return from_dict(values, categories=categories, max_bytes=max_bytes)

    @classmethod
    def from_json(
        cls, text: str | bytes, *, categories: Categories | None = None, max_bytes: int = MAX_BYTES
    ) -> Result:
        """Return the result of which ``to_json`` returned the text. See ``from_dict``.

        Raises:
            ResultError: The text is not JSON, longer than 64 MiB, or not that of a result.
        """
        from solo_infer.results.formats.result_json import from_json

        return from_json(text, categories=categories, max_bytes=max_bytes)

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
        from solo_infer.results.formats.coco import to_coco

        number = image_id if isinstance(image_id, str) else as_int(image_id)
        if number is None:
            raise ResultError(f"image_id={quoted(image_id)}: expected an integer or a text.")
        return to_coco(self._result, number, boxes=boxes)

    def to_polygons(self) -> list[list[Polygon]]:
        """Return the polygons of each instance: one for each part of its mask, with holes.

        Vertices are corners of pixels. ``solo_infer.results.formats.polygons.rasterize`` returns the mask.
        """
        return [instance.polygons() for instance in self._result.cpu()]

    def to_yolo(self, *, scores: bool = False) -> str:
        """Return the lines of a YOLO segmentation file: a label and a ring as fractions of the image size.

        A mask with holes or several parts is one ring, in which bridges of no width join all rings. It covers
        the mask exactly by the even-odd rule, but holes are lost in programs that ignore that rule. Instances
        without pixels have no line.

        Args:
            scores: Write the score at the end of each line, which data sets do not have.
        """
        from solo_infer.results.formats.yolo import to_yolo

        return to_yolo(self._result, scores=scores)

    def to_labelme(self, image_path: str | None = None) -> dict[str, Any]:
        """Return the content of a labelme file.

        Parts of an instance are polygons of one "group_id". An instance with holes is a shape of the type
        "mask", which labelme 5.3 and later read.

        Args:
            image_path: Path of the image, relative to the file. Defaults to the source.
        """
        from solo_infer.results.formats.labelme import to_labelme

        return to_labelme(self._result, self._result.source if image_path is None else image_path)

    def to_label_studio(
        self,
        image: str | None = None,
        *,
        shape: str = "brush",
        from_name: str = "label",
        to_name: str = "image",
    ) -> dict[str, Any]:
        """Return a task of Label Studio with the instances as predictions.

        Args:
            image: URL of the image, from which Label Studio fetches it. Defaults to the source.
            shape: "brush" for masks, which are exact, or "polygon", with one region for each part, in which
                bridges join holes to the outline.
            from_name: Name of the tag ``BrushLabels`` or ``PolygonLabels`` in the labeling configuration.
            to_name: Name of the tag ``Image``, and the key of the image in the task.

        Raises:
            ResultError: The shape is unknown, or the image has 2**30 pixels or more.
        """
        from solo_infer.results.formats.label_studio import to_label_studio

        return to_label_studio(self._result, image, shape=shape, from_name=from_name, to_name=to_name)

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``: boxes, masks, scores, labels, and names as data["class_name"].

        Raises:
            ResultError: The package supervision is not installed.
        """
        from solo_infer.results.formats.supervision import to_supervision

        return to_supervision(self._result)

    def to_fiftyone(self) -> Any:
        """Return ``fiftyone.Detections`` with the masks. Boxes are tight around the masks.

        Instances without pixels are left out.

        Raises:
            ResultError: The package fiftyone is not installed.
        """
        from solo_infer.results.formats.fiftyone import to_fiftyone

        return to_fiftyone(self._result)

    def to_crops(self) -> Iterator[Image.Image]:
        """Yield a cut-out of each instance: RGBA, as large as its mask, and transparent outside of it.

        That of an instance without pixels has the size 0 x 0.

        Raises:
            ResultError: The image was not kept, or is of another size than the masks.
        """
        from solo_infer.results.formats.crops import to_crops

        return to_crops(self._result)

    @property
    def _result(self) -> Result:
        return cast("Result", self)
