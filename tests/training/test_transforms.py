"""Random augmentation steps, copy-paste, and the augmentation of the recipes."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import small_yolact_config
from helpers.training_sets import assert_consistent, bitmap, equal_samples, sample_of

from solo_infer.config import PreprocessConfig
from solo_infer.errors import ConfigError
from solo_infer.training.recipe import FINE_TUNE, PUBLISHED_1X, PUBLISHED_3X
from solo_infer.training.sample import Sample
from solo_infer.training.transforms import (
    Augmentation,
    ColorJitter,
    CopyPaste,
    Crop,
    Flip,
    LargeScaleJitter,
    ResizeChoice,
    Stretch,
    fixed_input_size,
    make_augmentation,
)

RANDOM_STEPS = [ResizeChoice((40, 50), 100), Flip(), Crop(), ColorJitter(), LargeScaleJitter(64)]
NO_CHANGE = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, as worker processes do; threads would only wait for each other on small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def sample():
    masks = [bitmap(60, 90, 10, 20, 40, 50), bitmap(60, 90, 80, 5, 90, 15), bitmap(60, 90, 5, 50, 7, 52)]
    return sample_of(masks, labels=[4, 2, 7])


@pytest.mark.parametrize("step", [*RANDOM_STEPS, Stretch(48)], ids=lambda step: type(step).__name__)
def test_steps_keep_image_and_instances_consistent(step, sample):
    original = Sample(sample.image.clone(), {key: value.clone() for key, value in sample.target.items()})
    empty = sample_of(np.zeros((0, 60, 90), bool))
    results = []
    for seed in range(12):
        changed = step(sample, seeded(seed))
        assert_consistent(changed)
        assert equal_samples(changed, step(sample, seeded(seed)))
        results.append(changed)
        assert_consistent(step(empty, seeded(seed)))
    assert equal_samples(sample, original)
    is_random = any(not equal_samples(results[0], other) for other in results[1:])
    assert is_random == (step in RANDOM_STEPS)


@pytest.mark.parametrize("step", RANDOM_STEPS, ids=lambda step: type(step).__name__)
def test_steps_do_not_use_the_global_generator(step, sample):
    before = torch.random.get_rng_state()
    step(sample, seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_augmentation_does_not_depend_on_the_number_of_threads():
    rounding = 1 if torch.__version__.startswith("2.1.") else 0  # its resize differs in a few pixels
    large = sample_of([bitmap(301, 407, 50, 60, 300, 250), bitmap(301, 407, 3, 3, 9, 400)])
    steps = (ColorJitter(probability=1.0), ResizeChoice((200, 330, 410), 600), Flip())
    augment = Augmentation(steps, CopyPaste(1.0))
    for seed in range(3):
        torch.set_num_threads(1)
        single = augment(large, seeded(seed), lambda generator: large)
        torch.set_num_threads(4)
        multi = augment(large, seeded(seed), lambda generator: large)
        assert int((multi.image.int() - single.image.int()).abs().max()) <= rounding
        assert equal_samples(multi._replace(image=single.image), single)


def test_resize_choice_takes_each_size_and_keeps_the_ratio(sample):
    shapes = {ResizeChoice((20, 40, 80), 100)(sample, seeded(seed)).shape for seed in range(40)}
    assert shapes == {(20, 30), (40, 60), (67, 100)}  # the last one is limited by its long side


def test_resize_choice_defaults_to_the_published_sizes():
    assert ResizeChoice() == ResizeChoice((800, 768, 736, 704, 672, 640), 1333)


@pytest.mark.parametrize(
    ("short", "long", "sides"),
    [
        (800, 1333, (800, 768, 736, 704, 672, 640)),
        (512, 852, (512, 480, 448, 416, 384, 352)),  # Decoupled Light SOLO
        (448, 768, (512, 480, 448, 416, 384, 352)),  # light models of SOLOv2
        (448, 500, (500, 480, 448, 416, 384, 352)),
        (400, 600, (400, 384, 368, 352, 336, 320)),
    ],
)
def test_sizes_of_the_published_3x_schedules(short, long, sides):
    resize, _ = make_augmentation(PUBLISHED_3X, PreprocessConfig(short, long)).steps
    assert resize == ResizeChoice(sides, long)


def test_stretch_gives_a_square(sample):
    assert Stretch(48)(sample, seeded()).shape == (48, 48)


def test_flip_follows_its_probability(sample):
    flipped = [not torch.equal(Flip(0.25)(sample, seeded(seed)).image, sample.image) for seed in range(200)]
    assert 30 < sum(flipped) < 70
    assert torch.equal(Flip(0.0)(sample, seeded()).image, sample.image)
    assert torch.equal(Flip(1.0)(sample, seeded()).image, sample.image.flip(-1))


def test_crops_are_windows_that_show_an_instance(sample):
    shapes = []
    for seed in range(60):
        cropped = Crop((0.3, 0.8), 1.0)(sample, seeded(seed))
        shapes.append(cropped.shape)
        assert len(cropped.target["labels"])
        if seed < 5:
            windows = sample.image.unfold(1, cropped.shape[0], 1).unfold(2, cropped.shape[1], 1)
            assert (windows == cropped.image[:, None, None]).flatten(3).all(dim=3).all(dim=0).any()
    heights, widths = zip(*shapes, strict=True)
    assert 18 <= min(heights) < 25 and 42 < max(heights) <= 48
    assert 27 <= min(widths) < 36 and 64 < max(widths) <= 72


def test_image_is_not_cropped_if_no_window_shows_an_instance():
    lonely = sample_of([bitmap(200, 200, 0, 0, 1, 1)])
    shapes = [Crop((0.1, 0.2), 1.0)(lonely, seeded(seed)).shape for seed in range(5)]
    assert (200, 200) in shapes


def test_color_jitter_can_leave_colors_unchanged(sample):
    assert torch.equal(ColorJitter(**NO_CHANGE, probability=1.0)(sample, seeded()).image, sample.image)
    assert torch.equal(ColorJitter(probability=0.0)(sample, seeded()).image, sample.image)


def test_brightness_is_an_offset_and_contrast_a_gain(sample):
    pixels = sample.image.float()
    settings = {**NO_CHANGE, "probability": 1.0}
    darker = ColorJitter(**{**settings, "contrast": (0.5, 0.5)})(sample, seeded()).image
    assert (darker.float() - pixels * 0.5).abs().max() <= 0.5
    offsets = set()
    for seed in range(40):
        image = ColorJitter(**{**settings, "brightness": 32.0})(sample, seeded(seed)).image
        difference = image.float() - pixels
        unclipped = (pixels > 32) & (pixels < 223)
        assert difference[unclipped].unique().numel() <= 2  # halves may round either way
        offsets.add(int(difference[unclipped].median()))
    assert -32 <= min(offsets) < -20 and 20 < max(offsets) <= 32


def test_saturation_and_hue_do_not_change_gray(sample):
    gray = sample._replace(image=sample.image[:1].expand(3, -1, -1).contiguous())
    jitter = ColorJitter(0.0, (1.0, 1.0), probability=1.0)
    for seed in range(10):
        assert (jitter(gray, seeded(seed)).image.int() - gray.image.int()).abs().max() <= 1
        assert (jitter(sample, seeded(seed)).image.int() - sample.image.int()).abs().max() > 5


def test_zero_saturation_gives_the_luma_and_hue_rotates_colors(sample):
    settings = {"brightness": 0.0, "contrast": (1.0, 1.0), "probability": 1.0}
    pale = ColorJitter(**settings, saturation=(1e-9, 1e-9), hue=0.0)(sample, seeded()).image.float()
    luma = (sample.image.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0)
    assert (pale - luma).abs().max() <= 0.51
    jitter = ColorJitter(**settings, saturation=(1.0, 1.0), hue=120.0)
    rotated = [jitter(sample, seeded(seed)).image.float() for seed in range(300)]
    # The greatest rotation, 120 degrees, permutes the channels cyclically.
    permuted = sample.image.float().roll(1, dims=0)
    assert min((image - permuted).abs().mean() for image in rotated) < 3


def test_large_scale_jitter_gives_squares(sample):
    filled = []
    for seed in range(60):
        square = LargeScaleJitter(48, fill=(9, 8, 7))(sample, seeded(seed))
        assert square.shape == (48, 48)
        padding = (square.image == torch.tensor([9, 8, 7])[:, None, None]).all(dim=0)
        filled.append(int((~padding).any(dim=0).sum()) / 48)
    assert min(filled) < 0.3 and filled.count(1.0) > 15
    small = LargeScaleJitter(48, (0.5, 0.5))(sample, seeded())
    assert small.target["boxes"][0].tolist() == [3, 5, 11, 13]  # 24 of 90 pixels: a factor of 0.267


class TestCopyPaste:
    @pytest.fixture
    def base(self):
        """Return a large instance, one inside (30, 20)..(60, 50), and a crowd."""
        masks = [bitmap(60, 90, 0, 0, 50, 60), bitmap(60, 90, 40, 30, 50, 40), bitmap(60, 90, 70, 0, 90, 60)]
        return sample_of(masks, labels=[0, 1, 2], iscrowd=[False, False, True], name="base")

    @pytest.fixture
    def source(self):
        return sample_of([bitmap(60, 90, 30, 20, 60, 50)], labels=[5], name="source")

    def test_pasted_instances_cover_the_others(self, base, source):
        result = CopyPaste()(base, source, seeded())
        assert_consistent(result)
        assert result.target["labels"].tolist() == [0, 2, 5]  # 1 is covered
        assert result.target["iscrowd"].tolist() == [False, True, False]
        cover = source.target["masks"][0]
        assert torch.equal(result.target["masks"][2], cover)
        assert torch.equal(result.target["masks"][0], base.target["masks"][0] & ~cover)
        assert torch.equal(result.image[:, cover], source.image[:, cover])
        assert torch.equal(result.image[:, ~cover], base.image[:, ~cover])

    def test_boxes_bound_the_visible_parts(self, base):
        wall = sample_of([bitmap(60, 90, 20, 0, 90, 60)], labels=[5])
        result = CopyPaste()(base, wall, seeded())
        assert result.target["boxes"].tolist() == [[0, 0, 20, 60], [20, 0, 90, 60]]
        assert result.target["labels"].tolist() == [0, 5]

    def test_barely_visible_instances_are_removed(self, base):
        wall = sample_of([bitmap(60, 90, 4, 0, 60, 60)], labels=[5])
        assert CopyPaste()(base, wall, seeded()).target["labels"].tolist() == [2, 5]  # 8% of 0 is visible
        result = CopyPaste(min_visible=0.05)(base, wall, seeded())
        assert result.target["labels"].tolist() == [0, 2, 5]

    def test_source_of_another_size(self, base):
        """Parts outside of the image are cut off; instances with nearly nothing left are not pasted."""
        masks = [
            bitmap(100, 80, 10, 40, 30, 80),
            bitmap(100, 80, 50, 58, 60, 98),
            bitmap(100, 80, 0, 70, 9, 90),
        ]
        source = sample_of(masks, labels=[5, 6, 7])
        labels = set()
        for seed in range(10):
            result = CopyPaste()(base, source, seeded(seed))
            assert_consistent(result)
            assert result.shape == (60, 90)
            labels |= set(result.target["labels"].tolist())
        assert labels == {0, 1, 2, 5}
        assert result.target["boxes"][-1].tolist() == [10, 40, 30, 60]

    def test_only_classes_labeled_in_both_images_are_pasted(self, base, source):
        labelled = torch.tensor([0, 1, 2])
        partial = base._replace(target={**base.target, "labelled": labelled})
        assert equal_samples(CopyPaste()(partial, source, seeded()), partial)
        full = base._replace(target={**base.target, "labelled": torch.tensor([0, 1, 2, 5])})
        result = CopyPaste()(full, source, seeded())
        assert 5 in result.target["labels"] and result.target["labelled"].tolist() == [0, 1, 2, 5]

    def test_crowds_are_not_pasted(self, base):
        crowd = sample_of([bitmap(60, 90, 30, 20, 60, 50)], iscrowd=[True])
        assert CopyPaste()(base, crowd, seeded()) is base
        assert CopyPaste()(base, sample_of(np.zeros((0, 60, 90), bool)), seeded()) is base

    def test_a_random_number_is_pasted_also_onto_an_empty_image(self):
        masks = [bitmap(60, 90, 9 * column, 0, 9 * column + 5, 60) for column in range(10)]
        source = sample_of(masks)
        empty = sample_of(np.zeros((0, 60, 90), bool))
        four, one = CopyPaste(max_instances=4), CopyPaste(max_instances=1)
        counts = {len(four(empty, source, seeded(seed)).target["labels"]) for seed in range(30)}
        assert counts == {1, 2, 3, 4}
        labels = {int(one(empty, source, seeded(seed)).target["labels"]) for seed in range(60)}
        assert len(labels) == 10


def test_augmentation_applies_its_steps_to_the_source_of_copy_paste(sample):
    source = sample_of([bitmap(60, 90, 0, 0, 90, 60)], labels=[5], name="source")
    augment = Augmentation([ResizeChoice((30,), 100)], CopyPaste(1.0))
    result = augment(sample, seeded(), lambda generator: source)
    assert result.shape == (30, 45)
    assert result.target["labels"].tolist() == [5]
    assert torch.equal(result.image, augment.steps[0](source, seeded()).image)


def test_copy_paste_follows_its_probability(sample):
    drawn = []
    augment = Augmentation((), CopyPaste(0.25))
    for seed in range(200):
        augment(sample, seeded(seed), lambda generator: drawn.append(1) or sample)
    assert 30 < len(drawn) < 70


def test_steps_are_applied_in_order(sample):
    augment = Augmentation((Flip(1.0), ResizeChoice((30,), 100)))
    expected = ResizeChoice((30,), 100)(Flip(1.0)(sample, seeded()), seeded())
    assert equal_samples(augment(sample, seeded(), None), expected)


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        (ResizeChoice, {"short_sides": ()}),
        (ResizeChoice, {"short_sides": (800, 0)}),
        (ResizeChoice, {"long_side": 700}),
        (Stretch, {"side": 0}),
        (Flip, {"probability": 1.1}),
        (Crop, {"side_range": (0.5, 1.5)}),
        (ColorJitter, {"contrast": (-1.0, 1.0)}),
        (ColorJitter, {"saturation": (0.5, float("inf"))}),
        (LargeScaleJitter, {"size": 0}),
        (LargeScaleJitter, {"scale_range": (2.0,)}),
        (LargeScaleJitter, {"scale_range": (0.0, 1.0)}),
        (LargeScaleJitter, {"scale_range": (1.5, 0.5)}),
        (CopyPaste, {"max_instances": 0}),
        (CopyPaste, {"min_visible": -0.1}),
    ],
)
def test_settings_out_of_range_are_rejected(step, settings):
    with pytest.raises(ConfigError, match="expected"):
        step(**settings)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Flip().probability = 1.0


def test_augmentation_of_the_recipes():
    preprocessing = PreprocessConfig(short_side=800, long_side=1333)
    assert make_augmentation(PUBLISHED_1X, preprocessing).steps == (ResizeChoice((800,), 1333), Flip())
    assert make_augmentation(PUBLISHED_3X, preprocessing).steps == (ResizeChoice(), Flip())
    assert fixed_input_size(PUBLISHED_1X, preprocessing) is None
    none = make_augmentation(replace(PUBLISHED_1X, augment="none"), preprocessing)
    assert none.steps == (ResizeChoice((800,), 1333),) and none.copy_paste is None
    recipe = replace(FINE_TUNE, crop_size=300, scale_range=(0.32, 0.64), copy_paste=0.2)
    jitter = make_augmentation(recipe, PreprocessConfig(300, 500))
    assert jitter.steps[-1] == LargeScaleJitter(320, (0.5, 1.0))
    assert jitter.copy_paste == CopyPaste(0.2)
    assert fixed_input_size(FINE_TUNE, PreprocessConfig(300, 500)) == (320, 320)


def test_augmentation_of_models_that_do_not_keep_the_aspect_ratio():
    preprocessing = small_yolact_config("mmdet").preprocessing
    flip, multiscale, none, jitter = (
        make_augmentation(replace(PUBLISHED_1X, augment=augment), preprocessing).steps
        for augment in ("flip", "multiscale", "none", "jitter")
    )
    assert flip == (Stretch(96), Flip())
    assert multiscale == (Crop(), Stretch(96), Flip())
    assert none == (Stretch(96),)
    *_, stretch, scale_jitter = jitter
    assert (stretch, type(scale_jitter), scale_jitter.size) == (Stretch(96), LargeScaleJitter, 96)
