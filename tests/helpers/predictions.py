"""Images to predict on, and comparison of predicted results."""

import numpy as np
import torch
from PIL import Image


def smooth_images(count, seed=0):
    """Return smooth random images (H, W, 3) of various sizes, some of which share a padded size."""
    rng = np.random.default_rng(seed)
    sizes = [(80, 120), (90, 120), (120, 80), (80, 119), (50, 200), (64, 64), (30, 41)]
    images = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        images.append(np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)))
    return images


def assert_same_result(result, expected):
    """Check that two results are bit-identical."""
    assert torch.equal(result.scores, expected.scores)
    assert torch.equal(result.labels, expected.labels)
    assert torch.equal(result.boxes, expected.boxes)
    assert torch.equal(result.packed_masks, expected.packed_masks)
    assert result.image_size == expected.image_size
