"""From an RGB image to a padded network input, as mmdet's test pipeline makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solo_infer.config import PreprocessConfig
from solo_infer.ops.preprocess import preprocess


@dataclass(frozen=True)
class Geometry:
    """The sizes of one image on its way, each (height, width) in pixels."""

    original: tuple[int, int]  # of the file
    resized: tuple[int, int]  # after the resize: the part of the network input that it fills
    padded: tuple[int, int]  # of the network input


def plan(image: np.ndarray, config: PreprocessConfig) -> Geometry:
    """Return the sizes of an image (H, W, 3), without touching a pixel."""
    original = (image.shape[0], image.shape[1])
    resized = config.resized_shape(*original)
    return Geometry(original, resized, config.padded_shape(*resized))


def prepare(image: np.ndarray, geometry: Geometry, config: PreprocessConfig, device: torch.device) -> Tensor:
    """Resize, normalize and pad an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        geometry: Sizes of the image, from ``plan``.
        config: Mean and standard deviation.
        device: Device of the result.

    Returns:
        (3, padded height, padded width) float32; 0 in the padding.
    """
    return prepare_batch([image], [geometry], config, device, torch.float32)[0].contiguous()


def prepare_batch(
    images: Sequence[np.ndarray],
    geometries: Sequence[Geometry],
    config: PreprocessConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Resize, normalize and pad images of equal padded size.

    Args:
        images: (H, W, 3) uint8 RGB each.
        geometries: Sizes of the images, from ``plan``.
        config: Mean and standard deviation.
        device: Device of the result.
        dtype: Data type of the result.

    Returns:
        (N, 3, padded height, padded width) in channels_last format.
    """
    return preprocess(
        [torch.from_numpy(np.ascontiguousarray(image)) for image in images],
        [geometry.resized for geometry in geometries],
        geometries[0].padded,
        config.mean,
        config.std,
        config.round_to_uint8,
        device,
        dtype,
    )
