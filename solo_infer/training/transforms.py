"""Random augmentation of training samples.

Each step takes a ``Sample`` and a ``torch.Generator``, its only source of randomness, and returns a new
sample whose boxes, labels and masks agree; instances without a visible pixel are removed. Steps use
torchvision's v2 functional kernels. Its transform classes are not used: they draw from the global generator,
truncate sizes where mmdet rounds, and process whole masks where these steps process boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torchvision import tv_tensors

from solo_infer.config import PreprocessConfig
from solo_infer.config.preprocess import scaled_size
from solo_infer.config.validation import is_finite, require, require_positive_ints, require_unit_interval
from solo_infer.models.target import Target
from solo_infer.training.recipe import Recipe, multiscale_short_sides
from solo_infer.training.sample import (
    Sample,
    crop,
    flip,
    make_sample,
    mask_areas,
    mask_bounds,
    pad,
    resize,
    select_instances,
)

Step = Callable[[Sample, Generator], Sample]

_MEAN_COLOR = (124, 116, 104)  # ImageNet's mean; such padding is about 0 after normalization
_LUMA = (0.299, 0.587, 0.114)
_MAX_CROP_TRIES = 10


@dataclass(frozen=True)
class ResizeChoice:
    """Scale to one of several sizes, keeping the aspect ratio. The defaults are mmdet's 3x schedule.

    Attributes:
        short_sides: Short sides in pixels, equally likely.
        long_side: Greatest long side in pixels.
    """

    short_sides: tuple[int, ...] = (800, 768, 736, 704, 672, 640)
    long_side: int = 1333

    def __post_init__(self) -> None:
        require(len(self.short_sides) > 0, "short_sides=(): expected at least one, in pixels.")
        require_positive_ints({"long_side": self.long_side})
        for short in self.short_sides:
            require_positive_ints({"short_sides": short})
            require(
                short <= self.long_side,
                f"short_sides={self.short_sides}, long_side={self.long_side}: expected short <= long.",
            )

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the scaled sample."""
        short = self.short_sides[_random_int(len(self.short_sides), generator)]
        return resize(sample, *scaled_size(*sample.shape, short, self.long_side))


@dataclass(frozen=True)
class Stretch:
    """Scale to a square without keeping the aspect ratio, as YOLACT does.

    Attributes:
        side: Side of the square in pixels.
    """

    side: int = 550

    def __post_init__(self) -> None:
        require_positive_ints({"side": self.side})

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the scaled sample."""
        return resize(sample, self.side, self.side)


@dataclass(frozen=True)
class Flip:
    """Mirror left and right.

    Attributes:
        probability: Probability of the change, 0..1.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        require_unit_interval({"probability": self.probability})

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the sample, mirrored or unchanged."""
        return flip(sample) if _happens(self.probability, generator) else sample


@dataclass(frozen=True)
class Crop:
    """Crop to a random window.

    If the image has instances, the window shows at least one, or after ten tries the image is not cropped.

    Attributes:
        side_range: Least and greatest fraction of the height, and independently of the width, that is kept.
        probability: Probability of the change, 0..1.
    """

    side_range: tuple[float, float] = (0.5, 1.0)
    probability: float = 0.5

    def __post_init__(self) -> None:
        _require_range("side_range", self.side_range, 1.0)
        require_unit_interval({"probability": self.probability})

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the sample, cropped or unchanged."""
        if not _happens(self.probability, generator):
            return sample
        for _ in range(_MAX_CROP_TRIES):
            height, width = (
                max(round(side * _uniform(*self.side_range, generator)), 1) for side in sample.shape
            )
            cropped = crop(sample, *_random_window(sample.shape, (height, width), generator))
            if len(cropped.target["labels"]) or not len(sample.target["labels"]):
                return cropped
        return sample


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue, each with its own probability, within mmdet's ranges.

    All changes together are one linear map of the colors, which is ten times faster than converting to HSV:
    saturation blends with the gray of the same luma, and hue rotates the colors about the gray axis. Unlike
    in mmdet's ``PhotoMetricDistortion``, channels are not swapped.

    Attributes:
        brightness: Greatest offset of a color value, 0..255.
        contrast: Least and greatest factor.
        saturation: Least and greatest factor.
        hue: Greatest rotation in degrees.
        probability: Probability of each of the four changes, 0..1.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        _require_range("contrast", self.contrast)
        _require_range("saturation", self.saturation)
        require_unit_interval({"probability": self.probability})

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the sample with changed colors."""
        offset = self._draw((-self.brightness, self.brightness), 0.0, generator)
        gain = self._draw(self.contrast, 1.0, generator)
        saturation = self._draw(self.saturation, 1.0, generator)
        hue = self._draw((-self.hue, self.hue), 0.0, generator)
        if (offset, gain, saturation, hue) == (0.0, 1.0, 1.0, 0.0):
            return sample
        matrix = gain * _saturation_matrix(saturation) @ _hue_matrix(math.radians(hue))
        return sample._replace(image=tv_tensors.Image(_map_colors(sample.image, matrix, gain * offset)))

    def _draw(self, limits: tuple[float, float], neutral: float, generator: Generator) -> float:
        return _uniform(*limits, generator) if _happens(self.probability, generator) else neutral


@dataclass(frozen=True)
class LargeScaleJitter:
    """Scale by a random factor, then crop or pad to a square (Ghiasi et al. 2021, section 3).

    Place it after ``ColorJitter``, which would change the color of the padding.

    Attributes:
        size: Side of the square in pixels.
        scale_range: Least and greatest long side of the scaled image, as multiples of ``size``.
        fill: RGB color of the padding at the right and bottom, 0..255.
    """

    size: int = 1024
    scale_range: tuple[float, float] = (0.1, 2.0)
    fill: tuple[int, int, int] = _MEAN_COLOR

    def __post_init__(self) -> None:
        require_positive_ints({"size": self.size})
        _require_range("scale_range", self.scale_range)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the sample as a square."""
        height, width = sample.shape
        scale = _uniform(*self.scale_range, generator) * self.size / max(height, width)
        # Cropping first avoids scaling pixels outside of the window.
        shape = min(height, math.ceil(self.size / scale)), min(width, math.ceil(self.size / scale))
        sample = crop(sample, *_random_window((height, width), shape, generator))
        scaled = [min(max(round(side * scale), 1), self.size) for side in shape]
        return pad(resize(sample, *scaled), self.size, self.size, self.fill)


