"""COCO mask metrics, computed one class at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from solo_infer.config.validation import is_int
from solo_infer.data.coco import CocoData, GroundTruth, ImageId
from solo_infer.data.coco_results import Detection
from solo_infer.errors import ConfigError
from solo_infer.evaluation.backends import select_backend
from solo_infer.evaluation.report import ClassMetrics
from solo_infer.runtime.messages import quoted

AREAS = ("", "s", "m", "l")  # all, below 32^2, from 32^2 to 96^2, above 96^2 pixels: pycocotools' order
DEFAULT_MAX_DETECTIONS = (1, 10, 100)
_CATEGORY = 1  # id of the only class in an evaluation


def check_max_detections(values: Iterable[int]) -> tuple[int, ...]:
    """Return numbers of detections in ascending order, without duplicates.

    Raises:
        ConfigError: There are none, or one is not an integer of at least 1.
    """
    try:
        numbers = tuple(values)
    except TypeError as error:
        raise ConfigError(f"max_detections={quoted(values)}: expected several integers.") from error
    if not numbers or not all(is_int(number) and number >= 1 for number in numbers):
        raise ConfigError(f"max_detections={quoted(numbers)}: expected one or more integers of at least 1.")
    return tuple(sorted(set(numbers)))


def compute_metrics(
    data: CocoData,
    ground_truth: dict[int, list[GroundTruth]],
    detections: dict[int, list[Detection]],
    max_detections: Sequence[int],
) -> tuple[dict[str, float], list[ClassMetrics]]:
    """Compare detections with the ground truth.

    Args:
        data: Images and classes.
        ground_truth: Annotated instances by category id.
        detections: Detections by category id.
        max_detections: Numbers of detections per image and class that count, ascending. AP, and AR by
            object size, use the last one.

    Returns:
        The metrics "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100" (one for each value of
        ``max_detections``), "ARs", "ARm" and "ARl", 0..1, NaN where there is nothing to measure; and the
        metrics of each class, in the order of ``data.categories``.
    """
    curves = [
        _Curves.of_class(data, ground_truth[category], detections[category], max_detections)
        for category in data.categories.ids
    ]
    precision = np.stack([curve.precision for curve in curves], axis=2)  # (T, R, K, A, M)
    recall = np.stack([curve.recall for curve in curves], axis=1)  # (T, K, A, M)
    per_class = [
        ClassMetrics(
            name,
            _mean(precision[:, :, label, 0, -1]),
            _mean(precision[0, :, label, 0, -1]),
            sum(not instance.is_crowd for instance in ground_truth[category]),
        )
        for label, (name, category) in enumerate(zip(data.categories.names, data.categories.ids, strict=True))
    ]
    return _summarize(precision, recall, max_detections), per_class


def _summarize(precision: np.ndarray, recall: np.ndarray, max_detections: Sequence[int]) -> dict[str, float]:
    """Average as ``COCOeval.summarize``, which requires three ``max_detections`` with 100 as the last."""
    average_precision = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
        **{f"AP{area}": _mean(precision[:, :, :, index, -1]) for index, area in enumerate(AREAS) if area},
    }
    average_recall = {
        **{f"AR{count}": _mean(recall[:, :, 0, index]) for index, count in enumerate(max_detections)},
        **{f"AR{area}": _mean(recall[:, :, index, -1]) for index, area in enumerate(AREAS) if area},
    }
    return {**average_precision, **average_recall}


def _mean(values: np.ndarray) -> float:
    """Return the mean of the measured values; pycocotools marks the others with -1."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else math.nan


@dataclass(frozen=True)
class _Curves:
    """Precision and recall of one class.

    T is the number of IoU thresholds, R of recall thresholds, A of areas, M of ``max_detections``.

    Attributes:
        precision: (T, R, A, M) float64 in 0..1, -1 where there is no ground truth.
        recall: (T, A, M) float64 in 0..1, -1 where there is no ground truth.
    """

    precision: np.ndarray
    recall: np.ndarray

    @classmethod
    def of_class(
        cls,
        data: CocoData,
        ground_truth: list[GroundTruth],
        detections: list[Detection],
        max_detections: Sequence[int],
    ) -> _Curves:
        """Evaluate one class, so that only the matches of one class are in memory."""
        image_ids = {entry.image_id for entry in ground_truth} | {entry.image_id for entry in detections}
        images = sorted((image for image in data.images if image.id in image_ids), key=lambda image: image.id)
        numbers = {image.id: number for number, image in enumerate(images)}
        evaluator = select_backend().evaluator(iouType="segm")
        evaluator.params.imgIds = list(numbers.values())
        evaluator.params.catIds = [_CATEGORY]
        evaluator.params.maxDets = list(max_detections)
        if not images:
            shape = (len(evaluator.params.iouThrs), len(evaluator.params.recThrs), len(AREAS))
            precision = -np.ones((*shape, len(max_detections)))
            return cls(precision, precision[:, 0])
        sizes = [(image.height, image.width) for image in images]
        evaluator.cocoGt = _index(sizes, numbers, ground_truth)
        evaluator.cocoDt = _index(sizes, numbers, detections)
        evaluator.evaluate()
        evaluator.accumulate()
        return cls(evaluator.eval["precision"][:, :, 0], evaluator.eval["recall"][:, 0])


def _index(
    sizes: Sequence[tuple[int, int]],
    numbers: Mapping[ImageId, int],
    entries: Iterable[GroundTruth | Detection],
) -> Any:
    """Return the ``COCO`` of one class.

    Entries get new ids, because pycocotools treats the id 0 as "no match" and drops one of two entries with
    equal ids. So do images, in the same order: pycocotools puts their ids into an array, which changes text
    and large integers.

    Args:
        sizes: Heights and widths of the images.
        numbers: Positions in ``sizes`` by image id.
        entries: Instances of the class.
    """
    coco = select_backend().coco()
    coco.dataset = {
        "images": [{"id": number, "height": size[0], "width": size[1]} for number, size in enumerate(sizes)],
        "categories": [{"id": _CATEGORY}],
        "annotations": [
            {
                "id": number,
                "image_id": numbers[entry.image_id],
                "category_id": _CATEGORY,
                "area": entry.area,
                "segmentation": {"size": list(sizes[numbers[entry.image_id]]), "counts": entry.counts},
                **(
                    {"iscrowd": int(entry.is_crowd)}
                    if isinstance(entry, GroundTruth)
                    else {"score": entry.score}
                ),
            }
            for number, entry in enumerate(entries, start=1)
        ],
    }
    coco.createIndex()
    return coco
