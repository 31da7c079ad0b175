"""Result of an evaluation: metrics, timings, tables."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from solo_infer.runtime.messages import escaped

METRICS_PER_LINE = 3


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class, 0..1, NaN where there is nothing to measure.

    Attributes:
        name: Class name.
        ap: AP over the IoU thresholds 0.50, 0.55, ..., 0.95.
        ap50: AP at IoU 0.50.
        instances: Number of annotated instances, without crowds.
    """

    name: str
    ap: float
    ap50: float
    instances: int


@dataclass(frozen=True)
class Timings:
    """Duration of a prediction run, from the first file read to the last detection written.

    Attributes:
        images: Number of images.
        seconds: Wall time; that of the slowest process if several shared the images.
        stages: Mean seconds per image by stage: those of ``Result.timings``, and "record" for encoding
            masks as RLE and writing them. On CUDA, work is attributed to the stage that waits for it.
    """

    images: int
    seconds: float
    stages: dict[str, float]

    @property
    def images_per_second(self) -> float:
        """Images per second of wall time, NaN without images."""
        return self.images / self.seconds if self.images else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, with None for NaN."""
        return {**asdict(self), "images_per_second": _none_if_nan(self.images_per_second)}


@dataclass(frozen=True)
class Evaluation:
    """COCO mask metrics of a model on a data set, 0..1, NaN where there is nothing to measure.

    Attributes:
        metrics: "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100" (one for each value of
            ``max_detections``), "ARs", "ARm", "ARl".
        per_class: Metrics of each evaluated class, by category id.
        images: Number of evaluated images.
        timings: Timings of the prediction, None if existing detections were scored.
        detections: Path of the COCO results file, None if it was not kept.
    """

    metrics: dict[str, float]
    per_class: list[ClassMetrics]
    images: int
    timings: Timings | None = None
    detections: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, with None for NaN."""
        return {
            "metrics": {name: _none_if_nan(value) for name, value in self.metrics.items()},
            "per_class": [
                {
                    "name": entry.name,
                    "AP": _none_if_nan(entry.ap),
                    "AP50": _none_if_nan(entry.ap50),
                    "instances": entry.instances,
                }
                for entry in self.per_class
            ],
            "images": self.images,
            "timings": self.timings and self.timings.to_dict(),
            "detections": self.detections and str(self.detections),
        }

    def format_table(self) -> str:
        """Return the metrics in percent, one line per class, and the timings, as text."""
        return "\n".join([*self._metric_lines(), "", *self._class_lines(), *self._timing_lines()])

    def _metric_lines(self) -> list[str]:
        instances = sum(entry.instances for entry in self.per_class)
        columns = [f"{name:<6}{_percent(value)}" for name, value in self.metrics.items()]
        return [f"COCO mask metrics in percent: {self.images} images, {instances} instances"] + [
            "   ".join(["", *columns[start : start + METRICS_PER_LINE]])
            for start in range(0, len(columns), METRICS_PER_LINE)
        ]

    def _class_lines(self) -> list[str]:
        names = [escaped(entry.name) for entry in self.per_class]
        width = max(len("class"), *map(len, names))
        return [f"{'class':<{width}}    AP  AP50  instances"] + [
            f"{name:<{width}} {_percent(entry.ap)} {_percent(entry.ap50)} {entry.instances:>10}"
            for name, entry in zip(names, self.per_class, strict=True)
        ]

    def _timing_lines(self) -> list[str]:
        if self.timings is None:
            return []
        timings = self.timings
        stages = ", ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in timings.stages.items())
        return [
            "",
            f"{timings.images} images in {timings.seconds:.1f} s: {timings.images_per_second:.2f} images/s",
            f"milliseconds per image: {stages}",
        ]


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> str:
    return "    -" if math.isnan(value) else f"{100 * value:5.1f}"
