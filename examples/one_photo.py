"""Segment one photo and print what is in it.

    python examples/one_photo.py PHOTO [MODEL]

MODEL is a published name, a checkpoint file or a directory; decoupled_r50_3x if not given.
"""

import sys

from solo_infer import SOLO


def main(photo: str, model: str = "decoupled_r50_3x") -> None:
    result = SOLO.from_pretrained(model)(photo)
    for instance in result.filter(min_score=0.3):
        pixels, box = int(instance.mask.sum()), [round(side) for side in instance.box]
        print(f"{instance.name} {instance.score:.2f}: {pixels} px in {box}")
    print("drawn:", result.save("segmented.png", min_score=0.3))


if __name__ == "__main__":
    main(*sys.argv[1:])
