"""Where the results of many images go: pictures in a folder, one COCO results file."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from solo_infer.errors import ResultError
from solo_infer.result import Result

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class PictureFolder:
    """Writes each result's drawing as ``NAME_segmented.EXT``, never one over another.

    Args:
        folder: Made when the first picture is written.
        min_score: Instances below this score are left out.
        boxes: Draw boxes.
    """

    def __init__(self, folder: Path, *, min_score: float = 0.0, boxes: bool = False) -> None:
        self.folder, self.min_score, self.boxes = folder, min_score, boxes
        self._written: set[Path] = set()

    def add(self, result: Result) -> Path:
        """Write one picture and return its path.

        Raises:
            ResultError: It cannot be written.
        """
        source = Path(urlsplit(result.source).path if "://" in result.source else result.source)
        suffix = source.suffix.lower() if source.suffix.lower() in PICTURE_SUFFIXES else ".jpg"
        stem = f"{source.stem or 'image'}_segmented"
        path, number = self.folder / f"{stem}{suffix}", 2
        while path in self._written:  # equal names from different folders
            path, number = self.folder / f"{stem}_{number}{suffix}", number + 1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(f"{self.folder} cannot be made: {error}. Choose another folder.") from error
        result.save(path, min_score=self.min_score, boxes=self.boxes)
        self._written.add(path)
        return path


class CocoFile:
    """Writes a COCO results file (a list, as ``COCO.loadRes`` reads it) result by result.

    The list grows in a temporary file beside it and gets its name when it is complete. Leaving the
    ``with`` block by ctrl-C completes it with what there is; by an error, nothing is left.

    Args:
        path: The file to write.
        image_ids: Image ids by file name. Other images get the number that is their name, as in COCO
            ("000000000139.jpg" is 139), or else their place in the order, counted from 1.
        min_score: Instances below this score are left out.
    """

    def __init__(
        self, path: Path, image_ids: dict[str, int] | None = None, *, min_score: float = 0.0
    ) -> None:
        self.path, self.min_score = path, min_score
        self._image_ids = image_ids or {}
        self._images = self._entries = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")

    def __enter__(self) -> CocoFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._temporary.open("w", encoding="utf-8")
        except OSError as error:
            raise ResultError(f"{self.path} cannot be written: {error}. Choose another file.") from error
        self._stream.write("[")
        return self

    def add(self, result: Result) -> None:
        """Append the instances of one image, each with the image's "file_name" beside COCO's keys."""
        self._images += 1
        name = Path(result.source).name
        for entry in result.filter(self.min_score).to_coco(self._image_id(name)):
            self._append({**entry, "file_name": name})

    def _image_id(self, name: str) -> int:
        if name in self._image_ids:
            return self._image_ids[name]
        stem = Path(name).stem
        return int(stem) if stem.isascii() and stem.isdigit() else self._images

    def _append(self, entry: dict[str, Any]) -> None:
        self._stream.write(",\n" if self._entries else "\n")
        json.dump(entry, self._stream)
        self._entries += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.write("\n]\n")
        self._stream.close()
        if kind is None or issubclass(kind, KeyboardInterrupt):
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink()


def read_image_ids(annotations: Path) -> dict[str, int]:
    """Return {file name: image id} of a COCO annotation file.

    Raises:
        ResultError: It is no such file.
    """
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        return {Path(image["file_name"]).name: int(image["id"]) for image in content["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{annotations} is no COCO annotation file ({type(error).__name__}: {error}): expected a JSON "
            'object with "images", each with "id" and "file_name".'
        ) from error
