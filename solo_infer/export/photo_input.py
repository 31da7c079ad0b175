"""Preprocessing of photos of one size inside a graph: resize, normalization and padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.config import PreprocessConfig
from solo_infer.export.detection_graph import GraphDetections
from solo_infer.ops.cv2_resize import tables

Size = tuple[int, int]  # (height, width) in pixels


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
        return LinearResize(photo, resized, antialias=True, rounded=True)
    if config.round_to_uint8:
        return IntegerResize(photo, resized)
    return LinearResize(photo, resized, antialias=False, rounded=False)


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


class LinearResize(nn.Module):
    """Bilinear resize of images as two matrix products.

    Args:
        photo: Size of the images.
        resized: New size.
        antialias: Whether to average over all pixels of a reduced image.
        rounded: Whether to round to whole numbers. An antialiased image then differs by at most 1 from
            torch's, which rounds after each direction.
    """

    def __init__(self, photo: Size, resized: Size, *, antialias: bool, rounded: bool) -> None:
        super().__init__()
        self.rounded = rounded
        for name, old, new in zip(("rows", "columns"), photo, resized, strict=True):
            self.register_buffer(name, _matrix(old, new, antialias), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) uint8 to (N, 3, h, w) float32 in 0..255."""
        resized = self.get_buffer("rows") @ pixels.float() @ self.get_buffer("columns").T
        return resized.round().clamp(0, 255) if self.rounded else resized


def _matrix(old: int, new: int, antialias: bool) -> Tensor:
    """Return the matrix (new, old) float32 that resizes one side of an image."""
    impulses = torch.eye(old, dtype=torch.float32, device="cpu")[None, None]
    resized = F.interpolate(
        impulses, size=(new, old), mode="bilinear", antialias=antialias, align_corners=False
    )
    return resized[0, 0]
