"""Stream a folder of photos into one COCO results file, with flat memory.

python examples/folder_to_coco.py FOLDER RESULTS.json [MODEL]
"""

import sys
from pathlib import Path

from solo_infer import SOLO
from solo_infer.results.writers import CocoFile


def main(folder: str, results: str, model: str = "decoupled_r50_3x") -> None:
    segmenter = SOLO.from_pretrained(model)
    failed = []
    with CocoFile(Path(results)) as coco:
        for result in segmenter.stream(folder, on_error=lambda name, error: failed.append(name)):
            coco.add(result)
            print(f"{result.source}: {len(result)} instances, {sum(result.timings.values()):.2f} s")
    print(f"{results} written; {len(failed)} files could not be read")


if __name__ == "__main__":
    main(*sys.argv[1:])
