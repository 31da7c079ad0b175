"""The functions behind the web page of ``solo-infer demo``; ``demo_page`` has the page itself."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from solo_infer.data.uploads import MAX_BYTES, MAX_PIXELS, load_upload
from solo_infer.errors import ConfigError, ImageError
from solo_infer.results.result import Result
from solo_infer.runtime.messages import quoted
from solo_infer.segmenters.auto import load_model
from solo_infer.segmenters.base import Segmenter
from solo_infer.weights.fetch import is_cached
from solo_infer.weights.manifest import EMBEDDED_MODEL, load_manifest

if TYPE_CHECKING:
    import torch

HEADERS = ("#", "class", "score", "x1", "y1", "x2", "y2", "mask pixels")
_LOADED_MODELS = 2  # kept in memory
_KEPT_FILES = 64  # JSON files; the page copies each one as soon as it is written

Row: TypeAlias = list[str | int | float]


class Demo:
    """The functions behind the page. Threads may share it.

    Args:
        models: Names, files or folders of models to offer besides the published ones; the first is selected.
        device: Device of the models. Defaults to CUDA if available, else the CPU.
        dtype: Dtype of the networks.
        max_bytes: Greatest size of a photo in bytes.
        max_pixels: Greatest number of pixels of a photo.
        folder: Folder for the JSON files, which must exist.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
        folder: str | os.PathLike[str],
    ) -> None:
        self.models = list(dict.fromkeys([*models, EMBEDDED_MODEL, *load_manifest()]))
        self.max_bytes, self.max_pixels = max_bytes, max_pixels
        self._device, self._dtype = device, dtype
        self._loaded: OrderedDict[str, Segmenter] = OrderedDict()
        self._files: list[Path] = []
        self._folder = Path(folder)
        self._lock = threading.Lock()

    def choices(self) -> list[tuple[str, str]]:
        """Return text and name of each model of the list; the text has the limits of its use."""
        manifest = load_manifest()
        choices = []
        for name in self.models:
            notes = []
            if name in manifest and not manifest[name].commercial_use:
                notes.append("non-commercial")
            if name in manifest and not is_cached(manifest[name]):
                notes.append("to be downloaded")
            choices.append((f"{name} ({', '.join(notes)})" if notes else name, name))
        return choices

    def model(self, name: str) -> Segmenter:
        """Return a model of the list; the last ones stay in memory.

        Raises:
            ConfigError: The name is not in the list: a visitor must not load other files.
            SoloInferError: The model cannot be loaded.
        """
        if name not in self.models:
            raise ConfigError(f"Model {quoted(name)}: expected one of the list.")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_model(name, device=self._device, dtype=self._dtype)
            self._loaded.move_to_end(name)
            while len(self._loaded) > _LOADED_MODELS:
                self._loaded.popitem(last=False)
            return self._loaded[name]

    def segment(self, photo: str, name: str, min_score: float, classes: Sequence[str]) -> Result:
        """Segment one photo.

        Args:
            photo: Path of the file.
            name: Name of the model.
            min_score: Lowest score, 0..1.
            classes: Names of the classes to detect; all if there are none.

        Raises:
            SoloInferError: The photo or the model cannot be loaded, or a setting is out of range.
        """
        model = self.model(name).with_settings(min_score=min_score)
        if classes:
            model = model.only(classes)
        image = load_upload(
            _read(photo, self.max_bytes),
            name=Path(photo).name,
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
        )
        (result,) = model.predict_batch([image])
        return result.cpu()

    def write_json(self, result: Result) -> str:
        """Write a result to a new file and return its path; the oldest files are removed."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        path = folder / f"{Path(result.source).stem or 'result'}.json"
        path.write_text(result.to_json(indent=1), encoding="utf-8")
        with self._lock:
            self._files.append(path)
            removed, self._files = self._files[:-_KEPT_FILES], self._files[-_KEPT_FILES:]
        for old in removed:
            with suppress(FileNotFoundError):  # the page has been closed
                old.unlink()
                old.parent.rmdir()
        return str(path)


def _read(path: str, max_bytes: int) -> bytes:
    """Return the content of a file, at most one byte more than the limit."""
    try:
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise ImageError(f"The photo cannot be read ({error.strerror}): drop it once more.") from error


def table(result: Result) -> list[Row]:
    """Return one row of the page's table for each instance, with the columns of ``HEADERS``."""
    return [
        [
            number,
            instance.name,
            f"{instance.score:.3f}",
            *(round(side, 1) for side in instance.box),
            int(instance.mask.sum()),
        ]
        for number, instance in enumerate(result, start=1)
    ]


def summarize(result: Result, seconds: float) -> str:
    """Return a line about a result: "3 instances: 2 car, 1 person. 640 x 427 pixels, 0.12 s"."""
    height, width = result.image_size
    counts = ", ".join(f"{count} {name}" for name, count in Counter(result.names).most_common())
    instances = f"{len(result)} instance{'' if len(result) == 1 else 's'}" if len(result) else "No instances"
    return f"{instances}{f': {counts}' if counts else ''}. {width} x {height} pixels, {seconds:.2f} s"
