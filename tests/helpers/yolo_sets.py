"""Small data sets in YOLO format on disk."""

from helpers.training_sets import pixels_of
from PIL import Image

TRIANGLE = "0.25 0.25 0.75 0.25 0.5 0.75"
SQUARE = "0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6"


def write_yolo_set(root, labels, description=None, size=(90, 120)):
    """Write images, labels and a ``data.yaml``, and return its path.

    Args:
        root: Folder of the data set.
        labels: Lines of each image by its path; None for an image without a label file.
        description: Content of ``data.yaml``. Defaults to the splits images/train and images/val.
        size: Height and width of the images in pixels.
    """
    for name, lines in labels.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(name, *size)).save(path)
        if lines is not None:
            folder, found, rest = f"/{name}".rpartition("/images/")
            label = f"{folder[1:]}/labels/{rest}".lstrip("/") if found else name
            label_path = (root / label).with_suffix(".txt")
            label_path.parent.mkdir(parents=True, exist_ok=True)
            label_path.write_text("\n".join(lines), encoding="utf-8")
    path = root / "data.yaml"
    default = "train: images/train\nval: images/val\nnames: [nut, bolt]\n"
    path.write_text(default if description is None else description, encoding="utf-8")
    return path


def write_nuts_and_bolts(root, description=None):
    """Write three training and two validation images with a nut and a bolt each."""
    lines = [f"0 {TRIANGLE}", f"1 {SQUARE}"]
    names = [f"images/train/{number}.jpg" for number in range(3)]
    names += [f"images/val/{number}.jpg" for number in range(2)]
    return write_yolo_set(root, dict.fromkeys(names, lines), description)
