"""Random masks with holes and several parts."""

import numpy as np


def random_mask(number):
    """Return mask (H, W) bool number ``number``: noise, blocks with holes, or nested frames."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(1, 40, 2)
    if number % 3 == 0:
        return rng.random((height, width)) < rng.random()
    if number % 3 == 1:
        blocks = rng.random((height // 4 + 1, width // 4 + 1)) < 0.6
        return np.kron(blocks, np.ones((4, 4), bool))[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(3, 8)):  # rectangles that toggle each other
        x, y = rng.integers(0, width), rng.integers(0, height)
        mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] ^= True
    return mask


def frame(height=20, width=29):
    """Return a mask with one hole, in which there is another part, and a part at a corner of the image."""
    mask = np.zeros((height, width), bool)
    mask[2:14, 3:17] = True
    mask[4:12, 5:15] = False
    mask[6:9, 7:12] = True
    mask[-3:, -4:] = True
    return mask
