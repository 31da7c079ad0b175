"""Preprocessing settings: from an image to a network input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from solo_infer.config.validation import (
    bounded_repr,
    coerce_tuple,
    is_finite,
    require,
    require_bools,
    require_positive_ints,
)

INPUT_SIZE_UNIT = 32  # pixels: stride of the coarsest feature map of a ResNet


@dataclass(frozen=True)
class PreprocessConfig:
    """Settings of mmdet's test pipeline.

    Attributes:
        short_side: Greatest short side of the scaled image in pixels.
        long_side: Greatest long side of the scaled image in pixels. The image is scaled, keeping its aspect
            ratio, until one of the two limits is reached.
        mean: Value subtracted from each RGB channel, 0..255 (torchvision's ImageNet statistics).
        std: Divisor of each RGB channel after the subtraction.
        size_divisor: The normalized image is padded with zeros at the right and bottom to a multiple of this.
        keep_ratio: Whether to keep the aspect ratio. If ``False``, the image becomes a square of
            ``short_side``, which must equal ``long_side``.
        round_to_uint8: Whether scaled pixel values are rounded to integers, as OpenCV does for uint8 images.
        antialias: Whether images are scaled down by averaging all pixels. mmdet interpolates between the four
            nearest ones, which loses detail of images much larger than the network input.
    """

    short_side: int = 800
    long_side: int = 1333
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size_divisor: int = 32
    keep_ratio: bool = True
    round_to_uint8: bool = True
    antialias: bool = False

    def __post_init__(self) -> None:
        require_positive_ints(
            {name: getattr(self, name) for name in ("short_side", "long_side", "size_divisor")}
        )
        require_bools({name: getattr(self, name) for name in ("keep_ratio", "round_to_uint8", "antialias")})
        sides = f"short_side={self.short_side}, long_side={self.long_side}"
        require(self.short_side <= self.long_side, f"{sides}: expected short_side <= long_side.")
        is_square = self.short_side == self.long_side
        require(self.keep_ratio or is_square, f"keep_ratio=False, {sides}: expected equal sides.")
        for name in ("mean", "std"):
            coerce_tuple(self, name, 3)
            finite = all(map(is_finite, getattr(self, name)))
            require(finite, f"{name}={getattr(self, name)}: expected finite numbers.")
        require(min(self.std) > 0, f"std={self.std}: expected positive finite numbers.")

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in pixels of an image of this size after scaling."""
        if not self.keep_ratio:
            return self.short_side, self.short_side
        return scaled_size(height, width, self.short_side, self.long_side)

    def with_input_size(self, input_size: int | Sequence[int]) -> PreprocessConfig:
        """Return these settings for network inputs of another size.

        Args:
            input_size: Greatest height and width of the scaled image in pixels, multiples of 32: one number
                for both, or (height, width), which are exchanged for images of the other orientation. The
                aspect ratio is kept, except by models that scale images to a square, which take one number.

        Raises:
            ConfigError: The size is something else.
        """
        sides = tuple(input_size) if isinstance(input_size, list | tuple) else (input_size, input_size)
        given = f"input_size={bounded_repr(input_size)}"
        require(len(sides) == 2, f"{given}: expected one number or (height, width).")
        require_positive_ints({f"input_size[{index}]": side for index, side in enumerate(sides)})
        short_side, long_side = sorted(sides)
        if (short_side, long_side) == (self.short_side, self.long_side):
            return self
        require(
            self.keep_ratio or short_side == long_side,
            f"{given}: this model scales every image to a square. Pass one number, e.g. {long_side}.",
        )
        nearest = [max(round(side / INPUT_SIZE_UNIT), 1) * INPUT_SIZE_UNIT for side in sides]
        require(
            nearest == list(sides),
            f"{given}: expected multiples of {INPUT_SIZE_UNIT}, e.g. {' x '.join(map(str, nearest))}.",
        )
        return replace(self, short_side=short_side, long_side=long_side)

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) in pixels rounded up to multiples of ``size_divisor``."""
        divisor = self.size_divisor
        return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


def scaled_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return the (height, width) of an image scaled until its short or its long side reaches a limit.

    Rounding is mmdet's (``mmcv.imrescale``): half up, at least 1 pixel.
    """
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
