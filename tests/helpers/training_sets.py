"""Small COCO data sets on disk for the tests of training."""

import json
import zlib

import numpy as np
from PIL import Image
from pycocotools import mask as coco


def pixels_of(name, height, width):
    """Return the picture (height, width, 3) uint8 of a file name: smooth, and another for each name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows * a + columns * b) for a, b in random.uniform(0.05, 0.3, (3, 2))]
    return (np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)


def rectangle(left, top, right, bottom):
    """Return a polygon that fills these pixels, far edges exclusive."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def bitmap(height, width, left, top, right, bottom):
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def uncompressed(mask):
    flat = mask.flatten(order="F").astype(np.int8)
    edges = [0, *np.flatnonzero(np.diff(flat, prepend=0)).tolist(), flat.size]
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}


def compressed(mask):
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def instance(picture, category, segmentation, **more):
    return {"picture": picture, "category": category, "segmentation": segmentation, **more}


def write_set(folder, pictures, categories, instances, name="set.json", records=None):
    """Write pictures and an annotation file; return the folder and the file.

    Args:
        folder: Where.
        pictures: Height and width by file name; a picture that is there already is left alone.
        categories: Ids by name.
        instances: As ``instance`` gives them.
        name: Of the annotation file.
        records: More keys of image records, by file name.
    """
    numbers = {picture: 100 + place for place, picture in enumerate(pictures)}
    for picture, (height, width) in pictures.items():
        path = folder / picture
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(pixels_of(picture, height, width)).save(path)
    images = [
        {"id": numbers[picture], "file_name": picture, "height": height, "width": width}
        | (records or {}).get(picture, {})
        for picture, (height, width) in pictures.items()
    ]
    annotations = []
    for number, given in enumerate(instances):
        entry = dict(given)
        entry |= {
            "id": number,
            "image_id": numbers[entry.pop("picture")],
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


def changed(path, change):
    """Rewrite an annotation file after ``change(content)``."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
