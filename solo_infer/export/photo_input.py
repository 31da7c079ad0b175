"""Preprocessing of photos of one size inside a graph: resize, normalization and padding."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.config import PreprocessConfig
from solo_infer.export.detection_graph import GraphDetections
from solo_infer.ops.cv2_resize import tables

Size = tuple[int, int]  # (height, width) in pixels
_MAX_BITS = 22  # of torch's weights


class PhotoDetector(nn.Module):
    """Detections from RGB photos of one size.

    Args:
        detector: Maps normalized network inputs to ``GraphDetections``.
        config: Preprocessing of the model.
        photo: Size of the photos.
    """

    def __init__(self, detector: nn.Module, config: PreprocessConfig, photo: Size) -> None:
        super().__init__()
        self.detector = detector
        self.takes_any_batch = detector.takes_any_batch
        resized = config.resized_shape(*photo)
        padded = config.padded_shape(*resized)
        self.padding = (0, padded[1] - resized[1], 0, padded[0] - resized[0])
        self.resize = _resize(config, photo, resized)
        for name, values in (("mean", config.mean), ("std", config.std)):
            tensor = torch.tensor(values, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, photos: Tensor) -> GraphDetections:
        """Map photos (N, H, W, 3) uint8 RGB to detections."""
        pixels = self.resize(photos.permute(0, 3, 1, 2))
        normalized = (pixels - self.get_buffer("mean")) / self.get_buffer("std")
        return self.detector(F.pad(normalized, self.padding))


def _resize(config: PreprocessConfig, photo: Size, resized: Size) -> nn.Module:
    """Return the module that resizes photos as ``inference.preprocess.prepare`` does."""
    is_reduced = photo[0] > resized[0] or photo[1] > resized[1]
    if config.antialias and is_reduced:
        return AntialiasedResize(photo, resized)
    if config.round_to_uint8:
        return IntegerResize(photo, resized)
    return FloatResize(photo, resized)


class IntegerResize(nn.Module):
    """OpenCV's bilinear resize of uint8 images, bit for bit; see ``ops.cv2_resize``.

    Args:
        photo: Size of the images.
        resized: New size.
    """

    def __init__(self, photo: Size, resized: Size) -> None:
        super().__init__()
        columns, rows = tables(photo, resized)
        for name, table in (("column", columns), ("row", rows)):
            self.register_buffer(f"{name}_index", table[:2].long(), persistent=False)
            self.register_buffer(f"{name}_weights", table[2:].clone(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) uint8 to (N, 3, h, w) float32 in 0..255, whole numbers."""
        left, right = self.get_buffer("column_index")
        top, bottom = self.get_buffer("row_index")
        weight_left, weight_right = self.get_buffer("column_weights")
        weight_top, weight_bottom = self.get_buffer("row_weights")[:, :, None]
        # Divisions instead of shifts, which ONNX has for unsigned numbers only; no number is negative.
        rows = pixels.int()
        sums = rows.index_select(3, left) * weight_left + rows.index_select(3, right) * weight_right
        sums = _divide(sums, 1 << 4)
        upper = _divide(sums.index_select(2, top) * weight_top, 1 << 16)
        lower = _divide(sums.index_select(2, bottom) * weight_bottom, 1 << 16)
        return _divide(upper + lower + 2, 1 << 2).float()


def _divide(values: Tensor, divisor: int) -> Tensor:
    return values.div(divisor, rounding_mode="floor")


class AntialiasedResize(nn.Module):
    """Torch's antialiased bilinear resize of uint8 images, bit for bit; see ``fixed_point_weights``.

    Args:
        photo: Size of the images.
        resized: New size.
    """

    def __init__(self, photo: Size, resized: Size) -> None:
        super().__init__()
        self.bits = []
        for name, old, new in zip(("rows", "columns"), photo, resized, strict=True):
            weights, bits = fixed_point_weights(old, new)
            self.bits.append(bits)
            # Products of bytes with a byte of the weights are exact in float32, and fast.
            self.register_buffer(f"{name}_high", (weights >> 8).float(), persistent=False)
            self.register_buffer(f"{name}_low", (weights & 0xFF).float(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) uint8 to (N, 3, h, w) float32 in 0..255, whole numbers."""
        row_bits, column_bits = self.bits
        high, low = (pixels.float() @ self.get_buffer(f"columns_{part}").T for part in ("high", "low"))
        reduced = _from_fixed_point(high, low, column_bits)
        high, low = (self.get_buffer(f"rows_{part}") @ reduced for part in ("high", "low"))
        return _from_fixed_point(high, low, row_bits)


def _from_fixed_point(high: Tensor, low: Tensor, bits: int) -> Tensor:
    """Return the rounded means, float32 in 0..255, of sums of the high and the low bytes of weights."""
    sums = high.int() * 256 + low.int() + (1 << (bits - 1))
    return _divide(sums, 1 << bits).clamp(0, 255).float()


def fixed_point_weights(old: int, new: int) -> tuple[Tensor, int]:
    """Return the weights of torch's antialiased bilinear reduction of one side of a uint8 image.

    Each new pixel is a mean of old ones with a triangle of weights as wide as the reduction. Torch computes
    it in whole numbers with as many bits as fit 16, columns first, and rounds after each side.

    Args:
        old: Length of the side in pixels.
        new: New length, at most the old one.

    Returns:
        (new, old) int32 weights; the number of bits that stands for 1.
    """
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum((centers - scale + 0.5).astype(np.int64), 0)[:, None]
    end = np.minimum((centers + scale + 0.5).astype(np.int64), old)[:, None]
    position = np.arange(old)
    weights = np.maximum(1 - np.abs(position - centers[:, None] + 0.5) / scale, 0)
    weights = np.where((position >= first) & (position < end), weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    bits = 0
    while bits < _MAX_BITS and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return torch.from_numpy((weights * (1 << bits) + 0.5).astype(np.int32)), bits


class FloatResize(nn.Module):
    """Bilinear resize without rounding, as two matrix products.

    Args:
        photo: Size of the images.
        resized: New size.
    """

    def __init__(self, photo: Size, resized: Size) -> None:
        super().__init__()
        for name, old, new in zip(("rows", "columns"), photo, resized, strict=True):
            impulses = torch.eye(old, dtype=torch.float32, device="cpu")[None]
            matrix = F.interpolate(impulses, size=new, mode="linear", align_corners=False)[0]
            self.register_buffer(name, matrix.T.contiguous(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) uint8 to (N, 3, h, w) float32 in 0..255."""
        return self.get_buffer("rows") @ pixels.float() @ self.get_buffer("columns").T
