"""Random changes of training images together with their instances.

Each step takes a ``Sample`` and a ``torch.Generator``, its only source of chance, and returns a new one whose
boxes, labels and masks fit together: an instance that lost its last pixel is gone. Pixels go through
torchvision's v2 kernels without antialiasing, as mmdet's through OpenCV; prediction has its own exact resize.
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
from solo_infer.errors import ConfigError
from solo_infer.models.solo.objective import Target
from solo_infer.training.sample import Sample, areas, bounds, chosen, crop, flip, make_sample, pad, resize

_MEAN_COLOR = (124, 116, 104)  # ImageNet's, so that padding is about 0 after the normalization
_LUMA = (0.299, 0.587, 0.114)
_CROP_TRIES = 10


Step = Callable[[Sample, Generator], Sample]


@dataclass(frozen=True)
class ResizeChoice:
    """Scale to one of several sizes, keeping the ratio. The default is mmdet's 3x schedule.

    Attributes:
        short_sides: In pixels, equally likely.
        long_side: Greatest long side in pixels.
    """

    short_sides: tuple[int, ...] = (800, 768, 736, 704, 672, 640)
    long_side: int = 1333

    def __post_init__(self) -> None:
        if not self.short_sides:
            raise ConfigError("short_sides=(): expected at least one, in pixels.")
        for short in self.short_sides:
            PreprocessConfig(short_side=short, long_side=self.long_side)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the scaled sample."""
        short = self.short_sides[_below(len(self.short_sides), generator)]
        return resize(sample, *PreprocessConfig(short, self.long_side).resized_shape(*sample.shape))


@dataclass(frozen=True)
class ResizeRange:
    """Scale to a random multiple of a size, keeping the ratio.

    Attributes:
        short_side: Of the size that factor 1 stands for, in pixels.
        long_side: Greatest long side at factor 1, in pixels.
        factors: Least and greatest factor.
    """

    short_side: int
    long_side: int
    factors: tuple[float, float] = (0.55, 1.5)

    def __post_init__(self) -> None:
        PreprocessConfig(short_side=self.short_side, long_side=self.long_side)
        _require_range("factors", self.factors)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the scaled sample."""
        factor = _between(*self.factors, generator)
        short, long = (max(round(side * factor), 1) for side in (self.short_side, self.long_side))
        return resize(sample, *PreprocessConfig(short, long).resized_shape(*sample.shape))


@dataclass(frozen=True)
class Stretch:
    """Scale to a square, whatever the ratio, as YOLACT sees its images.

    Attributes:
        side: In pixels.
    """

    side: int = 550

    def __post_init__(self) -> None:
        PreprocessConfig(short_side=self.side, long_side=self.side)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the scaled sample."""
        return resize(sample, self.side, self.side)


@dataclass(frozen=True)
class Flip:
    """Mirror left and right.

    Attributes:
        probability: Of doing it, 0..1.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        _require_probability("probability", self.probability)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the sample, mirrored or as it is."""
        return flip(sample) if _chance(self.probability, generator) else sample


