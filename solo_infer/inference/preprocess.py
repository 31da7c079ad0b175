"""From an RGB image to a padded network input, as mmdet's test pipeline makes it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from solo_infer.config import PreprocessConfig
from solo_infer.ops import dispatch
from solo_infer.ops.cv2_resize import resize_bilinear_uint8, tables


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
        geometry: What ``plan`` returned for it.
        config: Mean and standard deviation.
        device: Where the work is done and the result lies.

    Returns:
        (3, padded height, padded width) float32; 0 in the padding.
    """
    planes = torch.from_numpy(image).to(device).permute(2, 0, 1)
    planes = _resize(planes, geometry.resized, config.round_to_uint8)
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
        for values in (config.mean, config.std)
    )
    height, width = geometry.resized
    padded = torch.zeros((3, *geometry.padded), device=device)
    padded[:, :height, :width] = (planes.float() - mean).div_(std)
    return padded


def _resize(planes: Tensor, size: tuple[int, int], round_to_uint8: bool) -> Tensor:
    """Resize (3, H, W) uint8, as OpenCV does it on uint8 or, to float32, on float images."""
    if round_to_uint8:
        return resize_bilinear_uint8(planes, *size)
    return interpolate(planes[None].float(), size=size, mode="bilinear", align_corners=False)[0]


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
        geometries: What ``plan`` returned for them.
        config: Mean and standard deviation.
        device: Where the work is done and the result lies.
        dtype: Of the result.

    Returns:
        (N, 3, padded height, padded width), channels_last; each image equal to the last bit to what
        ``prepare`` gives, cast to the dtype.
    """
    if not config.round_to_uint8:  # a resize of float images, which the kernel cannot do
        return _prepare_each(images, geometries, config, device, dtype)
    return dispatch.run(
        "preprocessing",
        device,
        lambda: _prepare_fused(images, geometries, config, device, dtype),
        lambda: _prepare_each(images, geometries, config, device, dtype),
    )


def _prepare_each(
    images: Sequence[np.ndarray],
    geometries: Sequence[Geometry],
    config: PreprocessConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    pairs = zip(images, geometries, strict=True)
    inputs = torch.stack([prepare(image, geometry, config, device) for image, geometry in pairs])
    return inputs.to(dtype).contiguous(memory_format=torch.channels_last)


def _prepare_fused(
    images: Sequence[np.ndarray],
    geometries: Sequence[Geometry],
    config: PreprocessConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Copy from pinned memory, which nothing waits for, and run one kernel an image."""
    from solo_infer.ops.triton import preprocess

    shape = (len(images), 3, *geometries[0].padded)
    out = torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
    values = _normalized_values(config.mean, config.std, dtype, device)
    for image, geometry, target in zip(images, geometries, out, strict=True):
        lines = upload(_joined_tables(geometry.original, geometry.resized), device)
        rows, columns = (part.view(4, -1) for part in lines.split([4 * side for side in geometry.resized]))
        pixels = upload(torch.from_numpy(np.ascontiguousarray(image)), device)
        preprocess.prepare(pixels, columns, rows, values, target)
    return out


@functools.lru_cache(maxsize=64)
def _joined_tables(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Return the tables of a resize, rows before columns, in one piece: one copy to the device."""
    columns, rows = tables(old, new)
    return torch.cat([rows.flatten(), columns.flatten()])


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, copied from pinned memory without waiting on CUDA."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@functools.lru_cache(maxsize=16)
def _normalized_values(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return (3, 256): what each value of each channel becomes."""
    mean_column, std_column = (torch.tensor(values, dtype=torch.float32)[:, None] for values in (mean, std))
    return (torch.arange(256).float() - mean_column).div_(std_column).to(dtype).to(device)