@dataclass(frozen=True)
class CopyPaste:
    """Paste instances of a random image, without blending (Ghiasi et al. 2021).

    Crowds and instances of classes that only one of the images is annotated with are not pasted. Instances
    keep their positions, relative to the top left; parts outside of the image are cut off.

    Attributes:
        probability: Probability of the change, 0..1.
        max_instances: Greatest number of pasted instances; the number is random.
        min_visible: Fraction of an instance, 0..1, that must stay visible; other instances are removed.
    """

    probability: float = 0.5
    max_instances: int = 20
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        require_unit_interval({"probability": self.probability, "min_visible": self.min_visible})
        require_positive_ints({"max_instances": self.max_instances})

    def __call__(self, sample: Sample, source: Sample, generator: Generator) -> Sample:
        """Return ``sample`` at its size, with instances of ``source``."""
        candidates, image = self._candidates(sample, source)
        count = len(candidates["labels"])
        if not count:
            return sample
        pasted_count = 1 + _random_int(min(count, self.max_instances), generator)
        indices = (
            torch.randperm(count, dtype=torch.int64, generator=generator, device="cpu")[:pasted_count]
            .sort()
            .values
        )
        return self._paste(sample, image, select_instances(candidates, indices))

    def _candidates(self, sample: Sample, source: Sample) -> tuple[Target, Tensor]:
        """Return the instances of ``source`` to paste from and its pixels, at the size of ``sample``."""
        suitable = ~source.target["iscrowd"]
        for labelled in (item.target.get("labelled") for item in (sample, source)):
            if labelled is not None:
                suitable &= torch.isin(source.target["labels"], labelled)
        target = select_instances(source.target, suitable)
        height, width = (min(sides) for sides in zip(sample.shape, source.shape, strict=True))
        visible = self._is_visible(target, target["masks"][:, :height, :width])
        cropped = crop(Sample(source.image, select_instances(target, visible)), 0, 0, height, width)
        padded = pad(cropped, *sample.shape)
        return padded.target, padded.image

    def _paste(self, sample: Sample, image: Tensor, pasted: Target) -> Sample:
        cover = torch.from_numpy(pasted["masks"].numpy().any(axis=0))
        target = sample.target
        uncovered = target["masks"] & ~cover
        visible = self._is_visible(target, uncovered)
        behind = select_instances({**target, "masks": uncovered}, visible)
        behind["boxes"] = mask_bounds(behind["masks"], behind["boxes"])
        masks, boxes, labels, iscrowd = (
            torch.cat([behind[key], pasted[key]]) for key in ("masks", "boxes", "labels", "iscrowd")
        )
        pixels = torch.where(cover, image, sample.image)
        return make_sample(pixels, masks, boxes, labels, iscrowd, target.get("labelled"))

    def _is_visible(self, target: Target, masks: Tensor) -> Tensor:
        """Return whether enough of each instance, (n,) bool, is visible; ``masks`` are the visible parts."""
        left = mask_areas(masks, target["boxes"])
        return (left > 0) & (left >= self.min_visible * mask_areas(target["masks"], target["boxes"]))


