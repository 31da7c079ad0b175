"""From RGB images to a padded network input, as in mmdet's test pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.config import PreprocessConfig
from solo_infer.ops.preprocess import preprocess
from solo_infer.runtime.fork import require_own_cuda


@dataclass(frozen=True)
class Geometry:
    """Sizes of one image during inference, each (height, width) in pixels."""

    original: tuple[int, int]  # the image
    resized: tuple[int, int]  # after scaling: the part of the network input that the image fills
    padded: tuple[int, int]  # the network input


def plan(image: np.ndarray, config: PreprocessConfig) -> Geometry:
    """Return the sizes of an image (H, W, 3); no pixel is read."""
    original = (image.shape[0], image.shape[1])
    resized = config.resized_shape(*original)
    return Geometry(original, resized, config.padded_shape(*resized))


def plan_fixed_size(image: np.ndarray, size: tuple[int, int], config: PreprocessConfig) -> Geometry:
    """Return the sizes of an image for a network input of a fixed size.

    The image is scaled as the model scales it, or to fit into the input if that is smaller. If its own padded
    size is the input's, results are those of the model; otherwise it has more padding than with the model,
    which GroupNorm and the coordinate channels see.

    Args:
        image: (H, W, 3).
        size: (height, width) of the network input in pixels.
        config: Preprocessing of the model.
    """
    height, width = image.shape[:2]
    resized = config.resized_shape(height, width)
    if resized[0] > size[0] or resized[1] > size[1]:
        scale = min(size[0] / height, size[1] / width)
        resized = max(int(height * scale), 1), max(int(width * scale), 1)
    return Geometry((height, width), resized, size)


def prepare(
    images: Sequence[np.ndarray],
    geometries: Sequence[Geometry],
    config: PreprocessConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Resize, normalize and pad images of equal padded size.

    Args:
        images: (H, W, 3) uint8 RGB each.
        geometries: Their sizes, from ``plan``.
        config: Mean, standard deviation and rounding.
        device: Device of the work and the result.
        dtype: Dtype of the result.

    Returns:
        (N, 3, padded height, padded width), channels_last, zero in the padding. With
        ``round_to_uint8``, equal to the last bit on every device.

    Raises:
        DeviceError: The process was forked from one that uses the same CUDA device.
    """
    require_own_cuda(device)
    pixels = [torch.from_numpy(np.ascontiguousarray(image)) for image in images]
    if config.antialias:
        pixels = [reduce(image, geometry.resized) for image, geometry in zip(pixels, geometries, strict=True)]
    return preprocess(
        pixels,
        [geometry.resized for geometry in geometries],
        geometries[0].padded,
        config.mean,
        config.std,
        config.round_to_uint8,
        device,
        dtype,
    )


def to_pixels(inputs: Tensor, config: PreprocessConfig) -> Tensor:
    """Return the pixels (N, 3, H, W) uint8 RGB of network inputs; the padding is the mean."""
    std, mean = (inputs.new_tensor(values).view(3, 1, 1) for values in (config.std, config.mean))
    return (inputs * std + mean).round_().clamp_(0, 255).to(torch.uint8)


def reduce(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale an image (H, W, 3) uint8 on the CPU down to (height, width), averaging over all its pixels.

    An image that is not larger is returned unchanged.
    """
    if image.shape[0] <= size[0] and image.shape[1] <= size[1]:
        return image
    planes = image.permute(2, 0, 1)[None]
    reduced = F.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    return reduced[0].permute(1, 2, 0).contiguous()
