"""How good a model is on a COCO data set: mask AP, and how long it took.

    evaluation = evaluate(model, Path("val2017"), Path("instances_val2017.json"))
    print(evaluation.format_table())

Detections are written to a file image by image, so that predicting takes no more memory for more images.
Several processes share the images by files:

    evaluate_jointly(model, images, annotations)                                    in those of torchrun
    evaluate_shard(model, images, annotations, shards, rank=rank, world_size=4)     in each of any others
    score_shards(annotations, shards, world_size=4)                                 in one, after all
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import distributed

from solo_infer.data.coco import CocoData, read_annotations, read_ground_truth
from solo_infer.data.coco_results import read_detections
from solo_infer.errors import ConfigError, DataError, ResultError
from solo_infer.evaluation.metrics import DEFAULT_MAX_DETECTIONS, ClassMetrics, check_max_detections, measure
from solo_infer.evaluation.predict import (
    Timings,
    discard_timings,
    merge_detections,
    merge_timings,
    predict_images,
    read_timings,
    shard_path,
    some,
    timings_path,
    write_timings,
)
from solo_infer.segmenters.base import Segmenter

__all__ = [
    "ClassMetrics",
    "Evaluation",
    "Timings",
    "evaluate",
    "evaluate_distributed",
    "evaluate_shard",
    "merge_detections",
    "score",
    "score_shards",
]


@dataclass(frozen=True)
class Evaluation:
    """The outcome: COCO mask metrics, 0..1, NaN where there is nothing to measure.

    Attributes:
        metrics: "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100" (one for each of the
            ``max_detections``), "ARs", "ARm", "ARl".
        per_class: Of each class that was evaluated, by category id.
        images: How many were evaluated.
        timings: Of predicting; None if the detections were there already.
        detections: The COCO results file, None if it was not to be kept.
    """

    metrics: dict[str, float]
    per_class: list[ClassMetrics]
    images: int
    timings: Timings | None = None
    detections: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, with None for NaN."""
        return {
            "metrics": {name: _or_none(value) for name, value in self.metrics.items()},
            "per_class": [
                {
                    "name": found.name,
                    "AP": _or_none(found.ap),
                    "AP50": _or_none(found.ap50),
                    "instances": found.instances,
                }
                for found in self.per_class
            ],
            "images": self.images,
            "timings": self.timings and _timings_to_dict(self.timings),
            "detections": self.detections and str(self.detections),
        }

    def format_table(self) -> str:
        """Return the metrics in percent, a line for each class, and the timings, as text."""
        return "\n".join([*self._metric_lines(), "", *self._class_lines(), *self._timing_lines()])

    def _metric_lines(self) -> list[str]:
        instances = sum(found.instances for found in self.per_class)
        cells = [f"{name:<6}{_percent(value)}" for name, value in self.metrics.items()]
        return [f"COCO mask metrics in percent: {self.images} images, {instances} instances"] + [
            "   ".join(["", *cells[start : start + 3]]) for start in range(0, len(cells), 3)
        ]

    def _class_lines(self) -> list[str]:
        width = max(len("class"), *(len(found.name) for found in self.per_class))
        return [f"{'class':<{width}}    AP  AP50  instances"] + [
            f"{found.name:<{width}} {_percent(found.ap)} {_percent(found.ap50)} {found.instances:>10}"
            for found in self.per_class
        ]

    def _timing_lines(self) -> list[str]:
        if self.timings is None:
            return []
        total = self.timings
        stages = ", ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in total.stages.items())
        return [
            "",
            f"{total.images} images in {total.seconds:.1f} s: {total.images_per_second:.2f} a second",
            f"milliseconds an image: {stages}",
        ]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> str:
    return "    -" if math.isnan(value) else f"{100 * value:5.1f}"


def _timings_to_dict(timings: Timings) -> dict[str, Any]:
    return {**asdict(timings), "images_per_second": _or_none(timings.images_per_second)}


