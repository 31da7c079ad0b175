"""Mask AP of a model on a COCO data set.

    evaluation = evaluate(model, "val2017", "instances_val2017.json")
    print(evaluation.format_table())

Detections are written to a file image by image, so that memory does not grow with the number of images. In
processes that torchrun started, ``evaluate`` shares the images between them. The functions for processes
without ``torch.distributed`` are in ``solo_infer.evaluation.sharding``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from solo_infer.config.keywords import EVALUATE_KEYWORDS, explain_keywords
from solo_infer.config.validation import require_instance, require_path, require_positive_ints
from solo_infer.data.coco import AnnotationSource, CocoContent
from solo_infer.data.sources import IMAGE_SUFFIXES
from solo_infer.errors import ResultError
from solo_infer.evaluation.metrics import DEFAULT_MAX_DETECTIONS
from solo_infer.evaluation.predict import predict_images
from solo_infer.evaluation.report import ClassMetrics, Evaluation, Timings
from solo_infer.evaluation.sharding import evaluate_distributed, evaluate_shard, score_shards
from solo_infer.evaluation.task import EvaluationTask, TaskOptions
from solo_infer.runtime.distributed import is_distributed
from solo_infer.runtime.output_files import refuse_overwriting, require_writable
from solo_infer.segmenters.base import Segmenter

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "ClassMetrics",
    "Evaluation",
    "Timings",
    "evaluate",
    "evaluate_detections",
    "evaluate_shard",
    "score_shards",
]


@explain_keywords("evaluate", EVALUATE_KEYWORDS)
def evaluate(
    model: Segmenter,
    images: str | os.PathLike[str],
    annotations: AnnotationSource,
    *,
    output: str | os.PathLike[str] | None = None,
    max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS,
    batch_size: int = 1,
    limit: int | None = None,
    classes: Iterable[str] | None = None,
    progress: bool = True,
    shards: str | os.PathLike[str] | None = None,
) -> Evaluation | None:
    """Run a model on the images of a COCO data set and score its detections.

    Classes of the model and of the annotation file are matched by name. A class of the file that the model
    lacks counts with AP 0. Classes of the model that the file lacks are excluded before NMS.

    With an initialized ``torch.distributed`` process group, every process must call this function with the
    same arguments. Each one runs the model on its share of the images.

    Args:
        model: Model with the thresholds to use. If ``max_per_image`` is less than the greatest value of
            ``max_detections``, it is raised to it, as is ``nms_pre``.
        images: Folder that "file_name" in the annotation file is relative to.
        annotations: Path of the COCO annotation file, or the content that ``YoloFiles.to_coco`` returns.
        output: Path of a COCO results file to write; pycocotools can read it. After Ctrl-C it holds the
            detections up to that point. Defaults to not keeping the detections.
        max_detections: Numbers of detections per image and class that count, best first.
        batch_size: Number of images per batch, as in ``Segmenter.stream``.
        limit: Number of images, from the first of the file. Defaults to all.
        classes: Names of the classes to evaluate. Defaults to all classes of the file.
        progress: Show a progress bar on a terminal.
        shards: Directory where several processes exchange their detections; all of them must reach it. It
            is created if missing and kept. Defaults to a temporary directory beside ``output``, or in the
            system's temporary directory, which is removed. Ignored for a single process.

    Returns:
        The evaluation; None in all processes but the main one.

    Raises:
        DataError: The annotation file is inconsistent, images are missing or differ in size from it, or it
            has no class in common with the model.
        ImageError: An image cannot be decoded.
        ResultError: ``output`` cannot be written, or is an input.
        ConfigError: A number is out of range.
    """
    require_instance("model", model, Segmenter)
    require_positive_ints({"batch_size": batch_size} | ({} if limit is None else {"limit": limit}))
    folder = require_path("images", images)
    if not isinstance(annotations, CocoContent):
        annotations = require_path("annotations", annotations)
    target = None if output is None else _require_file("output", output)
    task = EvaluationTask.read(annotations, max_detections=max_detections, limit=limit, classes=classes)
    _protect_inputs(target, folder, task)
    if is_distributed():
        exchange = None if shards is None else require_path("shards", shards)
        return evaluate_distributed(model, folder, task, target, exchange, batch_size, progress)
    with tempfile.TemporaryDirectory() as temporary:
        path = target or Path(temporary) / "detections.json"
        most = task.max_detections[-1]
        timings = predict_images(
            model, folder, task.data, path, max_detections=most, batch_size=batch_size, progress=progress
        )
        return task.score([path], timings, target)


def _require_file(name: str, value: str | os.PathLike[str]) -> Path:
    """Return the path of a file to write; refuse folders and devices."""
    path = require_path(name, value)
    if os.path.exists(path) and not os.path.isfile(path):
        raise ResultError(f"{path} is not a regular file: expected the path of a JSON file to write.")
    return path


def _protect_inputs(target: Path | None, folder: Path, task: EvaluationTask) -> None:
    """Check that the results file can be written and is none of the files that the evaluation reads."""
    images = [folder / image.file_name for image in task.data.images]
    if target is not None and target.suffix.lower() in IMAGE_SUFFIXES and os.path.exists(target):
        images.append(target)  # also an image that the evaluation leaves out
    refuse_overwriting({"output": target}, {"the annotation file": [task.data.path], "the image": images})
    require_writable("output", target, create_folder=True)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)


def evaluate_detections(
    annotations: str | os.PathLike[str], detections: str | os.PathLike[str], **options: Unpack[TaskOptions]
) -> Evaluation:
    """Score existing detections.

    Areas are those of the masks. A "bbox" of a detection, whose area ``COCO.loadRes`` would use, is ignored.

    Args:
        annotations: Path of the COCO annotation file.
        detections: Path of a COCO results file with the ids of the annotation file.
        options: ``max_detections``, ``limit`` and ``classes``, as in ``evaluate``.

    Raises:
        DataError: A file cannot be read, or the two do not belong together.
        ConfigError: A number is out of range.
    """
    path = require_path("detections", detections)
    annotations = require_path("annotations", annotations)
    return EvaluationTask.read(annotations, **options).score([path], output=path)
