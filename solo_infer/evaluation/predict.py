"""Predicts the images of a COCO data set into results files."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import UnidentifiedImageError
from tqdm import tqdm

from solo_infer.config import BasePostprocessConfig
from solo_infer.config.categories import Categories
from solo_infer.data.coco import CocoData, ImageRecord
from solo_infer.data.coco_results import iterate_list
from solo_infer.data.exif import upright_size
from solo_infer.errors import DataError, ResultError
from solo_infer.results.result import Result
from solo_infer.results.writers import CocoFile
from solo_infer.runtime.atomic_files import write_text, write_whole
from solo_infer.segmenters.base import Segmenter

logger = logging.getLogger(__name__)

_NAMED = 5  # files or classes that a message names


@dataclass(frozen=True)
class Timings:
    """How long predicting took, from the first file to the last detection written.

    Attributes:
        images: How many.
        seconds: Of wall time; of the slowest process if several shared the images.
        stages: Mean seconds an image by stage: those of ``Result.timings``, and "record" for turning masks
            into RLE and writing them. On CUDA, work is counted where it is waited for.
    """

    images: int
    seconds: float
    stages: dict[str, float]

    @property
    def images_per_second(self) -> float:
        """Images over wall time, NaN without images."""
        return self.images / self.seconds if self.images else math.nan


def predict_images(
    model: Segmenter,
    folder: Path,
    data: CocoData,
    path: Path,
    *,
    max_detections: int,
    batch_size: int,
    progress: bool,
) -> Timings:
    """Write the detections on the chosen images, of the chosen classes, to a COCO results file.

    Args:
        model: Its classes are matched with those of the data by name.
        folder: Where the "file_name" of the images start from.
        data: The images and classes.
        path: The file to write.
        max_detections: The model gives at least so many an image, if it finds them.
        batch_size: As in ``SOLO.stream``.
        progress: Show a progress bar on a terminal.

    Raises:
        DataError: Images are missing or of another size than the data says, or no class is in common.
        ImageError: An image cannot be decoded.
        ResultError: The file cannot be written.
    """
    labels = _match_classes(model.config.categories, data)
    sources = _find_images(folder, data)
    specialist = model
    if min(labels) < 0:
        specialist = model.only([label for label, matched in enumerate(labels) if matched >= 0])
    settings = _at_least(model.config.thresholds, max_detections)
    totals: dict[str, float] = defaultdict(float)
    start = time.perf_counter()
    with CocoFile(path, {name: image.id for name, image in sources.items()}) as file:
        results = specialist.stream(list(sources), batch_size=batch_size, thresholds=settings)
        for result in _with_progress(results, len(sources), progress):
            received = time.perf_counter()
            _check_size(data.path, sources[result.source], result)
            file.add(_translated(result, labels, data.categories))
            for stage, seconds in result.timings.items():
                totals[stage] += seconds
            totals["record"] += time.perf_counter() - received
    seconds = time.perf_counter() - start
    return Timings(len(sources), seconds, {stage: total / len(sources) for stage, total in totals.items()})


def _with_progress(results: Iterator[Result], total: int, progress: bool) -> Iterator[Result]:
    return iter(tqdm(results, total=total, unit="image", disable=None if progress else True))


def _match_classes(categories: Categories, data: CocoData) -> list[int]:
    """Return for each label of the model the place among the classes of the data, -1 if it is not there.

    Raises:
        DataError: None is there.
    """
    places = {name: place for place, name in enumerate(data.categories.names)}
    labels = [places.get(name, -1) for name in categories.names]
    if max(labels, default=-1) < 0:
        raise DataError(
            f"The model and {data.path} have no class in common: the model knows "
            f"{some(categories.names)}; the file (or what was chosen of it) has {some(places)}. "
            "Expected equal names."
        )
    unknown = [name for name, place in places.items() if place not in labels]
    if unknown:
        logger.warning(
            "The model does not know %d of the %d classes (%s): they count with AP 0. "
            "Choose the others by classes=... to leave them out.",
            len(unknown),
            len(places),
            some(unknown),
        )
    return labels


def _find_images(folder: Path, data: CocoData) -> dict[str, ImageRecord]:
    """Return the images by path.

    Raises:
        DataError: Files are missing, no images or of another size; hours before that would come up.
    """
    sources = {str(folder / image.file_name): image for image in data.images}
    if len(sources) < len(data.images):
        raise DataError(f'{data.path}: several "file_name" stand for one file: expected different files.')
    wrong: dict[str, list[str]] = defaultdict(list)
    for source, image in sources.items():
        problem = _problem(Path(source), image)
        if problem:
            wrong[problem].append(image.file_name)
    if wrong:
        problems = "; ".join(f"{len(names)} {problem} ({some(names)})" for problem, names in wrong.items())
        raise DataError(
            f"Of the {len(sources)} images that {data.path} asks for in {folder}: {problems}. Expected the "
            'folder that its "file_name" start from, and all its images, as they were annotated.'
        )
    return sources


def _problem(path: Path, image: ImageRecord) -> str | None:
    """Return what can be told of a file without decoding it."""
    if not path.is_file():
        return "are missing"
    try:
        height, width = upright_size(path)
    except UnidentifiedImageError:
        return "are not images"
    except Exception as error:  # a damaged header raises almost anything; decoding will tell more
        logger.info("%s: size not checked beforehand: %s", path, error)
        return None
    return "have another size" if (height, width) != (image.height, image.width) else None


def _check_size(annotations: Path, image: ImageRecord, result: Result) -> None:
    if result.image_size != (image.height, image.width):
        raise DataError(
            f"{result.source} is {result.image_size[1]}x{result.image_size[0]} px (width x height, upright), "
            f"but {image.width}x{image.height} px in {annotations}: expected the image that was annotated."
        )


def _at_least(thresholds: BasePostprocessConfig, detections: int) -> BasePostprocessConfig:
    """Return thresholds that give up to so many detections an image, or more."""
    if thresholds.max_per_image >= detections:
        return thresholds
    return replace(thresholds, max_per_image=detections, nms_pre=max(thresholds.nms_pre, detections))


def _translated(result: Result, labels: Sequence[int], categories: Categories) -> Result:
    """Return a result with the classes of the data instead of the model's."""
    table = torch.tensor(labels, dtype=torch.int64, device=result.device)
    return replace(result, labels=table[result.labels], categories=categories)


