"""Fine-tuning in one call, from a model, a COCO data set and a recipe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from solo_infer.config import BasePostprocessConfig
from solo_infer.errors import ConfigError
from solo_infer.evaluation.evaluate import evaluate
from solo_infer.evaluation.metrics import DEFAULT_MAX_DETECTIONS
from solo_infer.runtime.distributed import is_main_process_env
from solo_infer.runtime.output_files import refuse_overwriting
from solo_infer.segmenters.base import Segmenter
from solo_infer.training.checkpointing import STATE_NAME, written
from solo_infer.training.data_checks import check_image_files, check_validation
from solo_infer.training.data_files import CocoFiles, YoloFiles
from solo_infer.training.dataset import CocoDataset
from solo_infer.training.initialization import replace_classifier
from solo_infer.training.loader import DatasetBatches
from solo_infer.training.metrics_log import EVALUATIONS_NAME, LOSSES_NAME, PLOT_NAME
from solo_infer.training.recipe import FINE_TUNE, Recipe
from solo_infer.training.torch_state import neutral_torch_state
from solo_infer.training.trainer import RECIPE_NAME, fit
from solo_infer.training.transforms import fixed_input_size, make_augmentation
from solo_infer.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME

SHARDS_NAME = "evaluation"
# Files that a run writes to its directory.
RUN_FILES = (
    CONFIG_NAME,
    WEIGHTS_NAME,
    STATE_NAME,
    RECIPE_NAME,
    LOSSES_NAME,
    EVALUATIONS_NAME,
    PLOT_NAME,
)


@dataclass(frozen=True)
class CocoEvaluator:
    """COCO evaluation for the argument ``evaluate`` of ``fit``; the processes of torchrun share the images.

    Attributes:
        data: Data set.
        folder: Directory in which the processes exchange their detections.
        classes: Names of the classes to evaluate. Defaults to all.
        max_detections: Detections per image and class that count; see ``solo_infer.evaluation.evaluate``.
    """

    data: CocoFiles
    folder: Path
    classes: Sequence[str] | None = None
    max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS

    def __call__(self, model: Segmenter) -> dict[str, float]:
        """Return the COCO metrics, AP first; an empty dict in all processes except the main one."""
        evaluation = evaluate(
            model,
            self.data.images,
            self.data.annotations,
            classes=self.classes,
            max_detections=self.max_detections,
            shards=self.folder,
            progress=False,
        )
        return {} if evaluation is None else evaluation.metrics


@neutral_torch_state()
def fine_tune(
    model: Segmenter,
    data: CocoFiles | YoloFiles,
    output: str | os.PathLike[str],
    recipe: Recipe = FINE_TUNE,
    *,
    validation: CocoFiles | YoloFiles | None = None,
    classes: Sequence[str] | None = None,
    max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS,
    device: str | torch.device | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a model on a data set in COCO or YOLO format.

    All data, that of the validation included, is read before the first iteration. The images are opened, but
    not decoded.

    Args:
        model: Initial model. If its classes differ from those of the data set, the classification layers of
            the trained model are initialized again. ``model`` itself is not changed.
        data: Training data.
        output: Directory of the run; see ``fit``. ``SOLO.from_pretrained`` loads it, and its folder "best".
        recipe: Settings of the run.
        validation: Data on which the model is evaluated during training; classes that it lacks are not
            evaluated. Defaults to no evaluation.
        classes: Names of the classes of the data set to train, in the order of the labels. Defaults to all.
        max_detections: Detections per image and class that count in the evaluation; see
            ``solo_infer.evaluation.evaluate``. The trained model returns at least the greatest number of
            detections per image.
        device: As in ``SOLO.from_pretrained``.
        resume: Whether to continue the run in ``output``, if there is one.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        The directory of the run.

    Raises:
        DataError: The data set is wrong.
        ConfigError: A setting is out of range, or ``output`` is not empty and ``resume`` is not set.
        TrainingError: A loss is not finite, the run in ``output`` has other settings or data, or a process
            that loads images died.
        CheckpointError: A file of the run in ``output`` is damaged.
        CacheError: ``output`` cannot be written.
        ResultError: A file of the run would overwrite an annotation file.
    """
    folder = Path(output)
    require_empty_dir(folder, resume)
    coco = data.to_coco()
    coco_validation = None if validation is None else validation.to_coco()
    _keep_annotations(folder, coco, coco_validation)
    batches = _training_batches(model, coco, classes, recipe)
    evaluator = None
    if coco_validation is not None:
        evaluator = _evaluator(coco_validation, folder / SHARDS_NAME, batches.dataset.classes, max_detections)
    initial = replace_classifier(model, batches.dataset.categories, recipe.seed)
    initial = initial.with_thresholds(_with_max_detections(initial.config.thresholds, max(max_detections)))
    return fit(
        initial, batches, folder, recipe, device=device, evaluate=evaluator, resume=resume, progress=progress
    )


def _training_batches(
    model: Segmenter, data: CocoFiles, classes: Sequence[str] | None, recipe: Recipe
) -> DatasetBatches:
    """Return the batches of a data set whose images have been checked."""
    preprocessing = model.config.preprocessing
    augment = make_augmentation(recipe, preprocessing)
    dataset = CocoDataset(data.images, data.annotations, classes, augment=augment, seed=recipe.seed)
    if is_main_process_env():  # once, not in every process of torchrun
        check_image_files(dataset.index)
    return DatasetBatches(
        dataset,
        min(recipe.batch_size, len(dataset)),
        preprocessing,
        seed=recipe.seed,
        workers=recipe.workers,
        size=fixed_input_size(recipe, preprocessing),
        by_orientation=recipe.augment != "jitter",
    )


def _evaluator(
    validation: CocoFiles, folder: Path, classes: Sequence[str], max_detections: Sequence[int]
) -> CocoEvaluator:
    """Return the evaluation of those classes that the validation data have; check these first."""
    present = check_validation(
        validation.images,
        validation.annotations,
        classes,
        max_detections,
        check_files=is_main_process_env(),
    )
    return CocoEvaluator(validation, folder, present, max_detections)


def require_empty_dir(output: str | os.PathLike[str], resume: bool = False) -> None:
    """Raise ``ConfigError`` if a directory exists and is not empty, unless its run is to be resumed.

    Raises:
        CacheError: The directory cannot be read.
    """
    folder = Path(output)
    with written(folder):
        if resume or not folder.exists():
            return
        if not folder.is_dir() or os.listdir(folder):
            raise ConfigError(f"{folder} is not an empty directory: choose another one, or resume its run.")


def _keep_annotations(folder: Path, data: CocoFiles, validation: CocoFiles | None) -> None:
    """Raise ``ResultError`` if the files of a run would overwrite an annotation file."""
    annotations = [files.annotation_file for files in (data, validation) if files is not None]
    outputs = {f"the file {name} of the run": folder / name for name in RUN_FILES}
    refuse_overwriting(outputs, {"the annotations": annotations})


def _with_max_detections(thresholds: BasePostprocessConfig, count: int) -> BasePostprocessConfig:
    """Return thresholds that allow at least ``count`` detections per image, with five candidates for each."""
    candidates = count if count <= thresholds.max_per_image else 5 * count
    return dataclasses.replace(
        thresholds,
        max_per_image=max(thresholds.max_per_image, count),
        nms_pre=max(thresholds.nms_pre, candidates),
    )
