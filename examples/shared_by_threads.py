"""Share one model between threads, as a server does. Calls keep no state, so no lock is needed.

python examples/shared_by_threads.py FOLDER [MODEL]
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from solo_infer import load_model


def main(folder: str, model: str = "decoupled_r50_3x") -> None:
    segmenter = load_model(model)
    photos = sorted(Path(folder).glob("*.jpg"))
    with ThreadPoolExecutor(max_workers=4) as pool:
        for photo, result in zip(photos, pool.map(segmenter, photos), strict=True):
            print(f"{photo}: {len(result)} instances")


if __name__ == "__main__":
    main(*sys.argv[1:])
