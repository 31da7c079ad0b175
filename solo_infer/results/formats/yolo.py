"""YOLO segmentation: a text file for each image, and ``data.yaml`` with the classes.

A line is a label and the x and y of one ring as fractions of the image size, so holes and parts are not
written as such: bridges join all rings of a mask to one ring. Filled by the even-odd rule it is the mask;
programs that draw an outline, or fill one with its edge, cover the line of each bridge as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from solo_infer.errors import ResultError
from solo_infer.results.formats.folder import LabelFolder, file_stem
from solo_infer.results.formats.polygons import joined, trace
from solo_infer.runtime.atomic_files import write_text
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.text_files import read_text

if TYPE_CHECKING:
    from solo_infer.config.categories import Categories
    from solo_infer.results.result import Result


def to_yolo(result: Result, *, scores: bool = False) -> str:
    """Return ``Result.to_yolo``."""
    height, width = result.image_size
    lines = []
    for instance in result.cpu():
        polygons = trace(instance.mask.numpy())
        if polygons:
            ring = joined([ring for polygon in polygons for ring in polygon.rings]) / (width, height)
            numbers = [f"{number:.8g}" for number in ring.ravel().tolist()]
            lines.append(
                " ".join([str(instance.label), *numbers, *([f"{instance.score:.6g}"] if scores else [])])
            )
    return "".join(f"{line}\n" for line in lines)


class YoloFolder(LabelFolder):
    """Writer of a YOLO segmentation data set: ``labels/NAME.txt`` for each image, and ``data.yaml``.

    An image without instances gets an empty file. The images belong into the folder ``images``, which is not
    written. Existing label files are never replaced. The arguments are those of ``ResultFolder``.
    """

    @property
    def data_file(self) -> Path:
        """Path of ``data.yaml``, which names the classes."""
        return self.folder / "data.yaml"

    def path_of(self, source: str) -> Path:
        """Return the label file of a source, unless that of another image has the same name."""
        return self.folder / "labels" / f"{file_stem(source)}.txt"

    def _text(self, result: Result, path: Path) -> str:
        self._write_data_file(result.categories)
        return to_yolo(result)

    def _write_data_file(self, categories: Categories) -> None:
        text = _data_file(categories)
        try:
            if self.data_file not in self._used and not self.data_file.exists():
                write_text(self.data_file, text)
            is_equal = read_text(self.data_file) == text
        except (OSError, ValueError) as error:
            raise ResultError(
                f"{quoted(self.data_file, 200)} cannot be written: {error}. Choose another folder."
            ) from error
        if not is_equal:
            raise ResultError(
                f"{quoted(self.data_file, 200)} exists with other content, such as other classes: choose "
                "another folder."
            )


def _data_file(categories: Categories) -> str:
    names = "".join(f"  {label}: {_yaml_text(name)}\n" for label, name in enumerate(categories.names))
    return f"path: .\ntrain: images\nval: images\nnames:\n{names}"


def _yaml_text(text: str) -> str:
    """Return a text as a quoted YAML scalar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{"".join(char if char.isprintable() else _yaml_escape(ord(char)) for char in escaped)}"'


def _yaml_escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