def evaluate(
    model: Segmenter,
    images: Path,
    annotations: Path,
    *,
    output: Path | None = None,
    max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS,
    batch_size: int = 1,
    limit: int | None = None,
    classes: Iterable[str] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Predict the images of a COCO data set and score the detections.

    The model's classes are matched with the file's by name. A class of the file that the model lacks
    counts with AP 0; classes of the model that the file lacks are left out before the best detections of
    an image are taken.

    Args:
        model: Its own thresholds hold, but it gives at least as many detections an image as the greatest of
            ``max_detections``.
        images: The folder that the annotation file's "file_name" start from.
        annotations: COCO annotation file.
        output: Keep the detections here: a COCO results file, which pycocotools reads as it is. Ctrl-C
            leaves what is done by then.
        max_detections: Detections per image and class that count, best first.
        batch_size: As in ``SOLO.stream``.
        limit: Only the first so many images of the file.
        classes: Only these classes of the file; all if not given.
        progress: Show a progress bar on a terminal.

    Raises:
        DataError: The annotation file is wrong, images are missing or of another size than it says, or
            it has no class in common with the model.
        ImageError: An image cannot be decoded.
        ResultError: ``output`` cannot be written.
        ConfigError: A number is out of range.
    """
    numbers = check_max_detections(max_detections)
    data = read_annotations(annotations, classes=classes, limit=limit)
    truths = read_ground_truth(data)
    if output is not None and output.exists() and not output.is_file():
        raise ResultError(f"{output} is no regular file: expected the name of a JSON file to write.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detections.json" if output is None else output
        timings = predict_images(
            model,
            images,
            data,
            path,
            max_detections=numbers[-1],
            batch_size=batch_size,
            progress=progress,
        )
        metrics, per_class = measure(data, truths, read_detections([path], data), numbers)
    return Evaluation(metrics, per_class, len(data.images), timings, output)


def score(
    annotations: Path,
    detections: Path,
    *,
    max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS,
    limit: int | None = None,
    classes: Iterable[str] | None = None,
) -> Evaluation:
    """Score detections that are there already.

    Areas are those of the masks: a "bbox" of a detection, which ``COCO.loadRes`` would take the area of,
    does not count.

    Args:
        annotations: COCO annotation file.
        detections: COCO results file with the ids of that file.
        max_detections: Detections per image and class that count, best first.
        limit: Only the first so many images of the annotation file.
        classes: Only these classes; all of the annotation file if not given.

    Raises:
        DataError: A file is wrong, or the two do not belong together.
        ConfigError: A number is out of range.
    """
    numbers = check_max_detections(max_detections)
    data = read_annotations(annotations, classes=classes, limit=limit)
    metrics, per_class = measure(data, read_ground_truth(data), read_detections([detections], data), numbers)
    return Evaluation(metrics, per_class, len(data.images), None, detections)


def evaluate_shard(
    model: Segmenter,
    images: Path,
    annotations: Path,
    shards: Path,
    *,
    rank: int,
    world_size: int,
    max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS,
    batch_size: int = 1,
    limit: int | None = None,
    classes: Iterable[str] | None = None,
    progress: bool = True,
) -> Path:
    """Predict the images rank, rank + world_size, ... of a data set into a file for ``score_shards``.

    Arguments and errors are those of ``evaluate``, and the same in all processes but for these:

    Args:
        model: As for ``evaluate``.
        images: As for ``evaluate``.
        annotations: As for ``evaluate``.
        shards: A folder that all processes share; made if it is not there, older shards are replaced.
        rank: Of this process, 0..world_size-1.
        world_size: Number of processes.
        max_detections: As for ``evaluate``.
        batch_size: As for ``evaluate``.
        limit: As for ``evaluate``.
        classes: As for ``evaluate``.
        progress: As for ``evaluate``.

    Returns:
        The shard, a COCO results file.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank={rank}, world_size={world_size}: expected a rank of 0..{world_size - 1}.")
    numbers = check_max_detections(max_detections)
    data = read_annotations(annotations, classes=classes, limit=limit)
    path = shard_path(shards, rank, world_size)
    discard_timings(timings_path(path))
    timings = predict_images(
        model,
        images,
        replace(data, images=data.images[rank::world_size]),
        path,
        max_detections=numbers[-1],
        batch_size=batch_size,
        progress=progress,
    )
    write_timings(timings, timings_path(path))
    return path


def evaluate_distributed(
    model: Segmenter, images: Path, annotations: Path, *, output: Path | None = None, **chosen: Any
) -> Evaluation | None:
    """Evaluate in all processes of ``torch.distributed``, each of which takes its part of the images.

    Arguments and errors are those of ``evaluate``, and the same in all processes. On several machines
    ``output`` must be given, and lie on a disk that they share.

    Returns:
        What ``evaluate`` returns, in the first process; None in the others.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    folder = [tempfile.mkdtemp(prefix=".shards-", dir=output and output.parent)] if rank == 0 else [""]
    distributed.broadcast_object_list(folder)
    shards = Path(folder[0])
    try:
        evaluate_shard(
            model,
            images,
            annotations,
            shards,
            rank=rank,
            world_size=world_size,
            progress=rank == 0,
            **chosen,
        )
        distributed.barrier()
        if rank:
            return None
        chosen.pop("batch_size", None)
        return score_shards(annotations, shards, world_size=world_size, output=output, **chosen)
    finally:
        if rank == 0:
            shutil.rmtree(shards)


def score_shards(
    annotations: Path,
    shards: Path,
    *,
    world_size: int,
    output: Path | None = None,
    max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS,
    limit: int | None = None,
    classes: Iterable[str] | None = None,
) -> Evaluation:
    """Score what ``evaluate_shard`` wrote in all processes, when all have returned.

    Args:
        annotations: COCO annotation file.
        shards: The folder of the shards; they stay there.
        world_size: Number of processes.
        output: Merge the detections into this COCO results file.
        max_detections: As given to ``evaluate_shard``.
        limit: As given to ``evaluate_shard``.
        classes: As given to ``evaluate_shard``.

    Raises:
        DataError: A shard is missing or not complete, or they are of other images.
        ResultError: ``output`` cannot be written.
        ConfigError: A number is out of range.
    """
    numbers = check_max_detections(max_detections)
    data = read_annotations(annotations, classes=classes, limit=limit)
    if world_size < 1:
        raise ConfigError(f"world_size={world_size}: expected at least 1 process.")
    files = [shard_path(shards, rank, world_size) for rank in range(world_size)]
    timings = _gather_timings(files, data)
    if output is not None:
        merge_detections(files, output)
    metrics, per_class = measure(data, read_ground_truth(data), read_detections(files, data), numbers)
    return Evaluation(metrics, per_class, len(data.images), timings, output)


def _gather_timings(files: Sequence[Path], data: CocoData) -> Timings:
    """Return the timings of all shards, and see to it that these are complete."""
    missing = [path.name for path in files if not (path.is_file() and timings_path(path).is_file())]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} shards in {files[0].parent} are missing or not complete "
            f"({some(missing)}): call evaluate_shard in every process, and this after all have returned."
        )
    timings = merge_timings([read_timings(timings_path(path)) for path in files])
    if timings.images != len(data.images):
        raise DataError(
            f"The shards in {files[0].parent} hold {timings.images} images, not {len(data.images)}: expected "
            f"those of {data.path}, with the same limit."
        )
    return timings
