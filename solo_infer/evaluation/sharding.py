"""Evaluation shared by several processes.

Each process writes its detections to a file, and one process scores all files. ``evaluate`` does both when
``torch.distributed`` is initialized. Processes of another kind, such as the jobs of a cluster, call:

    evaluate_shard(model, images, annotations, shards, rank=rank, world_size=4)     in each process
    score_shards(annotations, shards, world_size=4)                                 in one, when all are done
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import distributed

from solo_infer.data.coco import CocoData
from solo_infer.data.coco_results import iterate_list
from solo_infer.errors import ConfigError, DataError, ResultError
from solo_infer.evaluation.predict import predict_images
from solo_infer.evaluation.report import Evaluation, Timings
from solo_infer.evaluation.task import EvaluationTask, TaskOptions
from solo_infer.runtime.atomic_files import write_text, write_whole
from solo_infer.runtime.distributed import is_main_process, rank_and_world_size
from solo_infer.runtime.messages import summarize_names
from solo_infer.runtime.shards import Shard
from solo_infer.segmenters.base import Segmenter

if TYPE_CHECKING:
    from typing_extensions import Unpack


def evaluate_shard(
    model: Segmenter,
    images: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    shards: str | os.PathLike[str],
    *,
    rank: int,
    world_size: int,
    batch_size: int = 1,
    progress: bool = True,
    **options: Unpack[TaskOptions],
) -> Path:
    """Write the detections on the images rank, rank + world_size, ... of a data set for ``score_shards``.

    All arguments except ``rank`` must be the same in all processes.

    Args:
        model: Model, as in ``evaluate``.
        images: Folder of the images, as in ``evaluate``.
        annotations: Path of the COCO annotation file.
        shards: Directory that all processes share. It is created if missing; older shards are replaced.
        rank: Index of this process, 0..world_size-1.
        world_size: Number of processes.
        batch_size: Number of images per batch, as in ``evaluate``.
        progress: Show a progress bar on a terminal.
        options: ``max_detections``, ``limit`` and ``classes``, as in ``evaluate``.

    Returns:
        Path of the shard, a COCO results file.

    Raises:
        SoloInferError: As in ``evaluate``.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank={rank}, world_size={world_size}: expected a rank of 0..{world_size - 1}.")
    task = EvaluationTask.read(annotations, **options)
    return _predict_shard(model, Path(images), task, Path(shards), rank, world_size, batch_size, progress)


def score_shards(
    annotations: str | os.PathLike[str],
    shards: str | os.PathLike[str],
    *,
    world_size: int,
    output: str | os.PathLike[str] | None = None,
    **options: Unpack[TaskOptions],
) -> Evaluation:
    """Score the detections that ``evaluate_shard`` wrote, after it has returned in all processes.

    Args:
        annotations: Path of the COCO annotation file.
        shards: Directory of the shards, which are kept.
        world_size: Number of processes.
        output: Path of a COCO results file to merge the detections into. Defaults to not merging them.
        options: ``max_detections``, ``limit`` and ``classes``, as passed to ``evaluate_shard``.

    Raises:
        DataError: A shard is missing or incomplete, or the shards are of other images.
        ResultError: ``output`` cannot be written.
        ConfigError: A number is out of range.
    """
    task = EvaluationTask.read(annotations, **options)
    if world_size < 1:
        raise ConfigError(f"world_size={world_size}: expected at least 1 process.")
    return _score_files(task, Path(shards), world_size, None if output is None else Path(output))


def evaluate_distributed(
    model: Segmenter,
    images: Path,
    task: EvaluationTask,
    output: Path | None,
    shards: Path | None,
    batch_size: int,
    progress: bool,
) -> Evaluation | None:
    """Evaluate in all processes of ``torch.distributed``; see ``evaluate``.

    Returns:
        The evaluation in the main process, None in the others.
    """
    rank, world_size = rank_and_world_size()
    with _shared_directory(shards, output) as folder:
        show_progress = progress and is_main_process()
        _predict_shard(model, images, task, folder, rank, world_size, batch_size, show_progress)
        distributed.barrier()
        return _score_files(task, folder, world_size, output) if is_main_process() else None


