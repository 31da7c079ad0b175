"""Ground truth of the cases for which mmdet's losses are stored in tests/data."""

import numpy as np
import torch

from solo_infer.diagnostics import procedural_weights

CASES = {"both": (14, 9), "second_empty": (14, 0), "both_empty": (0, 0)}  # instances of the two images
SIZES = ((320, 256), (305, 203))  # (height, width) of the two images in an input of 320 x 256


def ground_truth(case, image):
    """Return the target of an image (0 or 1) of a case: ellipses and rectangles."""
    count, (height, width) = CASES[case][image], SIZES[image]
    u = procedural_weights.uniform(f"ground_truth/{image}", (count, 6))
    half_h, half_w = (0.5 * side * (0.04 + 0.91 * u[:, i] ** 2) for i, side in enumerate((height, width)))
    center_y, center_x = height * (0.08 + 0.84 * u[:, 2]), width * (0.08 + 0.84 * u[:, 3])
    y, x = np.arange(height)[None, :, None] + 0.5, np.arange(width)[None, None, :] + 0.5
    dy = np.abs(y - center_y[:, None, None]) / half_h[:, None, None]
    dx = np.abs(x - center_x[:, None, None]) / half_w[:, None, None]
    masks = np.where(u[:, 4, None, None] < 0.6, dy * dy + dx * dx <= 1.0, (dy <= 1.0) & (dx <= 1.0))
    boxes = np.zeros((count, 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        (rows,), (columns,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    labels = (procedural_weights.uniform(f"ground_truth/{image}/label", (count,)) * 80).astype(np.int64)
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(labels),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
    }
