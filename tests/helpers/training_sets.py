"""Small COCO data sets on disk, and samples in memory, for the training tests."""

import json
import zlib

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco

from solo_infer.training.sample import make_sample, mask_bounds

ANIMALS = {"dog": 7, "cat": 3}


def pixels_of(name, height, width):
    """Return a smooth image (height, width, 3) uint8 that depends on a file name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows * a + columns * b) for a, b in random.uniform(0.05, 0.3, (3, 2))]
    return (np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)


def rectangle(left, top, right, bottom):
    """Return a polygon that fills these pixels, far edges exclusive."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def bitmap(height, width, left, top, right, bottom):
    """Return a mask (height, width) bool of a rectangle, far edges exclusive."""
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def uncompressed(mask):
    """Return a mask as uncompressed RLE."""
    flat = mask.flatten(order="F").astype(np.int8)
    edges = [0, *np.flatnonzero(np.diff(flat, prepend=0)).tolist(), flat.size]
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}


def compressed(mask):
    """Return a mask as compressed RLE."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def instance(file_name, category, segmentation, **entries):
    """Return an instance for ``write_set``; further entries of the annotation are optional."""
    return {"file_name": file_name, "category": category, "segmentation": segmentation, **entries}


def write_set(folder, sizes, categories, instances, name="set.json", records=None):
    """Write images and an annotation file, and return the folder and the file.

    Args:
        folder: Folder of both.
        sizes: Height and width by file name. An image that exists already is kept.
        categories: Ids by class name.
        instances: Return values of ``instance``.
        name: Name of the annotation file.
        records: Further entries of image records, by file name.
    """
    image_ids = {file_name: 100 + index for index, file_name in enumerate(sizes)}
    for file_name, (height, width) in sizes.items():
        path = folder / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(pixels_of(file_name, height, width)).save(path)
    images = [
        {"id": image_ids[file_name], "file_name": file_name, "height": height, "width": width}
        | (records or {}).get(file_name, {})
        for file_name, (height, width) in sizes.items()
    ]
    annotations = []
    for number, values in enumerate(instances):
        entry = dict(values)
        entry |= {
            "id": number,
            "image_id": image_ids[entry.pop("file_name")],
            "category_id": categories[entry.pop("category")],
        }
        annotations.append({"iscrowd": 0} | entry)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": category} for category, number in categories.items()],
    }
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder, path


def change_json(path, change):
    """Rewrite a JSON file after ``change(content)``."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def sample_of(masks, labels=None, iscrowd=None, labelled=None, name="x"):
    """Return a sample of masks (n, H, W) bool; labels default to 0..n-1."""
    masks = torch.from_numpy(np.asarray(masks))
    count, height, width = masks.shape
    return make_sample(
        torch.from_numpy(pixels_of(name, height, width)).permute(2, 0, 1),
        masks,
        mask_bounds(masks),
        torch.arange(count) if labels is None else torch.tensor(labels),
        torch.zeros(count, dtype=torch.bool) if iscrowd is None else torch.tensor(iscrowd),
        labelled,
    )


def assert_consistent(sample):
    """Check what holds for every sample: dtypes, sizes, no empty mask, boxes that bound the masks."""
    image, target = sample
    assert image.dtype == torch.uint8 and target["masks"].dtype == torch.bool
    assert target["masks"].shape[1:] == image.shape[1:]
    assert target["masks"].flatten(1).any(dim=1).all()
    assert torch.equal(mask_bounds(target["masks"]), target["boxes"].as_subclass(torch.Tensor))
    assert target["boxes"].canvas_size == tuple(image.shape[1:])
    assert len(target["labels"]) == len(target["iscrowd"]) == len(target["masks"])


def equal_samples(first, second):
    """Return whether two samples have the same image and the same target."""
    return torch.equal(first.image, second.image) and all(
        torch.equal(tensor, second.target[key]) for key, tensor in first.target.items()
    )


def write_animals(folder):
    """Write two images with a dog and two cats, and return the data set."""
    return write_set(
        folder,
        {"a.png": (40, 60), "b.png": (30, 20)},
        ANIMALS,
        [
            instance("a.png", "dog", rectangle(10, 5, 30, 25)),
            instance("a.png", "cat", rectangle(40, 8, 55, 38)),
            instance("b.png", "cat", rectangle(2, 3, 12, 23)),
        ],
    )