@dataclass(frozen=True)
class Augmentation:
    """A sequence of steps, optionally followed by copy-paste from a random image after the same steps.

    Attributes:
        steps: Steps in order.
        copy_paste: Copy-paste, if any.
    """

    steps: tuple[Step, ...] = ()
    copy_paste: CopyPaste | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))

    def __call__(self, sample: Sample, generator: Generator, draw: Callable[[Generator], Sample]) -> Sample:
        """Return the changed sample.

        Args:
            sample: Sample to change.
            generator: Source of randomness.
            draw: Function that returns a random, unchanged sample to paste from. It is called only if the
                copy-paste happens, because it reads an image.
        """
        sample = self._apply_steps(sample, generator)
        if self.copy_paste is None or not _happens(self.copy_paste.probability, generator):
            return sample
        return self.copy_paste(sample, self._apply_steps(draw(generator), generator), generator)

    def _apply_steps(self, sample: Sample, generator: Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, generator)
        return sample


def make_augmentation(recipe: Recipe, preprocessing: PreprocessConfig) -> Augmentation:
    """Return the augmentation that ``recipe.augment`` names, for the preprocessing of a model.

    Models that do not keep the aspect ratio are trained on stretched images. For them "multiscale" crops the
    image, similar to mmdet's YOLACT, because the input size is fixed.
    """
    short, long = preprocessing.short_side, preprocessing.long_side
    stretch: tuple[Step, ...] = () if preprocessing.keep_ratio else (Stretch(short),)
    mirror: tuple[Step, ...] = () if recipe.augment == "none" else (Flip(),)
    if recipe.augment == "jitter":
        side = _crop_side(recipe, preprocessing)
        low, high = (scale * long / side for scale in recipe.scale_range)
        colors = ColorJitter(brightness=20.0, contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=8.0)
        copy_paste = CopyPaste(recipe.copy_paste) if recipe.copy_paste else None
        return Augmentation((colors, *mirror, *stretch, LargeScaleJitter(side, (low, high))), copy_paste)
    if stretch:
        cropping: tuple[Step, ...] = (Crop(),) if recipe.augment == "multiscale" else ()
        return Augmentation((*cropping, *stretch, *mirror))
    short_sides = multiscale_short_sides(short, long) if recipe.augment == "multiscale" else (short,)
    return Augmentation((ResizeChoice(short_sides, long), *mirror))


def fixed_input_size(recipe: Recipe, preprocessing: PreprocessConfig) -> tuple[int, int] | None:
    """Return (height, width) in pixels of all batches, or None if each batch has the size of its images."""
    if recipe.augment != "jitter":
        return None
    side = _crop_side(recipe, preprocessing)
    return side, side


def _crop_side(recipe: Recipe, preprocessing: PreprocessConfig) -> int:
    """Return the side of the crop of "jitter" in pixels, a multiple of the size divisor."""
    side = recipe.crop_size or preprocessing.short_side
    return preprocessing.padded_shape(side, side)[0]


def _saturation_matrix(factor: float) -> np.ndarray:
    """Return the (3, 3) color map that keeps the luma and scales the distance from gray."""
    return factor * np.eye(3) + (1 - factor) * np.tile(_LUMA, (3, 1))


def _hue_matrix(angle: float) -> np.ndarray:
    """Return the (3, 3) rotation of colors about the gray axis by an angle in radians."""
    turn = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) / 3 + math.sin(angle) * turn


def _map_colors(image: Tensor, matrix: np.ndarray, offset: float) -> Tensor:
    """Return an image (3, H, W) uint8 whose colors are ``matrix @ color + offset``.

    Products are summed one by one: the rounding of a matrix product may depend on the number of threads.
    """
    planes = image.as_subclass(Tensor).contiguous().float()
    mapped = torch.empty(planes.shape, dtype=torch.uint8, device="cpu")
    for row, plane in zip(matrix.tolist(), mapped, strict=True):
        red, green, blue = (planes[channel] * weight for channel, weight in enumerate(row))
        plane.copy_(red.add_(green).add_(blue).add_(offset + 0.5).clamp_(0, 255))
    return mapped


def _random_window(
    shape: tuple[int, int], window: tuple[int, int], generator: Generator
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a window at a random position in an image (height, width)."""
    top, left = (
        _random_int(side - length + 1, generator) for side, length in zip(shape, window, strict=True)
    )
    return top, left, *window


def _happens(probability: float, generator: Generator) -> bool:
    return _uniform(0.0, 1.0, generator) < probability


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * torch.rand((), dtype=torch.float64, device="cpu", generator=generator).item()


def _random_int(end: int, generator: Generator) -> int:
    return int(torch.randint(end, (), dtype=torch.int64, generator=generator, device="cpu"))


def _require_range(name: str, limits: tuple[float, float], greatest: float = math.inf) -> None:
    valid = len(limits) == 2 and all(map(is_finite, limits)) and 0.0 < limits[0] <= limits[1] <= greatest
    limit = "" if math.isinf(greatest) else f", at most {greatest:g}"
    require(valid, f"{name}={limits!r}: expected (least, greatest), above 0{limit}.")
