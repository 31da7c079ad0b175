"""Fine-tuning in one call: a model, a COCO data set, a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from solo_infer.config import ModelConfig
from solo_infer.errors import ConfigError
from solo_infer.evaluation.evaluate import evaluate
from solo_infer.evaluation.metrics import DEFAULT_MAX_DETECTIONS
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.segmenters.base import Segmenter
from solo_infer.training.dataset import CocoDataset
from solo_infer.training.initialization import replace_classifier
from solo_infer.training.loader import DatasetBatches
from solo_infer.training.policies import augmentation, batch_size_in_pixels
from solo_infer.training.recipe import FINE_TUNE, Recipe
from solo_infer.training.trainer import fit

SHARDS_NAME = "evaluation"


@dataclass(frozen=True)
class CocoFiles:
    """A data set on disk.

    Attributes:
        images: The folder that the file names of the annotations start from.
        annotations: COCO annotation file.
    """

    images: Path
    annotations: Path


@dataclass(frozen=True)
class Validation:
    """Scores a model on a data set, for ``fit``; the processes of torchrun share the images.

    Attributes:
        data: The data set.
        folder: Where the processes leave their detections for one another.
        classes: Only these classes.
        max_detections: As in ``evaluation.evaluate``.
    """

    data: CocoFiles
    folder: Path
    classes: Sequence[str] | None = None
    max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS

    def __call__(self, model: Segmenter) -> dict[str, float]:
        """Return the COCO metrics, AP first; {} in all processes but the first."""
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


def fine_tune(
    model: Segmenter,
    data: CocoFiles,
    output: Path,
    recipe: Recipe = FINE_TUNE,
    *,
    validation: CocoFiles | None = None,
    classes: Sequence[str] | None = None,
    max_detections: Sequence[int] = DEFAULT_MAX_DETECTIONS,
    device: str | torch.device | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a model on a COCO data set.

    Args:
        model: Where to start. If it has other classes than the data set, its classification layer starts
            anew. It stays as it is.
        data: Training images.
        output: The directory of the run; see ``fit``. ``SOLO.from_pretrained`` takes it, and ``output /
            "best"``.
        recipe: How to train.
        validation: Images to score the model on while it is trained.
        classes: Only these classes of the data set, in this order; all if not given.
        max_detections: For validation, as in ``evaluation.evaluate``. The trained model gives as many
            instances an image as the greatest.
        device: As in ``SOLO.from_pretrained``.
        resume: Go on with the run in ``output``, if there is one.
        progress: Show a progress bar, on a terminal.

    Returns:
        ``output``.

    Raises:
        DataError: The data set is wrong.
        ConfigError: A setting is out of range, or ``output`` holds something and ``resume`` is not set.
        TrainingError: A loss is not finite, or the run in ``output`` is another one.
    """
    require_free(output, resume)
    preprocessing = model.config.preprocessing
    dataset = CocoDataset(
        Path(data.images),
        Path(data.annotations),
        classes,
        augment=augmentation(recipe, preprocessing),
        seed=recipe.seed,
    )
    batches = DatasetBatches(
        dataset,
        min(recipe.batch_size, len(dataset)),
        preprocessing,
        seed=recipe.seed,
        workers=recipe.workers,
        size=batch_size_in_pixels(recipe, preprocessing),
        by_orientation=recipe.augment != "jitter",
    )
    start = replace_classifier(model, dataset.categories, recipe.seed)
    start = build_segmenter(_finding(start.config, max(max_detections)), start.network)
    check = None
    if validation is not None:
        check = Validation(validation, output / SHARDS_NAME, dataset.classes, max_detections)
    return fit(
        start, batches, output, recipe, device=device, evaluate=check, resume=resume, progress=progress
    )


def require_free(output: Path, resume: bool) -> None:
    """Raise ConfigError if a directory holds something that a new run would mix with."""
    if resume or not output.exists():
        return
    if not output.is_dir() or os.listdir(output):
        raise ConfigError(
            f"{output} is not an empty directory: choose another one, or resume the run that it holds."
        )


def _finding(config: ModelConfig, count: int) -> ModelConfig:
    """Return a configuration that gives at least so many instances an image."""
    old = config.thresholds
    candidates = max(old.nms_pre, count if count <= old.max_per_image else 5 * count)
    return replace(
        config,
        thresholds=replace(old, max_per_image=max(old.max_per_image, count), nms_pre=candidates),
    )
