"""Sizes of the network input."""

import numpy as np
import pytest

from solo_infer.config import PreprocessConfig
from solo_infer.inference.preprocess import Geometry, plan


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((427, 640), (800, 1199), (800, 1216)),
        ((600, 512), (938, 800), (960, 800)),
        ((1, 1), (800, 800), (800, 800)),
        ((1, 4000), (1, 1333), (32, 1344)),
        ((2000, 20), (1333, 13), (1344, 32)),
        ((800, 1333), (800, 1333), (800, 1344)),
        ((3000, 4000), (800, 1067), (800, 1088)),
    ],
)
def test_plan(size, resized, padded):
    assert plan(np.zeros((*size, 3), np.uint8), PreprocessConfig()) == Geometry(size, resized, padded)


def test_plan_of_light_models_rounds_beyond_the_long_side():
    assert plan(np.zeros((512, 512, 3), np.uint8), PreprocessConfig(512, 852)).padded == (512, 512)
    assert plan(np.zeros((300, 451, 3), np.uint8), PreprocessConfig(512, 852)).resized == (512, 770)
