"""Train the model that comes with the package, from ImageNet weights, on sets that label different classes.

    python examples/train_tiny.py coco/images coco efficientnet-lite0-57934424.pth run

The second argument is a directory with {all80,road4,person}_{train,val}.json. Interrupted, it goes on.
On CPUs with glibc, set MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000: else the memory of every layer
goes back to the system and is asked for again, which takes a good part of the time.
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
    init_model,
    load_backbone_weights,
    union,
)
from solo_infer.training.policies import augmentation, batch_size_in_pixels

SETS = ("all80", "road4", "person")
SETTINGS = Path(__file__).with_name("tiny.json")


def main(images, annotations, body, output, settings=SETTINGS):
    settings = json.loads(Path(settings).read_text())
    sets = {
        part: [CocoDataset(images, Path(annotations) / f"{name}_{part}.json") for name in SETS]
        for part in ("train", "val")
    }
    validation = frozenset().union(*(dataset.file_names for dataset in sets["val"]))
    data = union(sets["train"], exclude=validation)
    classes = data.categories
    architecture = SOLOConfig(**settings["architecture"], num_classes=len(classes))
    preprocessing = PreprocessConfig(**settings["preprocessing"])
    first = Recipe.from_dict(settings["stages"][0])
    model = init_model(ModelConfig(architecture, preprocessing, categories=classes), first.seed)
    load_backbone_weights(model.network, Path(body))
    for number, stage in enumerate(settings["stages"], start=1):
        recipe = Recipe.from_dict(stage)
        stage_data = union(
            sets["train"],
            exclude=validation,
            augment=augmentation(recipe, preprocessing),
            seed=recipe.seed,
            filter_empty=False,
            cache=True,
        )
        batches = DatasetBatches(
            stage_data,
            recipe.batch_size,
            preprocessing,
            seed=recipe.seed,
            workers=recipe.workers,
            size=batch_size_in_pixels(recipe, preprocessing),
        )
        folder = fit(model, batches, Path(output) / f"stage{number}", recipe, resume=True)
        # The next stage starts from the averaged weights, which are what is saved.
        model = SOLO.from_pretrained(folder, device="cpu")
    print(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(*sys.argv[1:])
