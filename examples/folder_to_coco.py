"""Segment a folder of photos into one COCO results file, with constant memory.

python examples/folder_to_coco.py FOLDER RESULTS.json [MODEL]
"""

import sys

from solo_infer import load_model
from solo_infer.results.writers import CocoFile


def main(folder: str, results: str, model: str = "decoupled_r50_3x") -> None:
    segmenter = load_model(model)
    unreadable = []
    with CocoFile(results) as coco_file:
        for result in segmenter.stream(folder, on_error=lambda name, error: unreadable.append(name)):
            coco_file.add(result)
            print(f"{result.source}: {len(result)} instances, {sum(result.timings.values()):.2f} s")
    print(f"Wrote {results}; {len(unreadable)} files could not be read")


if __name__ == "__main__":
    main(*sys.argv[1:])
