"""Train the embedded model "tiny" from ImageNet weights, on data sets that label different classes.

    python examples/train_tiny.py coco/images coco efficientnet-lite0-57934424.pth run

The second argument is a directory with {all80,road4,person}_{train,val}.json. An interrupted run continues
when the command is repeated. On CPUs with glibc, set MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000,
which avoids returning the memory of every layer to the system and requesting it again.
"""

import json
import logging
import sys
from pathlib import Path

from solo_infer import SOLO, ModelConfig, PreprocessConfig, SOLOConfig
from solo_infer.training import (
    CocoDataset,
    DatasetBatches,
    Recipe,
    fit,
    fixed_input_size,
    init_model,
    load_backbone_weights,
    make_augmentation,
    union,
)

DATASETS = ("all80", "road4", "person")
SETTINGS = Path(__file__).with_name("tiny.json")


def main(images, annotations, backbone, output, settings=SETTINGS):
    settings = json.loads(Path(settings).read_text())
    datasets = {
        split: [CocoDataset(images, Path(annotations) / f"{name}_{split}.json") for name in DATASETS]
        for split in ("train", "val")
    }
    validation_files = frozenset().union(*(dataset.file_names for dataset in datasets["val"]))
    categories = union(datasets["train"], exclude=validation_files).categories
    architecture = SOLOConfig(**settings["architecture"], num_classes=len(categories))
    preprocessing = PreprocessConfig(**settings["preprocessing"])
    recipes = [Recipe.from_dict(stage) for stage in settings["stages"]]
    model = init_model(ModelConfig(architecture, preprocessing, categories=categories), recipes[0].seed)
    load_backbone_weights(model.network, backbone)
    for number, recipe in enumerate(recipes, start=1):
        dataset = union(
            datasets["train"],
            exclude=validation_files,
            augment=make_augmentation(recipe, preprocessing),
            seed=recipe.seed,
            filter_empty=False,
            cache=True,
        )
        batches = DatasetBatches(
            dataset,
            recipe.batch_size,
            preprocessing,
            seed=recipe.seed,
            workers=recipe.workers,
            size=fixed_input_size(recipe, preprocessing),
        )
        folder = fit(model, batches, Path(output) / f"stage{number}", recipe, resume=True)
        # The next stage starts from the saved weights, which are the moving average.
        model = SOLO.from_pretrained(folder, device="cpu")
    print(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(*sys.argv[1:])
