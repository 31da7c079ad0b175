"""Training and fine-tuning.

    from solo_infer import SOLO
    from solo_infer.training import CocoFiles, fine_tune

    fine_tune(SOLO.from_pretrained("tiny"), CocoFiles("train", "train.json"), "run")

``fine_tune`` builds the data set and the augmentation from a recipe and calls ``fit``, which takes any source
of batches. For another training loop call the network itself: in train mode ``network(images, targets)``
returns a dict of losses.
"""

from solo_infer.errors import TrainingError
from solo_infer.training.data_files import CocoFiles, YoloFiles
from solo_infer.training.dataset import CocoDataset, union
from solo_infer.training.fine_tune import CocoEvaluator, fine_tune
from solo_infer.training.initialization import init_model, load_backbone_weights, replace_classifier
from solo_infer.training.loader import DatasetBatches, collate
from solo_infer.training.recipe import (
    FINE_TUNE,
    PUBLISHED_1X,
    PUBLISHED_3X,
    PUBLISHED_SOLOV2_1X,
    PUBLISHED_SOLOV2_3X,
    PUBLISHED_YOLACT,
    RECIPES,
    Recipe,
)
from solo_infer.training.trainer import Batches, fit
from solo_infer.training.transforms import Augmentation, fixed_input_size, make_augmentation

__all__ = [
    "FINE_TUNE",
    "PUBLISHED_1X",
    "PUBLISHED_3X",
    "PUBLISHED_SOLOV2_1X",
    "PUBLISHED_SOLOV2_3X",
    "PUBLISHED_YOLACT",
    "RECIPES",
    "Augmentation",
    "Batches",
    "CocoDataset",
    "CocoEvaluator",
    "CocoFiles",
    "DatasetBatches",
    "Recipe",
    "TrainingError",
    "YoloFiles",
    "collate",
    "fine_tune",
    "fit",
    "fixed_input_size",
    "init_model",
    "load_backbone_weights",
    "make_augmentation",
    "replace_classifier",
    "union",
]