@dataclass(frozen=True)
class Crop:
    """Cut out a window, one that shows an instance if the image has any and ten tries find one.

    Attributes:
        sides: Least and greatest part of the height and, independently, the width that is kept, above 0..1.
        probability: Of doing it, 0..1.
    """

    sides: tuple[float, float] = (0.5, 1.0)
    probability: float = 0.5

    def __post_init__(self) -> None:
        _require_range("sides", self.sides, 1.0)
        _require_probability("probability", self.probability)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the sample, cut or as it is."""
        if not _chance(self.probability, generator):
            return sample
        height, width = sample.shape
        for _ in range(_CROP_TRIES):
            shape = [max(round(side * _between(*self.sides, generator)), 1) for side in (height, width)]
            window = _window((height, width), (shape[0], shape[1]), generator)
            cropped = crop(sample, *window)
            if len(cropped.target["labels"]) or not len(sample.target["labels"]):
                return cropped
        return sample


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue, each one time in two, within mmdet's ranges.

    All four together are one linear map of the colors, which takes a tenth of the time of a way through HSV:
    saturation blends with the gray of the same luma, and hue turns the colors about the gray axis. mmdet's
    ``PhotoMetricDistortion`` also exchanges channels; here grass stays green.

    Attributes:
        brightness: Greatest number that is added or taken away, of 255.
        contrast: Least and greatest factor.
        saturation: Least and greatest factor.
        hue: Greatest turn either way, in degrees.
        probability: Of each of the four, 0..1.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        _require_range("contrast", self.contrast)
        _require_range("saturation", self.saturation)
        _require_probability("probability", self.probability)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the sample in other colors."""
        offset = self._draw((-self.brightness, self.brightness), 0.0, generator)
        gain = self._draw(self.contrast, 1.0, generator)
        saturation = self._draw(self.saturation, 1.0, generator)
        hue = self._draw((-self.hue, self.hue), 0.0, generator)
        if (offset, gain, saturation, hue) == (0.0, 1.0, 1.0, 0.0):
            return sample
        matrix = gain * _saturation_matrix(saturation) @ _hue_matrix(math.radians(hue))
        return sample._replace(image=tv_tensors.Image(_map_colors(sample.image, matrix, gain * offset)))

    def _draw(self, limits: tuple[float, float], neutral: float, generator: Generator) -> float:
        return _between(*limits, generator) if _chance(self.probability, generator) else neutral


