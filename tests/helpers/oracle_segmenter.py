"""Segmenter that returns the ground truth, for tests of evaluation."""

import numpy as np
import torch
from helpers.coco_sets import HEIGHT, WIDTH, content, rle_of
from pycocotools import mask as rle

from solo_infer import SOLO
from solo_infer.ops import packed_masks
from solo_infer.results.result import Result


class OracleSegmenter(SOLO):
    """Model without a network that returns the ground truth, optionally with shifted masks."""

    shift = 0.0  # greatest horizontal shift of a mask in pixels

    def stream(self, source, *, thresholds=None, **options):
        values = content()
        names = {category["id"]: category["name"] for category in values["categories"]}
        for path in source:
            image = next(image for image in values["images"] if path.endswith(image["file_name"]))
            random = np.random.default_rng(image["id"])
            instances = [entry for entry in values["annotations"] if entry["image_id"] == image["id"]]
            masks = [rle.decode(rle_of(entry["segmentation"])).astype(bool) for entry in instances]
            moved = [np.roll(mask, int(random.uniform(-1, 1) * self.shift), axis=1) for mask in masks]
            labels = [self.config.categories.names.index(names[entry["category_id"]]) for entry in instances]
            yield self.make(
                scores=torch.tensor(random.uniform(0.5, 1, len(instances)), dtype=torch.float32),
                labels=torch.tensor(labels, dtype=torch.int64),
                boxes=torch.zeros(len(instances), 4),
                packed_masks=packed_masks.pack(
                    torch.tensor(np.array(moved, bool).reshape(-1, HEIGHT, WIDTH))
                ),
                image_size=(HEIGHT, WIDTH),
                categories=self.config.categories,
                source=path,
                timings={"network": 0.25},
            )

    make = staticmethod(Result)  # tests replace it to observe results
