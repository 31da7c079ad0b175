"""Training and fine-tuning.

    from solo_infer import SOLO
    from solo_infer.training import CocoFiles, fine_tune

    data = CocoFiles(Path("train"), Path("train.json"))
    fine_tune(SOLO.from_pretrained("tiny"), data, Path("run"))

``fine_tune`` is ``fit`` with a data set and augmentation made from a recipe. For other data give ``fit``
any batches; for another loop call the network itself: in train mode ``network(images, targets)`` returns its
losses.
"""

from solo_infer.training.batches import DatasetBatches, collate
from solo_infer.training.bodies import load_body
from solo_infer.training.dataset import CocoDataset, union
from solo_infer.training.fine_tuning import CocoFiles, Validation, fine_tune
from solo_infer.training.loop import Batches, TrainingError, fit
from solo_infer.training.recipe import (
    FINE_TUNE,
    PUBLISHED_1X,
    PUBLISHED_3X,
    PUBLISHED_YOLACT,
    RECIPES,
    Recipe,
)
from solo_infer.training.start import fresh_model, with_classes

__all__ = [
    "FINE_TUNE",
    "PUBLISHED_1X",
    "PUBLISHED_3X",
    "PUBLISHED_YOLACT",
    "RECIPES",
    "Batches",
    "CocoDataset",
    "CocoFiles",
    "DatasetBatches",
    "Recipe",
    "TrainingError",
    "Validation",
    "collate",
    "fine_tune",
    "fit",
    "fresh_model",
    "load_body",
    "union",
    "with_classes",
]
