"""Cut-outs: each instance as an image of its own with a transparent background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from solo_infer.errors import ResultError
from solo_infer.results.drawing import save_image
from solo_infer.results.formats.folder import ResultFolder, file_stem

if TYPE_CHECKING:
    from PIL import Image

    from solo_infer.results.result import Result

_MAX_NAME = 40  # characters of a class name in a file name


def to_crops(result: Result) -> Iterator[Image.Image]:
    """Yield ``Result.to_crops``."""
    from PIL import Image

    if result.image is None:
        raise ResultError("The result has no image to cut from: keep the images of the results.")
    if result.image.shape[:2] != result.image_size:
        raise ResultError(
            f"The image has the shape {result.image.shape}, and the masks have the size {result.image_size}: "
            "expected equal heights and widths."
        )
    for instance in result.cpu():
        mask = instance.mask.numpy()
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        if not rows.size:
            yield Image.new("RGBA", (0, 0))
            continue
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        opacity = mask[window][..., None] * np.uint8(255)
        yield Image.fromarray(np.concatenate((result.image[window], opacity), axis=2))


class CropFolder(ResultFolder):
    """Writer of cut-outs, PNG files ``NAME/NUMBER_CLASS.png`` in a folder for each image.

    Numbers count the instances from 0; those with an empty mask have no file. The pixels around a mask keep
    their colors, and are transparent. The arguments are those of ``ResultFolder``.
    """

    def path_of(self, source: str) -> Path:
        """Return the folder of the cut-outs of a source, unless that of another image has the same name."""
        return self.folder / file_stem(source)

    def _write(self, result: Result, path: Path) -> None:
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise ResultError(f"{path} cannot be created: {error}. Choose another folder.") from error
        for index, (name, crop) in enumerate(zip(result.names, to_crops(result), strict=True)):
            if crop.width:
                file = self._unused(path / f"{index:03d}_{_file_name(name)}.png")
                save_image(crop, file)


def _file_name(name: str) -> str:
    """Return a class name as a part of a file name on every system."""
    kept = "".join(char if char.isalnum() or char in "-_" else "_" for char in name[:_MAX_NAME])
    return kept or "instance"