def some(names: Iterable[str]) -> str:
    """Return the first few names for a message."""
    listed = list(names)
    return ", ".join(listed[:_NAMED]) + (f", ... {len(listed)} in all" if len(listed) > _NAMED else "")


def shard_path(shards: Path, rank: int, world_size: int) -> Path:
    """Return the file of the detections of one process."""
    return shards / f"detections-{rank}-of-{world_size}.json"


def timings_path(shard: Path) -> Path:
    """Return the file of a shard's timings, which is there when the shard is complete."""
    return shard.with_suffix(".timings.json")


def discard_timings(path: Path) -> None:
    """Remove the timings of an older shard, so that it does not pass for the one to be written.

    Raises:
        ResultError: They cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(f"{path} cannot be replaced: {error}. Choose another folder.") from error


def write_timings(timings: Timings, path: Path) -> None:
    """Write timings for ``read_timings``.

    Raises:
        ResultError: They cannot be written.
    """
    try:
        write_text(path, json.dumps(asdict(timings)))
    except OSError as error:
        raise ResultError(f"{path} cannot be written: {error}. Choose another folder.") from error


def read_timings(path: Path) -> Timings:
    """Read what ``write_timings`` wrote.

    Raises:
        DataError: It is something else.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Timings(int(values["images"]), float(values["seconds"]), dict(values["stages"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} are no timings of a shard ({error!r}): predict the shard again.") from error


def merge_timings(several: Sequence[Timings]) -> Timings:
    """Return the timings of processes that worked side by side."""
    images = sum(timings.images for timings in several)
    totals: dict[str, float] = defaultdict(float)
    for timings in several:
        for stage, seconds in timings.stages.items():
            totals[stage] += seconds * timings.images
    stages = {stage: total / images for stage, total in totals.items()}
    return Timings(images, max(timings.seconds for timings in several), stages)


def merge_detections(files: Iterable[Path], output: Path) -> Path:
    """Write the detections of COCO results files into one, entry by entry.

    Raises:
        DataError: A file cannot be read.
        ResultError: ``output`` cannot be written.
    """

    def write(staged: Path) -> None:
        with staged.open("w", encoding="ascii", newline="\n") as file:
            gap = "["
            for entry in (entry for path in files for entry in iterate_list(path)):
                file.write(f"{gap}\n{json.dumps(entry)}")
                gap = ","
            file.write("\n]\n" if gap == "," else "[\n]\n")

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(output, write)
    except OSError as error:
        raise ResultError(f"{output} cannot be written: {error}. Choose another file.") from error
