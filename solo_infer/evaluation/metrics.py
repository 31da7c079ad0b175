"""COCO's mask metrics, computed by pycocotools one class at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np

from solo_infer.data.coco import CocoData, GroundTruth, ImageId
from solo_infer.data.coco_results import Detection
from solo_infer.errors import ConfigError

AREAS = ("", "s", "m", "l")  # all, below 32^2, from 32^2 to 96^2, above 96^2 pixels: pycocotools' order
DEFAULT_MAX_DETECTIONS = (1, 10, 100)


@dataclass(frozen=True)
class ClassMetrics:
    """The metrics of one class, 0..1, NaN where there is nothing to measure.

    Attributes:
        name: Class name.
        ap: AP over the IoU thresholds 0.50, 0.55, ..., 0.95.
        ap50: AP at IoU 0.50.
        instances: Annotated instances that count, that is without crowds.
    """

    name: str
    ap: float
    ap50: float
    instances: int


def check_max_detections(given: Iterable[int]) -> tuple[int, ...]:
    """Return the numbers in ascending order, each once.

    Raises:
        ConfigError: There is none, or one is no whole number of at least 1.
    """
    numbers = tuple(given)
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if not numbers or not whole or min(numbers) < 1:
        raise ConfigError(f"max_detections={numbers}: expected one or more whole numbers of at least 1.")
    return tuple(sorted(set(numbers)))


def measure(
    data: CocoData,
    truths: dict[int, list[GroundTruth]],
    detections: dict[int, list[Detection]],
    max_detections: Sequence[int],
) -> tuple[dict[str, float], list[ClassMetrics]]:
    """Compare detections with the truth.

    Args:
        data: The images and classes.
        truths: By category id.
        detections: By category id.
        max_detections: Detections per image and class that count, best first, ascending. AP, and AR by
            object size, take the last.

    Returns:
        The metrics "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100" (one for each of
        ``max_detections``), "ARs", "ARm" and "ARl", 0..1, NaN where there is nothing to measure; and those
        of each class, in the order of ``data.categories``.
    """
    curves = [
        _Curves.of_class(data, number, truths[number], detections[number], max_detections)
        for number in data.categories.ids
    ]
    precision = np.stack([curve.precision for curve in curves], axis=2)  # (T, R, K, A, M)
    recall = np.stack([curve.recall for curve in curves], axis=1)  # (T, K, A, M)
    per_class = [
        ClassMetrics(
            name,
            _mean(precision[:, :, place, 0, -1]),
            _mean(precision[0, :, place, 0, -1]),
            sum(not truth.is_crowd for truth in truths[number]),
        )
        for place, (name, number) in enumerate(zip(data.categories.names, data.categories.ids, strict=True))
    ]
    return _summarize(precision, recall, max_detections), per_class


def _summarize(precision: np.ndarray, recall: np.ndarray, max_detections: Sequence[int]) -> dict[str, float]:
    """Average as ``COCOeval.summarize`` does, which knows three ``max_detections``, the last one 100."""
    average_precision = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
        **{f"AP{area}": _mean(precision[:, :, :, place, -1]) for place, area in enumerate(AREAS) if area},
    }
    average_recall = {
        **{f"AR{most}": _mean(recall[:, :, 0, place]) for place, most in enumerate(max_detections)},
        **{f"AR{area}": _mean(recall[:, :, place, -1]) for place, area in enumerate(AREAS) if area},
    }
    return {**average_precision, **average_recall}


def _mean(values: np.ndarray) -> float:
    """Return the mean of what could be measured; pycocotools puts -1 for the rest."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else math.nan


@dataclass(frozen=True)
class _Curves:
    """Of one class, for T IoU thresholds, R recall thresholds, A areas and M numbers of detections.

    Attributes:
        precision: (T, R, A, M) float64, 0..1, -1 where there is no truth.
        recall: (T, A, M) float64, likewise.
    """

    precision: np.ndarray
    recall: np.ndarray

    @classmethod
    def of_class(
        cls,
        data: CocoData,
        category: int,
        truths: list[GroundTruth],
        detections: list[Detection],
        max_detections: Sequence[int],
    ) -> _Curves:
        """Run pycocotools on one class, so that the matches of only one are in memory."""
        images = {truth.image_id for truth in truths} | {entry.image_id for entry in detections}
        chosen = [image for image in data.images if image.id in images]
        evaluator = _silent_tools()["COCOeval"](iouType="segm")
        evaluator.params.imgIds = sorted(image.id for image in chosen)
        evaluator.params.catIds = [category]
        evaluator.params.maxDets = list(max_detections)
        if not images:
            counts = (len(evaluator.params.iouThrs), len(evaluator.params.recThrs), len(AREAS))
            nothing = -np.ones((*counts, len(max_detections)))
            return cls(nothing, nothing[:, 0])
        sizes = {image.id: (image.height, image.width) for image in chosen}
        evaluator.cocoGt = _index(sizes, category, truths)
        evaluator.cocoDt = _index(sizes, category, detections)
        evaluator.evaluate()
        evaluator.accumulate()
        return cls(evaluator.eval["precision"][:, :, 0], evaluator.eval["recall"][:, 0])


def _index(
    sizes: Mapping[ImageId, tuple[int, int]], category: int, entries: Iterable[GroundTruth | Detection]
) -> Any:
    """Return a ``pycocotools.coco.COCO`` of one class.

    The ids of a file are not used: pycocotools takes the id 0 for "no match", and one of two entries of
    the same id is lost.
    """
    coco = _silent_tools()["COCO"]()
    coco.dataset = {
        "images": [{"id": number, "height": size[0], "width": size[1]} for number, size in sizes.items()],
        "categories": [{"id": category}],
        "annotations": [
            {
                "id": number,
                "image_id": entry.image_id,
                "category_id": category,
                "area": entry.area,
                "segmentation": {"size": list(sizes[entry.image_id]), "counts": entry.counts},
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


@cache
def _silent_tools() -> dict[str, Any]:
    """Return pycocotools' ``COCO`` and ``COCOeval``, made so that they do not print.

    Their methods run with a ``print`` of their own. Redirecting stdout instead would swallow what other
    threads print meanwhile.
    """
    from pycocotools import coco, cocoeval

    return {"COCO": _silenced(coco.COCO), "COCOeval": _silenced(cocoeval.COCOeval)}


def _silenced(kind: type) -> type:
    def quietly(function: FunctionType) -> FunctionType:
        own = {**function.__globals__, "print": lambda *values, **options: None}
        return FunctionType(
            function.__code__, own, function.__name__, function.__defaults__, function.__closure__
        )

    methods = {name: quietly(item) for name, item in vars(kind).items() if isinstance(item, FunctionType)}
    return type(kind.__name__, (kind,), methods)
