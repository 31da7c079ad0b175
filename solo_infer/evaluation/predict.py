"""Prediction of the images of a COCO data set into a results file."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import UnidentifiedImageError

from solo_infer.config import BasePostprocessConfig
from solo_infer.config.categories import Categories
from solo_infer.data.coco import CocoData, ImageRecord
from solo_infer.data.exif import upright_size
from solo_infer.data.image_files import encoding_hint, find_images
from solo_infer.errors import DataError
from solo_infer.evaluation.report import Timings
from solo_infer.results.result import Result
from solo_infer.results.writers import CocoFile
from solo_infer.runtime.messages import summarize_names
from solo_infer.runtime.progress import progress_bar
from solo_infer.segmenters.base import Segmenter

logger = logging.getLogger(__name__)


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
    """Write the detections on the images of a data set to a COCO results file.

    Args:
        model: Model; its classes are matched with those of the data set by name.
        folder: Folder that "file_name" of the images is relative to.
        data: Images and classes.
        path: Path of the file to write.
        max_detections: Number of detections per image that the model must be able to return.
        batch_size: Number of images per batch, as in ``Segmenter.stream``.
        progress: Show a progress bar on a terminal.

    Raises:
        DataError: Images are missing or differ in size from the annotations, or there is no common class.
        ImageError: An image cannot be decoded.
        ResultError: The file cannot be written.
    """
    labels = _match_classes(model.config.categories, data)
    sources = _find_images(folder, data)
    if min(labels) < 0:
        model = model.only([label for label, data_label in enumerate(labels) if data_label >= 0])
    thresholds = _with_max_detections(model.config.thresholds, max_detections)
    totals: dict[str, float] = defaultdict(float)
    start = time.perf_counter()
    with CocoFile(path, {name: image.id for name, image in sources.items()}) as file:
        results = model.stream(list(sources), batch_size=batch_size, thresholds=thresholds)
        for result in progress_bar(results, total=len(sources), unit="image", enabled=progress):
            received = time.perf_counter()
            _check_size(data.path, sources[result.source], result)
            file.add(_with_data_labels(result, labels, data.categories))
            for stage, seconds in result.timings.items():
                totals[stage] += seconds
            totals["record"] += time.perf_counter() - received
    seconds = time.perf_counter() - start
    return Timings(len(sources), seconds, {stage: total / len(sources) for stage, total in totals.items()})


def _match_classes(categories: Categories, data: CocoData) -> list[int]:
    """Return the label in the data set of each label of the model, -1 for classes that the data set lacks.

    Raises:
        DataError: The model and the data set have no class in common.
    """
    data_labels = {name: label for label, name in enumerate(data.categories.names)}
    labels = [data_labels.get(name, -1) for name in categories.names]
    if max(labels, default=-1) < 0:
        raise DataError(
            f"The model and {data.path} have no class in common: the model has "
            f"{summarize_names(categories.names)}; the file (after the selection of classes) has "
            f"{summarize_names(data_labels)}. Expected equal names."
        )
    missing = [name for name, label in data_labels.items() if label not in labels]
    if missing:
        logger.warning(
            "The model lacks %d of the %d classes (%s): they count with AP 0. "
            "Pass the other names as classes=... to leave them out.",
            len(missing),
            len(data_labels),
            summarize_names(missing),
        )
    return labels


def _find_images(folder: Path, data: CocoData) -> dict[str, ImageRecord]:
    """Return the images by path.

    Raises:
        DataError: Files are missing, are not images or have another size. All files are checked before the
            first prediction.
    """
    sources: dict[str, ImageRecord] = {}
    file_names: dict[str, list[str]] = defaultdict(list)
    for image, name in zip(data.images, find_images(folder, data), strict=True):
        path = folder / (name or image.file_name)
        problem = "are missing" if name is None else _file_problem(path, image)
        if problem:
            file_names[problem].append(image.file_name)
        sources[str(path)] = image
    if file_names:
        problems = "; ".join(
            f"{len(names)} {problem} ({summarize_names(names)})" for problem, names in file_names.items()
        )
        raise DataError(
            f"Of the {len(data.images)} images of {data.path} in {folder}: {problems}. Expected the folder "
            'that "file_name" is relative to, with all images as they were annotated.'
            f"{encoding_hint(name for names in file_names.values() for name in names)}"
        )
    return sources


def _file_problem(path: Path, image: ImageRecord) -> str | None:
    """Return the problem of an image file that is visible without decoding it, None if there is none."""
    try:
        height, width = upright_size(path)
    except UnidentifiedImageError:
        return "are not images"
    except Exception as error:  # damaged headers raise errors of many types; decoding reports them in full
        logger.info("%s: size not checked before decoding: %s", path, error)
        return None
    return "have another size" if (height, width) != (image.height, image.width) else None


def _check_size(annotations: Path, image: ImageRecord, result: Result) -> None:
    if result.image_size != (image.height, image.width):
        raise DataError(
            f"{result.source} is {result.image_size[1]}x{result.image_size[0]} px (width x height, upright), "
            f"but {image.width}x{image.height} px in {annotations}: expected the image that was annotated."
        )


def _with_max_detections(thresholds: BasePostprocessConfig, count: int) -> BasePostprocessConfig:
    """Return thresholds that allow at least ``count`` detections per image."""
    if thresholds.max_per_image >= count:
        return thresholds
    nms_pre = max(thresholds.nms_pre, count)
    return replace(cast(Any, thresholds), max_per_image=count, nms_pre=nms_pre)


def _with_data_labels(result: Result, labels: Sequence[int], categories: Categories) -> Result:
    """Return a result with the labels of the data set in place of the model's."""
    table = torch.tensor(labels, dtype=torch.int64, device=result.device)
    return replace(result, labels=table[result.labels], categories=categories)
