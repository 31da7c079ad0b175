"""Checks of the data of a training run before its first iteration."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import UnidentifiedImageError

from solo_infer.data.coco import AnnotationSource, CocoContent
from solo_infer.data.exif import upright_size
from solo_infer.errors import DataError
from solo_infer.evaluation.task import EvaluationTask
from solo_infer.runtime.messages import first_line, quoted
from solo_infer.runtime.progress import progress_bar
from solo_infer.training.annotation_index import AnnotationIndex, read_index

logger = logging.getLogger(__name__)

_THREADS = 8  # that open images at the same time; most of the time is spent waiting for the disk
_MAX_LISTED = 3


def check_image_files(index: AnnotationIndex) -> None:
    """Check that all images can be opened and have the annotated size, without decoding them.

    Raises:
        DataError: The message counts and names the images that are wrong.
    """
    names: dict[str, list[str]] = defaultdict(list)
    images = range(len(index))
    executor = ThreadPoolExecutor(_THREADS)
    try:
        problems = executor.map(lambda image: _file_problem(index, image), images)
        shown = progress_bar(problems, total=len(index), desc="checking images", unit="image", delay=2)
        for image, problem in zip(images, shown, strict=True):
            if problem is not None:
                names[problem].append(index.name(image))
    finally:
        executor.shutdown(cancel_futures=True)
    if names:
        folders = ", ".join(index.roots)
        summary = "; ".join(f"{len(files)} {problem}: {_listed(files)}" for problem, files in names.items())
        raise DataError(
            f"Of {len(index)} annotated images in {folders}, {summary}. Correct the files or their "
            "annotations."
        )


def _file_problem(index: AnnotationIndex, image: int) -> str | None:
    """Return the problem of an image that is visible without decoding it, None if there is none."""
    path, (height, width) = index.path(image), index.shapes[image].tolist()
    try:
        size = upright_size(path)
    except UnidentifiedImageError:
        return "cannot be opened as images"
    except OSError as error:
        return f"cannot be read ({error.strerror or first_line(error)})"
    except Exception as error:  # damaged headers raise errors of many types; decoding reports them in full
        logger.info("%s: size not checked before it is decoded: %s", path, error)
        return None
    return None if size == (height, width) else "have another size than annotated"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names[:_MAX_LISTED])) + (", ..." if len(names) > _MAX_LISTED else "")


def check_validation(
    images: str | os.PathLike[str],
    annotations: AnnotationSource,
    classes: Sequence[str],
    max_detections: Sequence[int],
    *,
    check_files: bool = True,
) -> tuple[str, ...]:
    """Check validation data, and return the classes that it has, with a warning if some are lacking.

    Args:
        images: Folder of the images.
        annotations: COCO annotation file, or its content.
        classes: Names of the classes of the model.
        max_detections: As for ``solo_infer.evaluation.evaluate``.
        check_files: Whether to open the images, too.

    Raises:
        DataError: The data could not be evaluated, or a class has another spelling there.
        ConfigError: ``max_detections`` is wrong.
    """
    index = read_index(images, annotations, classes)
    present = tuple(name for label, name in enumerate(classes) if index.labelled[:, label].any())
    missing = [name for name in classes if name not in present]
    if missing:
        logger.warning(
            "%s lacks %d of the %d classes (%s): they are not evaluated.",
            annotations.path if isinstance(annotations, CocoContent) else annotations,
            len(missing),
            len(classes),
            _listed(missing),
        )
    EvaluationTask.read(annotations, classes=present, max_detections=max_detections)
    if check_files:
        check_image_files(index)
    return present
