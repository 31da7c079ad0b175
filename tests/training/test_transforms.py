import dataclasses

import numpy as np
import pytest
import torch
from helpers.training_sets import bitmap
from training.test_sample import assert_fits, sample_of

from solo_infer.errors import ConfigError
from solo_infer.training.sample import Sample
from solo_infer.training.transforms import (
    Augmentation,
    ColorJitter,
    CopyPaste,
    Crop,
    Flip,
    LargeScaleJitter,
    ResizeChoice,
    ResizeRange,
)

EVERY_STEP = [
    ResizeChoice((40, 50), 100),
    ResizeRange(60, 90),
    Flip(),
    Crop(),
    ColorJitter(),
    LargeScaleJitter(64),
]


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker process: several would wait for each other over such small tensors."""
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


def same(first, second):
    return torch.equal(first.image, second.image) and all(
        torch.equal(part, second.target[key]) for key, part in first.target.items()
    )


@pytest.mark.parametrize("step", EVERY_STEP, ids=lambda step: type(step).__name__)
def test_every_step_keeps_image_and_instances_together(step, sample):
    untouched = Sample(sample.image.clone(), {key: part.clone() for key, part in sample.target.items()})
    empty = sample_of(np.zeros((0, 60, 90), bool))
    results = []
    for seed in range(12):
        changed = step(sample, seeded(seed))
        assert_fits(changed)
        assert same(changed, step(sample, seeded(seed)))
        results.append(changed)
        assert_fits(step(empty, seeded(seed)))
    assert same(sample, untouched)
    assert any(not same(results[0], other) for other in results[1:])


@pytest.mark.parametrize("step", EVERY_STEP, ids=lambda step: type(step).__name__)
def test_chance_comes_from_the_generator_alone(step, sample):
    before = torch.random.get_rng_state()
    step(sample, seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_number_of_threads_changes_nothing():
    rounding = 1 if torch.__version__.startswith("2.1.") else 0  # whose resize gives a few pixels otherwise
    large = sample_of([bitmap(301, 407, 50, 60, 300, 250), bitmap(301, 407, 3, 3, 9, 400)])
    augment = Augmentation((ColorJitter(probability=1.0), ResizeRange(300, 400), Flip()), CopyPaste(1.0))
    for seed in range(3):
        torch.set_num_threads(1)
        alone = augment(large, seeded(seed), lambda generator: large)
        torch.set_num_threads(4)
        together = augment(large, seeded(seed), lambda generator: large)
        assert int((together.image.int() - alone.image.int()).abs().max()) <= rounding
        assert same(together._replace(image=alone.image), alone)


def test_resize_choice_takes_each_size_and_keeps_the_ratio(sample):
    shapes = {ResizeChoice((20, 40, 80), 100)(sample, seeded(seed)).shape for seed in range(40)}
    assert shapes == {(20, 30), (40, 60), (67, 100)}  # the last one is limited by its long side


def test_the_published_sizes_are_the_default():
    assert ResizeChoice() == ResizeChoice((800, 768, 736, 704, 672, 640), 1333)


def test_resize_range_stays_in_its_range(sample):
    widths = [ResizeRange(60, 100, (0.5, 1.5))(sample, seeded(seed)).shape[1] for seed in range(60)]
    assert 45 <= min(widths) < 55 and 125 < max(widths) <= 135


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


def test_a_crop_without_luck_leaves_the_image_whole():
    lonely = sample_of([bitmap(200, 200, 0, 0, 1, 1)])
    shapes = [Crop((0.1, 0.2), 1.0)(lonely, seeded(seed)).shape for seed in range(5)]
    assert (200, 200) in shapes


def test_colors_without_chance_stay_as_they_are(sample):
    jitter = ColorJitter(0.0, (1.0, 1.0), (1.0, 1.0), 0.0, probability=1.0)
    assert torch.equal(jitter(sample, seeded()).image, sample.image)
    assert torch.equal(ColorJitter(probability=0.0)(sample, seeded()).image, sample.image)


def test_brightness_and_contrast_are_offset_and_gain(sample):
    pixels = sample.image.float()
    none = {
        "brightness": 0.0,
        "contrast": (1.0, 1.0),
        "saturation": (1.0, 1.0),
        "hue": 0.0,
        "probability": 1.0,
    }
    gained = ColorJitter(**{**none, "contrast": (0.5, 0.5)})(sample, seeded()).image
    assert (gained.float() - pixels * 0.5).abs().max() <= 0.5
    offsets = set()
    for seed in range(40):
        shifted = ColorJitter(**{**none, "brightness": 32.0})(sample, seeded(seed)).image.float() - pixels
        inside = (pixels > 32) & (pixels < 223)
        assert shifted[inside].unique().numel() <= 2  # halves may round either way
        offsets.add(int(shifted[inside].median()))
    assert -32 <= min(offsets) < -20 and 20 < max(offsets) <= 32


def test_saturation_and_hue_leave_gray_alone(sample):
    gray = sample._replace(image=sample.image[:1].expand(3, -1, -1).contiguous())
    jitter = ColorJitter(0.0, (1.0, 1.0), probability=1.0)
    for seed in range(10):
        assert (jitter(gray, seeded(seed)).image.int() - gray.image.int()).abs().max() <= 1
        assert (jitter(sample, seeded(seed)).image.int() - sample.image.int()).abs().max() > 5


def test_no_saturation_is_the_luma_and_hue_turns_the_colors(sample):
    none = {"brightness": 0.0, "contrast": (1.0, 1.0), "probability": 1.0}
    pale = ColorJitter(**none, saturation=(1e-9, 1e-9), hue=0.0)(sample, seeded()).image.float()
    luma = (sample.image.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0)
    assert (pale - luma).abs().max() <= 0.51
    jitter = ColorJitter(**none, saturation=(1.0, 1.0), hue=120.0)
    turned = [jitter(sample, seeded(seed)).image.float() for seed in range(300)]
    # A turn by 120 degrees, the greatest, would exchange the channels in a ring.
    ring = sample.image.float().roll(1, dims=0)
    assert min((image - ring).abs().mean() for image in turned) < 3


def test_large_scale_jitter_gives_squares(sample):
    factors = []
    for seed in range(60):
        square = LargeScaleJitter(48, fill=(9, 8, 7))(sample, seeded(seed))
        assert square.shape == (48, 48)
        padding = (square.image == torch.tensor([9, 8, 7])[:, None, None]).all(dim=0)
        factors.append(int((~padding).any(dim=0).sum()) / 48)
    assert min(factors) < 0.3 and factors.count(1.0) > 15
    small = LargeScaleJitter(48, (0.5, 0.5))(sample, seeded())
    assert small.target["boxes"][0].tolist() == [3, 5, 11, 13]  # 24 of 90 px: 0.267


class TestCopyPaste:
    @pytest.fixture
    def base(self):
        """A large instance, one that lies within (30, 20)..(60, 50), and a crowd."""
        masks = [bitmap(60, 90, 0, 0, 50, 60), bitmap(60, 90, 40, 30, 50, 40), bitmap(60, 90, 70, 0, 90, 60)]
        return sample_of(masks, labels=[0, 1, 2], iscrowd=[False, False, True], name="base")

    @pytest.fixture
    def other(self):
        return sample_of([bitmap(60, 90, 30, 20, 60, 50)], labels=[5], name="other")

    def test_the_pasted_lies_in_front(self, base, other):
        pasted = CopyPaste()(base, other, seeded())
        assert_fits(pasted)
        assert pasted.target["labels"].tolist() == [0, 2, 5]  # 1 is covered
        assert pasted.target["iscrowd"].tolist() == [False, True, False]
        cover = other.target["masks"][0]
        assert torch.equal(pasted.target["masks"][2], cover)
        assert torch.equal(pasted.target["masks"][0], base.target["masks"][0] & ~cover)
        assert torch.equal(pasted.image[:, cover], other.image[:, cover])
        assert torch.equal(pasted.image[:, ~cover], base.image[:, ~cover])

    def test_boxes_follow_what_stays_visible(self, base):
        wall = sample_of([bitmap(60, 90, 20, 0, 90, 60)], labels=[5])
        pasted = CopyPaste()(base, wall, seeded())
        assert pasted.target["boxes"].tolist() == [[0, 0, 20, 60], [20, 0, 90, 60]]
        assert pasted.target["labels"].tolist() == [0, 5]

    def test_tiny_remains_are_dropped(self, base):
        wall = sample_of([bitmap(60, 90, 4, 0, 60, 60)], labels=[5])
        assert CopyPaste()(base, wall, seeded()).target["labels"].tolist() == [2, 5]  # 8% of 0 is left
        kept = CopyPaste(least_visible=0.05)(base, wall, seeded())
        assert kept.target["labels"].tolist() == [0, 2, 5]

    def test_images_of_other_sizes(self, base):
        """What lies beyond the image is cut off, and left out if that is nearly all."""
        masks = [
            bitmap(100, 80, 10, 40, 30, 80),
            bitmap(100, 80, 50, 58, 60, 98),
            bitmap(100, 80, 0, 70, 9, 90),
        ]
        other = sample_of(masks, labels=[5, 6, 7])
        found = set()
        for seed in range(10):
            pasted = CopyPaste()(base, other, seeded(seed))
            assert_fits(pasted)
            assert pasted.shape == (60, 90)
            found |= set(pasted.target["labels"].tolist())
        assert found == {0, 1, 2, 5}
        assert pasted.target["boxes"][-1].tolist() == [10, 40, 30, 60]

    def test_only_classes_that_both_label_are_pasted(self, base, other):
        labelled = torch.tensor([0, 1, 2])
        partly = base._replace(target={**base.target, "labelled": labelled})
        assert same(CopyPaste()(partly, other, seeded()), partly)
        both = base._replace(target={**base.target, "labelled": torch.tensor([0, 1, 2, 5])})
        pasted = CopyPaste()(both, other, seeded())
        assert 5 in pasted.target["labels"] and pasted.target["labelled"].tolist() == [0, 1, 2, 5]

    def test_crowds_and_nothing_are_not_pasted(self, base):
        crowd = sample_of([bitmap(60, 90, 30, 20, 60, 50)], iscrowd=[True])
        assert CopyPaste()(base, crowd, seeded()) is base
        assert CopyPaste()(base, sample_of(np.zeros((0, 60, 90), bool)), seeded()) is base

    def test_a_random_number_is_pasted_onto_anything(self):
        masks = [bitmap(60, 90, 9 * column, 0, 9 * column + 5, 60) for column in range(10)]
        other = sample_of(masks)
        empty = sample_of(np.zeros((0, 60, 90), bool))
        counts = {len(CopyPaste(most=4)(empty, other, seeded(seed)).target["labels"]) for seed in range(30)}
        assert counts == {1, 2, 3, 4}
        firsts = {int(CopyPaste(most=1)(empty, other, seeded(seed)).target["labels"]) for seed in range(60)}
        assert len(firsts) == 10


def test_an_augmentation_pastes_from_samples_that_went_through_its_steps(sample):
    other = sample_of([bitmap(60, 90, 0, 0, 90, 60)], labels=[5], name="other")
    augment = Augmentation([ResizeChoice((30,), 100)], CopyPaste(1.0))
    result = augment(sample, seeded(), lambda generator: other)
    assert result.shape == (30, 45)
    assert result.target["labels"].tolist() == [5]
    assert torch.equal(result.image, augment.steps[0](other, seeded()).image)


def test_pasting_follows_its_probability(sample):
    drawn = []
    augment = Augmentation((), CopyPaste(0.25))
    for seed in range(200):
        augment(sample, seeded(seed), lambda generator: drawn.append(1) or sample)
    assert 30 < len(drawn) < 70


def test_steps_are_done_in_order(sample):
    augment = Augmentation((Flip(1.0), ResizeChoice((30,), 100)))
    expected = ResizeChoice((30,), 100)(Flip(1.0)(sample, seeded()), seeded())
    assert same(augment(sample, seeded(), None), expected)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ResizeChoice, {"short_sides": ()}),
        (ResizeChoice, {"short_sides": (800, 0)}),
        (ResizeChoice, {"long_side": 700}),
        (ResizeRange, {"short_side": 20, "long_side": 10}),
        (ResizeRange, {"short_side": 20, "long_side": 30, "factors": (0.0, 1.0)}),
        (ResizeRange, {"short_side": 20, "long_side": 30, "factors": (1.5, 0.5)}),
        (Flip, {"probability": 1.1}),
        (Crop, {"sides": (0.5, 1.5)}),
        (ColorJitter, {"contrast": (-1.0, 1.0)}),
        (ColorJitter, {"saturation": (0.5, float("inf"))}),
        (LargeScaleJitter, {"size": 0}),
        (LargeScaleJitter, {"factors": (2.0,)}),
        (CopyPaste, {"most": 0}),
        (CopyPaste, {"least_visible": -0.1}),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings):
    with pytest.raises(ConfigError, match="expected"):
        kind(**settings)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Flip().probability = 1.0
