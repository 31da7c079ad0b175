"""Data sets on disk that ``fine_tune`` accepts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from solo_infer.data.coco import AnnotationSource, CocoContent
from solo_infer.data.yolo import read_yolo


@dataclass(frozen=True)
class CocoFiles:
    """A COCO data set on disk.

    Attributes:
        images: Folder of the images.
        annotations: Annotation file, whose file names are relative to the folder, or its content.
    """

    images: str | os.PathLike[str]
    annotations: AnnotationSource

    @property
    def annotation_file(self) -> str | os.PathLike[str]:
        """Annotation file, also if its content is given."""
        return self.annotations.path if isinstance(self.annotations, CocoContent) else self.annotations

    def to_coco(self) -> CocoFiles:
        """Return the data set itself."""
        return self


@dataclass(frozen=True)
class YoloFiles:
    """A split of a data set in YOLO format on disk.

    ``description`` names the image folders, image files or ``.txt`` lists of each split, relative to its
    "path" or to its own folder, and the classes. The labels of ``a/images/b/1.jpg`` are in
    ``a/labels/b/1.txt``: a line for each instance, of the class number and the polygon x y x y ... as
    fractions of the image's width and height. Lines with a box have no mask and are left out with a warning.

    Attributes:
        description: The ``data.yaml``.
        split: "train", "val" or "test".
    """

    description: str | os.PathLike[str]
    split: str = "train"

    def to_coco(self) -> CocoFiles:
        """Read the data set as a COCO data set.

        The ids of its categories are the class numbers.

        Raises:
            DataError: A file is missing or malformed, or no image has labels.
        """
        return CocoFiles(*read_yolo(self.description, self.split))
