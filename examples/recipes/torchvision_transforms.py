"""Augment a data set with transforms of torchvision (v2), and train on it.

    python examples/recipes/torchvision_transforms.py IMAGES ANNOTATIONS OUTPUT [EPOCHS] [MODEL]

A sample is an image and a target of ``tv_tensors``, which the transforms change together.
"""

import sys
from dataclasses import replace

import torch
from torchvision.transforms import v2

from solo_infer import load_model
from solo_infer.training import FINE_TUNE, CocoDataset, DatasetBatches, fit, replace_classifier
from solo_infer.training.sample import make_sample, mask_bounds


class TorchvisionAugmentation:
    """Augmentation of a data set by a transform of torchvision.

    Args:
        transform: Transform of (image, target), uint8 in and out.
    """

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, sample, generator, draw):
        """Return the changed sample; instances that have left the image are dropped."""
        with torch.random.fork_rng(devices=[]):
            # The transforms draw from the global generator. This seed depends on the epoch and the image.
            torch.default_generator.manual_seed(generator.initial_seed())
            image, target = self.transform(sample.image, dict(sample.target))
        masks = target["masks"]
        return make_sample(
            image, masks, mask_bounds(masks), target["labels"], target["iscrowd"], target.get("labelled")
        )


def make_transform(side):
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(10, fill=114),
            v2.ScaleJitter((side, side), scale_range=(0.5, 1.5)),
            v2.RandomCrop((side, side), pad_if_needed=True, fill=114),
        ]
    )


def main(images, annotations, output, epochs=3, model="tiny"):
    start = load_model(model)
    preprocessing = start.config.preprocessing
    side, _ = preprocessing.padded_shape(preprocessing.short_side, preprocessing.short_side)
    augment = TorchvisionAugmentation(make_transform(side))
    dataset = CocoDataset(images, annotations, augment=augment)
    batches = DatasetBatches(dataset, min(4, len(dataset)), preprocessing, workers=0, size=(side, side))
    recipe = replace(FINE_TUNE, epochs=int(epochs), batch_size=batches.batch_size, workers=0)
    start = replace_classifier(start, dataset.categories)
    print("Model:", fit(start, batches, output, recipe, progress=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
