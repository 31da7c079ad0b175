"""Smooth random images of various sizes."""

import numpy as np
from PIL import Image

SIZES = ((80, 120), (90, 120), (120, 80), (80, 119), (50, 200), (64, 64), (30, 41))


def smooth_images(count, seed=0):
    """Return images (H, W, 3) uint8 whose sizes cycle through ``SIZES``."""
    rng = np.random.default_rng(seed)
    images = []
    for index in range(count):
        height, width = SIZES[index % len(SIZES)]
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        images.append(np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)))
    return images
