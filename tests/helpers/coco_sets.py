"""A small COCO data set, its detections, and their metrics computed by pycocotools."""

import json
import math

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 150, 220
CAT, DOG, BIRD = 17, 3, 40
# Segmentations of instances that have a box only; four numbers are a box.
NO_MASK = (
    None,
    [],
    [[]],
    [[], []],
    [[1, 2]],
    [[1, 2, 3, 4]],
    [1, 2, 3, 4],
    [[1, 2], [3, 4]],
    [[[1, 2], [3, 4]]],
)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def rectangle(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def ellipse(x, y, a, b, corners=24):
    angles = [2 * math.pi * corner / corners for corner in range(corners)]
    return [[value for angle in angles for value in (x + a * math.cos(angle), y + b * math.sin(angle))]]


def bitmap_of(columns):
    """Return a mask (HEIGHT, WIDTH) uint8 of the given columns."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, columns] = 1
    return mask


def uncompressed(mask):
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    edges = [0, *changes, flat.size]
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(edges).tolist()}


def compressed(mask):
    encoded = rle.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def content():
    """Return an annotation file: small to large instances, a crowd, RLE, an image without instances."""
    names = ["b/2.png", "a/1.png", "3.png", "4.png"]
    images = [
        {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for number, name in zip((30, 7, 12, 99), names, strict=True)
    ]
    instances = [
        (7, CAT, rectangle(10, 10, 20, 15), 0),
        (7, CAT, ellipse(120, 75, 70, 60), 0),
        (7, DOG, ellipse(60, 80, 30, 25) + rectangle(100, 100, 30, 20), 0),
        (30, CAT, rectangle(5.5, 7.25, 60, 50.5), 0),
        (30, DOG, uncompressed(bitmap_of(slice(0, 90))), 1),
        (30, DOG, rectangle(120, 20, 80, 110), 0),
        (12, DOG, compressed(bitmap_of(slice(150, 153))), 0),
        (12, DOG, ellipse(40, 40, 11, 9), 0),
        (12, BIRD, ellipse(100, 100, 40, 20), 0),
    ]
    annotations = [
        {"segmentation": mask, "iscrowd": crowd, "image_id": image, "category_id": category, "id": number}
        for number, (image, category, mask, crowd) in enumerate(instances, start=1)
    ]
    for entry in annotations:
        entry["area"] = float(rle.area(rle_of(entry["segmentation"])))
    categories = [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}, {"id": BIRD, "name": "bird"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def rle_of(segmentation):
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, HEIGHT, WIDTH))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, HEIGHT, WIDTH)
    return segmentation


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def draw_images(folder, values, pixels=None):
    """Write the images of an annotation file: noise, or rotated copies of a photo."""
    random = np.random.default_rng(0)
    for image in values["images"]:
        path = folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (image["width"], image["height"])
        if pixels is None:
            drawn = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8))
        else:
            drawn = Image.fromarray(pixels).rotate(image["id"]).resize(size)
        drawn.save(path)
    return folder


def as_detections(values, scores=None):
    """Return the annotations as detections; scores default to 1."""
    entries = values["annotations"]
    detections = []
    for entry, score in zip(entries, scores or [1.0] * len(entries), strict=True):
        mask = rle.decode(rle_of(entry["segmentation"]))
        detections.append(
            {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "score": score,
                "segmentation": compressed(mask),
            }
        )
    return detections


def noisy_detections(values, seed):
    """Return varied detections: shifted, missed, of another class, with equal scores."""
    random = np.random.default_rng(seed)
    detections = []
    for entry in [dict(entry) for entry in as_detections(values) for _ in range(4)]:
        mask = rle.decode(entry["segmentation"])
        shift = tuple(random.integers(-6, 7, 2))
        entry["segmentation"] = compressed(np.roll(mask, shift, (0, 1)))
        entry["score"] = float(random.choice([0.2, 0.5, 0.9, random.uniform()]))
        if random.uniform() < 0.2:
            entry["category_id"] = int(random.choice([CAT, DOG, BIRD]))
        if random.uniform() < 0.1:
            entry["image_id"] = 99
        if random.uniform() < 0.7:
            detections.append(entry)
    return detections


def by_hand(annotations, detections, max_detections=(1, 10, 100), categories=None):
    """Return the 12 metrics of pycocotools, with NaN for -1. Prints them as well."""
    truth = COCO(str(annotations))
    evaluator = COCOeval(truth, truth.loadRes(str(detections)), "segm")
    evaluator.params.maxDets = list(max_detections)
    if categories:
        evaluator.params.catIds = categories
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return [math.nan if number == -1 else number for number in evaluator.stats]
