"""Segment one photo and print its instances.

python examples/one_photo.py PHOTO [MODEL]

MODEL is a published name, a checkpoint file or a directory. Defaults to decoupled_r50_3x.
"""

import sys

from solo_infer import load_model


def main(photo: str, model: str = "decoupled_r50_3x") -> None:
    result = load_model(model)(photo)
    for instance in result.filter(min_score=0.3):
        pixels = int(instance.mask.sum())
        box = [round(side) for side in instance.box]
        print(f"{instance.name} {instance.score:.2f}: {pixels} px in {box}")
    print("Drawing:", result.save("segmented.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
