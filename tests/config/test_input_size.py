"""Input sizes and lowest scores of configurations."""

from dataclasses import replace

import numpy as np
import pytest

from solo_infer.config import PRESETS, PostprocessConfig, PreprocessConfig, YOLACTPostprocessConfig
from solo_infer.errors import ConfigError

SQUARE = PRESETS["yolact_r50"].preprocessing


@pytest.mark.parametrize(
    ("input_size", "image", "resized", "padded"),
    [
        (640, (480, 640), (480, 640), (480, 640)),
        (640, (1000, 1500), (427, 640), (448, 640)),
        (640, (1500, 1000), (640, 427), (640, 448)),
        ((320, 448), (1000, 1500), (299, 448), (320, 448)),
        ((320, 448), (1500, 1000), (448, 299), (448, 320)),  # exchanged for portraits
        ([448, 320], (1000, 1500), (299, 448), (320, 448)),
        (32, (1000, 1500), (21, 32), (32, 32)),
        (64, (1, 4000), (1, 64), (32, 64)),
        (1344, (50, 100), (672, 1344), (672, 1344)),  # enlarged
    ],
)
def test_images_fit_into_the_size_and_keep_their_ratio(input_size, image, resized, padded):
    settings = PreprocessConfig().with_input_size(input_size)
    assert settings.resized_shape(*image) == resized
    assert settings.padded_shape(*resized) == padded
    assert replace(settings, short_side=800, long_side=1333) == PreprocessConfig()


def test_squares_take_one_number():
    assert SQUARE.with_input_size(544).resized_shape(100, 300) == (544, 544)
    assert SQUARE.with_input_size((96, 96)).short_side == 96
    with pytest.raises(ConfigError, match=r"\(320, 448\): this model scales every image to a square.*448"):
        SQUARE.with_input_size((320, 448))


@pytest.mark.parametrize("preset", PRESETS)
def test_own_size_is_always_accepted(preset):
    settings = PRESETS[preset].preprocessing
    assert settings.with_input_size((settings.short_side, settings.long_side)) == settings


@pytest.mark.parametrize(
    ("input_size", "message"),
    [
        (500, "input_size=500: expected multiples of 32, e.g. 512 x 512"),
        ((640, 500), r"\(640, 500\): expected multiples of 32, e.g. 640 x 512"),
        (1, "e.g. 32"),
        (0, "input_size.*0: expected an integer"),
        (-32, "-32: expected an integer"),
        (32.0, "32.0: expected an integer"),
        (True, "True: expected an integer"),
        ("640", "'640': expected an integer"),
        ((640, None), "None: expected an integer"),
        ((32, 32, 3), "expected one number or"),
        ([], "expected one number or"),
        (1 << 20, "expected an integer in 1..32768"),
        (10**400, "expected an integer"),
        (float("nan"), "nan"),
    ],
)
@pytest.mark.parametrize("settings", [PreprocessConfig(), SQUARE], ids=["ratio", "square"])
def test_invalid_sizes(settings, input_size, message):
    if not settings.keep_ratio and input_size == (640, 500):
        message = "square"
    with pytest.raises(ConfigError, match=message):
        settings.with_input_size(input_size)


@pytest.mark.parametrize("score", [0.0, 1e-30, 0.05, 0.1, 0.3, 0.7, 1.0])
def test_yolact_keeps_scores_equal_to_the_lowest(score):
    """Its scores must exceed ``filter_thr``, as float32."""
    lowest = YOLACTPostprocessConfig(filter_thr=0.0).with_min_score(score).filter_thr
    below = np.nextafter(np.float32(score), np.float32(0))
    assert np.float32(score) > np.float32(lowest) or score == 0
    assert not below > np.float32(lowest)


def test_lowest_score_never_lowers_the_threshold():
    assert PostprocessConfig(filter_thr=0.2).with_min_score(0.1).filter_thr == 0.2
    assert PostprocessConfig(filter_thr=0.2).with_min_score(0.3).filter_thr == 0.3
    assert YOLACTPostprocessConfig(filter_thr=0.2).with_min_score(0.1).filter_thr == 0.2


@pytest.mark.parametrize("settings", [PostprocessConfig, YOLACTPostprocessConfig])
@pytest.mark.parametrize("value", [1, "yes", None])
def test_across_classes_is_a_bool(settings, value):
    with pytest.raises(ConfigError, match="across_classes"):
        settings(across_classes=value)
