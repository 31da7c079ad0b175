"""From an RGB image to a padded network input, as mmdet's test pipeline makes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from solo_infer.config import Preprocessing
from solo_infer.ops.resampling import resize_bilinear_uint8


@dataclass(frozen=True)
class Geometry:
    """The sizes of one image on its way, each (height, width) in pixels."""

    original: tuple[int, int]  # of the file
    resized: tuple[int, int]  # after the resize: the part of the network input that it fills
    padded: tuple[int, int]  # of the network input


def plan(image: np.ndarray, config: Preprocessing) -> Geometry:
    """Return the sizes of an image (H, W, 3), without touching a pixel."""
    original = (image.shape[0], image.shape[1])
    resized = config.resized_shape(*original)
    return Geometry(original, resized, config.padded_shape(*resized))


def prepare(image: np.ndarray, geometry: Geometry, config: Preprocessing, device: torch.device) -> Tensor:
    """Resize, normalise and pad an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        geometry: What ``plan`` returned for it.
        config: Mean and standard deviation.
        device: Where the work is done and the result lies.

    Returns:
        (3, padded height, padded width) float32; 0 in the padding.
    """
    planes = torch.from_numpy(image).to(device).permute(2, 0, 1)
    planes = _resize(planes, geometry.resized, config.whole_values)
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
        for values in (config.mean, config.std)
    )
    height, width = geometry.resized
    padded = torch.zeros((3, *geometry.padded), device=device)
    padded[:, :height, :width] = (planes.float() - mean).div_(std)
    return padded


def _resize(planes: Tensor, size: tuple[int, int], whole_values: bool) -> Tensor:
    """Resize (3, H, W) uint8, as OpenCV does it on uint8 or, to float32, on float images."""
    if whole_values:
        return resize_bilinear_uint8(planes, *size)
    return interpolate(planes[None].float(), size=size, mode="bilinear", align_corners=False)[0]