@dataclass(frozen=True)
class LargeScaleJitter:
    """Scale by a random factor, then cut out or pad to a square (Ghiasi et al. 2021, section 3).

    Change colors before it, so that the padding keeps its own.

    Attributes:
        size: Side of the square in pixels.
        factors: Least and greatest long side of the scaled image, as parts of ``size``.
        fill: Color of the padding, right and bottom, RGB 0..255.
    """

    size: int = 1024
    factors: tuple[float, float] = (0.1, 2.0)
    fill: tuple[int, int, int] = _MEAN_COLOR

    def __post_init__(self) -> None:
        PreprocessConfig(short_side=self.size, long_side=self.size)
        _require_range("factors", self.factors)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the sample as a square."""
        height, width = sample.shape
        scale = _between(*self.factors, generator) * self.size / max(height, width)
        # Cut first: what the window leaves out need not be scaled.
        shape = min(height, math.ceil(self.size / scale)), min(width, math.ceil(self.size / scale))
        sample = crop(sample, *_window((height, width), shape, generator))
        scaled = [min(max(round(side * scale), 1), self.size) for side in shape]
        return pad(resize(sample, *scaled), self.size, self.size, self.fill)


@dataclass(frozen=True)
class CopyPaste:
    """Paste instances of another image (Ghiasi et al. 2021), their outlines hard.

    Only instances of classes that both images label are pasted, no crowds. They lie at their own places,
    counted from the top left; what does not fit into the image is cut off.

    Attributes:
        probability: Of doing it, 0..1.
        most: Greatest number of instances; a random number of those there are is taken.
        least_visible: Instances of which a smaller part stays visible are gone (what the image shows of
            them teaches nothing), 0..1.
    """

    probability: float = 0.5
    most: int = 20
    least_visible: float = 0.1

    def __post_init__(self) -> None:
        _require_probability("probability", self.probability)
        _require_probability("least_visible", self.least_visible)
        if self.most < 1:
            raise ConfigError(f"most={self.most}: expected at least 1 instance.")

    def __call__(self, sample: Sample, other: Sample, generator: Generator) -> Sample:
        """Return ``sample``, its image as large as before, with instances of ``other``."""
        pasted, image = self._fitting(sample, other)
        candidates = len(pasted["labels"])
        if not candidates:
            return sample
        count = 1 + _below(min(candidates, self.most), generator)
        which = torch.randperm(candidates, generator=generator)[:count].sort().values
        return self._paste(sample, image, chosen(pasted, which))

    def _fitting(self, sample: Sample, other: Sample) -> tuple[Target, Tensor]:
        """Return what of another image can be pasted, and its pixels, at the size of the sample."""
        suitable = ~other.target["iscrowd"]
        for labelled in (part.target.get("labelled") for part in (sample, other)):
            if labelled is not None:
                suitable &= torch.isin(other.target["labels"], labelled)
        target = chosen(other.target, suitable)
        height, width = (min(sides) for sides in zip(sample.shape, other.shape, strict=True))
        visible = self._stays(target, target["masks"][:, :height, :width])
        cut = crop(Sample(other.image, chosen(target, visible)), 0, 0, height, width)
        fitting = pad(cut, *sample.shape)
        return fitting.target, fitting.image

    def _paste(self, sample: Sample, image: Tensor, pasted: Target) -> Sample:
        cover = torch.from_numpy(pasted["masks"].numpy().any(axis=0))
        target = sample.target
        uncovered = target["masks"] & ~cover
        stays = self._stays(target, uncovered)
        below = chosen({**target, "masks": uncovered}, stays)
        below["boxes"] = bounds(below["masks"], below["boxes"])
        masks, boxes, labels, iscrowd = (
            torch.cat([below[key], pasted[key]]) for key in ("masks", "boxes", "labels", "iscrowd")
        )
        pixels = torch.where(cover, image, sample.image)
        return make_sample(pixels, masks, boxes, labels, iscrowd, target.get("labelled"))

    def _stays(self, target: Target, masks: Tensor) -> Tensor:
        """Return of which instances (n,) enough is visible, their masks cut to ``masks``."""
        left = areas(masks, target["boxes"])
        return (left > 0) & (left >= self.least_visible * areas(target["masks"], target["boxes"]))


@dataclass(frozen=True)
class Augmentation:
    """Steps one after the other and, if wanted, pasting from another image that went through them too.

    Attributes:
        steps: Done in this order.
        copy_paste: Done after them.
    """

    steps: tuple[Step, ...] = ()
    copy_paste: CopyPaste | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))

    def __call__(self, sample: Sample, generator: Generator, draw: Callable[[Generator], Sample]) -> Sample:
        """Return the changed sample.

        Args:
            sample: The sample.
            generator: The source of chance.
            draw: Returns any training sample, unchanged, to paste from.
        """
        sample = self._stepped(sample, generator)
        if self.copy_paste is None or not _chance(self.copy_paste.probability, generator):
            return sample
        return self.copy_paste(sample, self._stepped(draw(generator), generator), generator)

    def _stepped(self, sample: Sample, generator: Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, generator)
        return sample


def _saturation_matrix(factor: float) -> np.ndarray:
    """Return the (3, 3) color map that keeps the luma and scales the distance from gray."""
    return factor * np.eye(3) + (1 - factor) * np.tile(_LUMA, (3, 1))


def _hue_matrix(angle: float) -> np.ndarray:
    """Return the (3, 3) rotation of colors about the gray axis by an angle in radians."""
    turn = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) / 3 + math.sin(angle) * turn


def _map_colors(image: Tensor, matrix: np.ndarray, offset: float) -> Tensor:
    """Return an image (3, H, W) uint8 whose colors are ``matrix @ color + offset``.

    Multiplied and added apart: a matrix product may round differently with another number of threads.
    """
    planes = image.as_subclass(Tensor).contiguous().float()
    mapped = torch.empty(planes.shape, dtype=torch.uint8)
    for row, plane in zip(matrix.tolist(), mapped, strict=True):
        red, green, blue = (planes[channel] * weight for channel, weight in enumerate(row))
        plane.copy_(red.add_(green).add_(blue).add_(offset + 0.5).clamp_(0, 255))
    return mapped


def _window(
    shape: tuple[int, int], window: tuple[int, int], generator: Generator
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a window anywhere in an image (height, width)."""
    top, left = (_below(whole - part + 1, generator) for whole, part in zip(shape, window, strict=True))
    return top, left, *window


def _chance(probability: float, generator: Generator) -> bool:
    return _between(0.0, 1.0, generator) < probability


def _between(least: float, greatest: float, generator: Generator) -> float:
    return least + (greatest - least) * torch.rand((), dtype=torch.float64, generator=generator).item()


def _below(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _require_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}={value!r}: expected a number in 0..1.")


def _require_range(name: str, limits: tuple[float, float], most: float = math.inf) -> None:
    if not (len(limits) == 2 and 0.0 < limits[0] <= limits[1] <= most and math.isfinite(limits[1])):
        limit = "" if math.isinf(most) else f", at most {most:g}"
        raise ConfigError(f"{name}={limits!r}: expected (least, greatest), above 0{limit}.")
