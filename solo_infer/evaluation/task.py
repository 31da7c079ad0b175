"""The part of a COCO data set that is evaluated, and its ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from solo_infer.data.coco import AnnotationSource, CocoData, GroundTruth, read_annotations, read_ground_truth
from solo_infer.data.coco_results import read_detections
from solo_infer.evaluation.metrics import DEFAULT_MAX_DETECTIONS, check_max_detections, compute_metrics
from solo_infer.evaluation.report import Evaluation, Timings


class TaskOptions(TypedDict, total=False):
    """Options that every evaluation function takes; see ``EvaluationTask.read``."""

    max_detections: Sequence[int]
    limit: int | None
    classes: Iterable[str] | None


@dataclass(frozen=True)
class EvaluationTask:
    """Images, classes and ground truth to evaluate, read from an annotation file.

    Attributes:
        data: Images and classes.
        ground_truth: Annotated instances by category id.
        max_detections: Numbers of detections per image and class that count, ascending.
    """

    data: CocoData
    ground_truth: dict[int, list[GroundTruth]]
    max_detections: tuple[int, ...]

    @classmethod
    def read(
        cls,
        annotations: AnnotationSource,
        *,
        max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS,
        limit: int | None = None,
        classes: Iterable[str] | None = None,
    ) -> EvaluationTask:
        """Read an annotation file.

        Args:
            annotations: Path of the COCO annotation file, or its content.
            max_detections: Numbers of detections per image and class that count, best first.
            limit: Number of images, from the first of the file. Defaults to all.
            classes: Names of the classes. Defaults to all classes of the file.

        Raises:
            DataError: The annotation file cannot be read or is inconsistent.
            ConfigError: A number is out of range.
        """
        numbers = check_max_detections(max_detections)
        data = read_annotations(annotations, classes=classes, limit=limit)
        return cls(data, read_ground_truth(data), numbers)

    def score(
        self, detections: Sequence[Path], timings: Timings | None = None, output: Path | None = None
    ) -> Evaluation:
        """Compare detections with the ground truth.

        Args:
            detections: COCO results files.
            timings: Timings of the prediction.
            output: COCO results file that holds all detections, if it is kept.

        Raises:
            DataError: A file cannot be read or does not match the annotations.
        """
        entries = read_detections(detections, self.data)
        metrics, per_class = compute_metrics(self.data, self.ground_truth, entries, self.max_detections)
        return Evaluation(metrics, per_class, len(self.data.images), timings, output)
