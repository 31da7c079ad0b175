"""Training and fine-tuning.

    from solo_infer import SOLO
    from solo_infer.training import CocoFiles, fine_tune

    data = CocoFiles(Path("train"), Path("train.json"))
    fine_tune(SOLO.from_pretrained("tiny"), data, Path("run"))

``fine_tune`` is ``fit`` with a data set and augmentation made from a recipe. For other data give ``fit``
any batches; for another loop call the network itself: in train mode ``network(images, targets)`` returns its
losses.
"""

from solo_infer.errors import TrainingError
from solo_infer.training.backbone_weights import load_backbone_weights
from solo_infer.training.dataset import CocoDataset, union
from solo_infer.training.fine_tune import CocoFiles, Validation, fine_tune
from solo_infer.training.initialization import init_model, replace_classifier
from solo_infer.training.loader import DatasetBatches, collate
from solo_infer.training.recipe import (
    FINE_TUNE,
    PUBLISHED_1X,
    PUBLISHED_3X,
    PUBLISHED_YOLACT,
    RECIPES,
    Recipe,
)
from solo_infer.training.trainer import Batches, fit

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
    "init_model",
    "load_backbone_weights",
    "union",
    "replace_classifier",
]
