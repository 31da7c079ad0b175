"""Limits of the changes by half precision, of the trained model ``tiny``, with a margin for other processors.

Measured on a CPU for six photos: all instances with scores from 0.2 were detected again. Masks had an IoU of
0.90 to 0.98 (mean of a photo) with bfloat16 and 0.995 with float16. Scores
changed by at most 0.021 and 0.001.
"""

import pytest
import torch
from helpers.paths import DATA

from solo_infer import SOLO
from solo_infer.runtime.device import probe

LIMITS = {
    "bfloat16": (0.85, 0.03),
    "float16": (0.98, 0.005),
}  # minimum mean IoU, maximum mean difference of scores
PHOTO = DATA / "people" / "astronaut.jpg"


@pytest.fixture(scope="module")
def full():
    return SOLO.from_pretrained("tiny", device="cpu")


@pytest.mark.parametrize("dtype", LIMITS)
def test_same_instances_are_detected(full, dtype):
    if probe(torch.device("cpu"), getattr(torch, dtype)) != "ok":
        pytest.skip(f"{dtype} does not work on this processor")
    half = SOLO.from_pretrained("tiny", device="cpu", dtype=dtype)
    min_iou, max_difference = LIMITS[dtype]
    expected, result = full(PHOTO), half(PHOTO)
    assert result.scores.dtype == torch.float32
    ious, partners = same_label_ious(expected, result).max(dim=1)
    matched = ious > 0.5
    assert matched[expected.scores >= 0.2].all() and matched.float().mean() > 0.9, ious
    differences = (expected.scores - result.scores[partners])[matched].abs()
    assert ious[matched].mean() > min_iou, ious
    assert differences.mean() < max_difference, differences


def same_label_ious(first, second):
    """Return the mask IoU (N, M) of instances with equal labels, 0 for others."""
    a, b = (result.masks.flatten(1).float() for result in (first, second))
    intersection = a @ b.T
    ious = intersection / (a.sum(dim=1)[:, None] + b.sum(dim=1) - intersection).clamp(min=1)
    return ious * (first.labels[:, None] == second.labels)