def _predict_shard(
    model: Segmenter,
    images: Path,
    task: EvaluationTask,
    shards: Path,
    rank: int,
    world_size: int,
    batch_size: int,
    progress: bool,
) -> Path:
    path = shard_path(shards, rank, world_size)
    discard_timings(timings_path(path))
    timings = predict_images(
        model,
        images,
        replace(task.data, images=task.data.images[rank::world_size]),
        path,
        max_detections=task.max_detections[-1],
        batch_size=batch_size,
        progress=progress,
    )
    write_timings(timings, timings_path(path))
    return path


def _score_files(task: EvaluationTask, shards: Path, world_size: int, output: Path | None) -> Evaluation:
    files = [shard_path(shards, rank, world_size) for rank in range(world_size)]
    timings = _collect_timings(files, task.data)
    if output is not None:
        merge_detections(files, output)
    return task.score(files, timings, output)


@contextmanager
def _shared_directory(shards: Path | None, output: Path | None) -> Iterator[Path]:
    """Yield the directory of the shards in all processes; a temporary one is removed by the main process."""
    if shards is not None:
        yield shards
        return
    name = [""]
    if is_main_process():
        name = [_make_temporary_directory(output)]
    distributed.broadcast_object_list(name)
    try:
        yield Path(name[0])
    finally:
        if is_main_process():
            shutil.rmtree(name[0])


def _make_temporary_directory(output: Path | None) -> str:
    try:
        if output is None:
            return tempfile.mkdtemp(prefix="shards-")
        output.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix=".shards-", dir=output.parent)
    except OSError as error:
        raise ResultError(
            f"No directory for the detections of the processes: {error}. Pass shards."
        ) from error


def shard_path(shards: Path, rank: int, world_size: int) -> Path:
    """Return the path of the detections of one process."""
    return Shard(rank, world_size).path(shards / "detections.json")


def timings_path(shard: Path) -> Path:
    """Return the path of the timings of a shard, a file that exists when the shard is complete."""
    return shard.with_suffix(".timings.json")


def discard_timings(path: Path) -> None:
    """Remove the timings of an older shard, which would mark the new one as complete.

    Raises:
        ResultError: The file cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(f"{path} cannot be replaced: {error}. Choose another directory.") from error


def write_timings(timings: Timings, path: Path) -> None:
    """Write timings for ``read_timings``.

    Raises:
        ResultError: The file cannot be written.
    """
    try:
        write_text(path, json.dumps(asdict(timings)))
    except OSError as error:
        raise ResultError(f"{path} cannot be written: {error}. Choose another directory.") from error


def read_timings(path: Path) -> Timings:
    """Read the timings that ``write_timings`` wrote.

    Raises:
        DataError: The file cannot be read or holds something else.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Timings(int(values["images"]), float(values["seconds"]), dict(values["stages"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not hold the timings of a shard ({error!r}): run it again.") from error


def merge_timings(timings: Sequence[Timings]) -> Timings:
    """Return the timings of processes that ran in parallel."""
    images = sum(entry.images for entry in timings)
    totals: dict[str, float] = defaultdict(float)
    for entry in timings:
        for stage, seconds in entry.stages.items():
            totals[stage] += seconds * entry.images
    stages = {stage: total / images for stage, total in totals.items()}
    return Timings(images, max(entry.seconds for entry in timings), stages)


def merge_detections(files: Iterable[Path], output: Path) -> Path:
    """Merge COCO results files into one, entry by entry.

    Raises:
        DataError: A file cannot be read.
        ResultError: ``output`` cannot be written.
    """

    def write(staged: Path) -> None:
        with staged.open("w", encoding="ascii", newline="\n") as file:
            separator = "["
            for entry in (entry for path in files for entry in iterate_list(path)):
                file.write(f"{separator}\n{json.dumps(entry)}")
                separator = ","
            file.write("\n]\n" if separator == "," else "[\n]\n")

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(output, write)
    except OSError as error:
        raise ResultError(f"{output} cannot be written: {error}. Choose another file.") from error


def _collect_timings(files: Sequence[Path], data: CocoData) -> Timings:
    """Return the merged timings of all shards after checking that the shards are complete."""
    missing = [path.name for path in files if not (path.is_file() and timings_path(path).is_file())]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} shards in {files[0].parent} are missing or incomplete "
            f"({summarize_names(missing)}): call evaluate_shard in every process, then score_shards."
        )
    timings = merge_timings([read_timings(timings_path(path)) for path in files])
    if timings.images != len(data.images):
        raise DataError(
            f"The shards in {files[0].parent} hold {timings.images} images, not {len(data.images)}: expected "
            f"those of {data.path}, with the same limit."
        )
    return timings
