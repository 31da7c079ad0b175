"""Writers of results: drawings in a folder, and the files of ``solo_infer.results.formats``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from solo_infer.results.caption_text import require_font
from solo_infer.results.formats.coco import CocoDataset, CocoFile
from solo_infer.results.formats.crops import CropFolder
from solo_infer.results.formats.csv_table import CsvFile
from solo_infer.results.formats.folder import ResultFolder, file_stem, source_path
from solo_infer.results.formats.image_ids import ImageIds
from solo_infer.results.formats.labelme import LabelmeFolder
from solo_infer.results.formats.yolo import YoloFolder
from solo_infer.results.result import Result

__all__ = [
    "CocoDataset",
    "CocoFile",
    "CropFolder",
    "CsvFile",
    "ImageFolder",
    "ImageIds",
    "LabelmeFolder",
    "YoloFolder",
    "drawings_among",
]

DRAWING_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
DRAWING_MARK = "_segmented"  # at the end of the names of drawings
_DRAWING_STEM = re.compile(rf"(.+){DRAWING_MARK}(?:_\d+)?", re.DOTALL)


def drawings_among(paths: Sequence[str], folder: str | os.PathLike[str]) -> list[str]:
    """Return the paths that have the name of a drawing of another one of them.

    Args:
        paths: Paths of image files.
        folder: Folder of drawings; elsewhere, drawings are beside their images.
    """
    places = [(os.path.dirname(path), Path(path).stem) for path in paths]
    beside, anywhere = set(places), {stem for _, stem in places}
    output = os.path.realpath(folder)
    return [
        path
        for path, (parent, stem) in zip(paths, places, strict=True)
        if (match := _DRAWING_STEM.fullmatch(stem)) is not None
        and ((parent, match[1]) in beside or (match[1] in anywhere and os.path.realpath(parent) == output))
    ]


class ImageFolder(ResultFolder):
    """Writer of drawings, named ``NAME_segmented.EXT`` after their images. Each result gets its own file.

    Args:
        folder: Path of the folder, which is created when the first drawing is written.
        min_score: Lowest score to draw, 0..1. Defaults to the ``display_threshold`` of each result.
        boxes: Whether to draw boxes.
        font: Font file for the captions. Defaults to a font of the system that has the characters.
        keep: Paths of files that must not be overwritten, such as images that are still to be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        min_score: float | None = None,
        boxes: bool = False,
        font: str | os.PathLike[str] | None = None,
        keep: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        super().__init__(folder, min_score=min_score, keep=keep)
        self.boxes, self.font = boxes, font

    def make(self) -> None:
        """Create the folder, and check that it is writable and that the font can be read.

        Raises:
            ResultError: The folder cannot be created or written to, or the font cannot be read.
        """
        if self.font is not None:
            require_font(self.font)
        super().make()

    def path_of(self, source: str, suffix: str | None = None) -> Path:
        """Return the path of the drawing of a source, unless that of another image has the same name.

        Args:
            source: Path or URL of the image or video.
            suffix: Suffix of the drawing. Defaults to that of the image, or ".jpg".
        """
        path = source_path(source)
        if suffix is None:
            suffix = path.suffix.lower() if path.suffix.lower() in DRAWING_SUFFIXES else ".jpg"
        return self.folder / f"{file_stem(source)}{DRAWING_MARK}{suffix}"

    def reserve(self, source: str, suffix: str | None = None) -> Path:
        """Return a path for the drawing of a source that no other file of the run has; see ``path_of``."""
        path = self._unused(self.path_of(source, suffix))
        self._used.add(path)
        return path

    def _write(self, result: Result, path: Path) -> None:
        result.save(path, min_score=self.min_score, boxes=self.boxes, font=self.font)
