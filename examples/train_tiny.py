"""Train the embedded model "tiny" from the weights of NanoDet-Plus, on sets that label different classes.

    python examples/nanodet_to_tiny.py nanodet_plus_1.5x.npz start
    python examples/train_tiny.py start sets.json run

``sets.json`` holds {"train": [[images, annotations, share], ...], "validation": [[images, annotations],
...]}: folders of images, COCO files, and the share of a set's images that take part. All images of the
validation sets are kept out of the training. An interrupted run continues when the command is repeated. On
CPUs with glibc, set MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000, which avoids returning the memory
of every layer to the system and requesting it again.

In the first stage only the branches of the masks are trained. In the second all layers are; there the class
scores and boxes of the start, which was trained on far more photos, are targets beside the labels.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from solo_infer import SOLO, PreprocessConfig
from solo_infer.config import COCO, find_preset
from solo_infer.models.tiny.losses import tiny_losses
from solo_infer.models.tiny.network import TinyNetwork
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.training import (
    CocoDataset,
    DatasetBatches,
    Recipe,
    fit,
    fixed_input_size,
    make_augmentation,
    union,
)

SETTINGS = Path(__file__).with_name("tiny.json")
MIN_TEACHER_SCORE = 0.1  # best class score of a cell whose box the teacher is asked for


class DistilledNetwork(TinyNetwork):
    """Network whose class scores and boxes also learn those of a teacher, which keeps them from drifting."""

    losses = (*TinyNetwork.losses, "loss_teacher")

    def __init__(self, network, teacher):
        super().__init__(network.config)
        self.load_state_dict(network.state_dict())
        self.__dict__["teacher"] = teacher  # no submodule: it is neither trained nor saved

    def forward(self, images, targets=None):
        """Return the losses, with that of the teacher."""
        if not self.training:
            return super().forward(images)
        output = self.raw_outputs(images)
        with torch.no_grad():
            expected = self.teacher.raw_outputs(images).cells
        losses = tiny_losses(*output, targets)
        return {**losses, "loss_teacher": teacher_loss(output.cells, expected)}


def teacher_loss(cells, expected):
    """Return the divergence of class scores and distances from those of the teacher."""
    scores, logits = expected.class_logits.sigmoid(), expected.class_logits
    best = scores.amax(dim=-1)
    entropy = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    cross_entropy = F.binary_cross_entropy_with_logits(cells.class_logits, scores, reduction="none")
    classes = (cross_entropy - entropy).sum() / best.sum().clamp(min=1)
    known = best > MIN_TEACHER_SCORE
    bins, expected_bins = (
        values[known].unflatten(-1, (4, -1)).log_softmax(dim=-1)
        for values in (cells.distance_logits, expected.distance_logits)
    )
    divergence = F.kl_div(bins, expected_bins, log_target=True, reduction="none").sum(dim=(1, 2))
    return classes + (divergence * best[known]).sum() / best[known].sum().clamp(min=1)


def read_sets(path):
    """Return the training sets of a JSON file and the file names to keep out of the training."""
    sets = json.loads(Path(path).read_text())
    excluded = set()
    for images, annotations in sets["validation"]:
        excluded |= CocoDataset(images, annotations).file_names
    datasets = []
    for images, annotations, share in sets["train"]:
        dataset = CocoDataset(images, annotations)
        names = sorted(dataset.file_names)
        kept = {names[int(index / share)] for index in range(int(len(names) * share))}
        excluded |= dataset.file_names - kept
        datasets.append(dataset)
    return datasets, frozenset(excluded)


def with_context_blocks(model):
    """Return a model with the context blocks of the preset; new ones change nothing at first."""
    count = find_preset("tiny").architecture.mask_context_blocks
    architecture = replace(model.config.architecture, mask_context_blocks=count)
    network = TinyNetwork(architecture)
    network.init_weights()
    network.load_state_dict(model.network.state_dict(), strict=False)
    return build_segmenter(replace(model.config, architecture=architecture), network.eval())


def main(start, sets, output, settings=SETTINGS):
    settings = json.loads(Path(settings).read_text())
    model = with_context_blocks(SOLO.from_pretrained(start))
    preprocessing = PreprocessConfig(**settings["preprocessing"])
    model = build_segmenter(replace(model.config, preprocessing=preprocessing), model.network)
    teacher = SOLO.from_pretrained(start).network.to(memory_format=torch.channels_last)
    datasets, excluded = read_sets(sets)
    for number, recipe in enumerate(map(Recipe.from_dict, settings["stages"]), start=1):
        dataset = union(
            datasets,
            classes=COCO.names,
            exclude=excluded,
            augment=make_augmentation(recipe, preprocessing),
            seed=recipe.seed,
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
        if recipe.lr_mult_of("head.class_out.0.weight"):
            model = build_segmenter(model.config, DistilledNetwork(model.network, teacher).eval())
        folder = fit(model, batches, Path(output) / f"stage{number}", recipe, resume=True)
        # The next stage starts from the saved weights, which are the moving average.
        model = SOLO.from_pretrained(folder)
    print(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    main(*sys.argv[1:])
