"""Procedural weights and inputs: the same numbers on every machine, without a download.

Every value is computed from the CRC-32 of a text key and the raw stream of NumPy's Philox generator, which is
guaranteed not to change, with arithmetic that IEEE 754 defines exactly. The weights are not trained. They are
scaled so that the networks are numerically well behaved and find a realistic number of candidates. The
goldens of ``solo-infer verify`` are outputs of mmdet 3.3.0 with these weights.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_infer.config import find_preset
from solo_infer.models import build_network
from solo_infer.weights.key_mapping import mmdet_name

# Scale and mean of class and mask logits, tuned with mmdet on photos: 80 to 600 (cell, class) pairs exceed
# the score threshold, and masks are blobs. ``mask_spread`` varies the areas between cells. For YOLACT,
# ``background`` is the bias of the background class and ``proto_gain`` the scale of the prototypes. For
# SOLOv2, ``kernel_gain`` and ``kernel_bias`` are the scale and mean of the kernels, and ``last_norm`` is the
# norm layer that ends a residual branch.
CALIBRATION: dict[str, dict[str, Any]] = {
    "solo_r50": {"cls_gain": 3.0, "cls_bias": -8.2, "mask_gain": 5.5, "mask_bias": -5.5, "mask_spread": 3.0},
    "decoupled_r50": {
        "cls_gain": 3.0,
        "cls_bias": -8.6,
        "mask_gain": 6.5,
        "mask_bias": -2.0,
        "mask_spread": 2.0,
    },
    "decoupled_light_r50": {
        "cls_gain": 3.0,
        "cls_bias": -8.8,
        "mask_gain": 6.5,
        "mask_bias": -2.0,
        "mask_spread": 2.0,
    },
    "yolact_r50": {"cls_gain": 1.6, "cls_bias": 0.0, "background": 12.5, "proto_gain": 9.0},
    "yolact_r101": {"cls_gain": 1.2, "cls_bias": 0.0, "background": 12.5, "proto_gain": 7.0},
    **{
        model: {"cls_gain": 3.0, "cls_bias": -8.2, "kernel_gain": gain, "kernel_bias": bias}
        for model, gain, bias in (
            ("solov2_r50", 0.6, -0.036),
            ("solov2_r101", 0.6, -0.036),
            ("solov2_r101_dcn", 0.5, -0.045),
            ("solov2_x101_dcn", 0.55, -0.035),
            ("solov2_light_r18", 0.9, -0.042),
            ("solov2_light_r34", 0.9, -0.042),
            ("solov2_light_r50", 0.9, -0.07),
            ("solov2_light_r50_dcn", 0.9, -0.055),
        )
    },
}
for _model in ("solov2_light_r18", "solov2_light_r34"):
    CALIBRATION[_model]["last_norm"] = "bn2"
_PYRAMID_GAINS = (0.7, 1.2, 1.65, 2.9, 1.0)  # by level of YOLACT, so that each level has detections

_BLOCK = 3  # side of the blocks of cells with similar mask weights, as in a trained head
_OWN_CELL = 0.35  # fraction of the mask weights that differs within a block
_OWN_TAP = 0.2  # fraction of the weight of a mask convolution that differs between taps
_COORDINATE_GAIN = 60.0  # balances one or two coordinate channels against 256 features
_OFFSET_GAIN = 0.5  # standard deviation of the offsets of deformable convolutions in pixels, for unit inputs
# Fraction of the fine levels in the mask features of SOLOv2, so that masks are blobs: by the last norm layer.
_LEVEL_ENDS = {
    f"mask_head.mask_feature_head.convs_all_levels.{level}.conv{conv}.gn": fraction
    for level, conv, fraction in ((0, 0, 0.05), (1, 0, 0.12), (2, 1, 0.35))
}
_SMOOTH_BRANCHES = (
    "mask_head.mask_convs",
    "mask_head.kernel_convs",
    "mask_head.mask_feature_head.convs_all_levels",
)


def state_dict(model: str) -> dict[str, Tensor]:
    """Return the procedural state dict of a model.

    Args:
        model: Key of ``CALIBRATION``.
    """
    templates = build_network(find_preset(model).architecture, device="meta").state_dict()
    return {
        name: torch.from_numpy(tensor(mmdet_name(name), tuple(template.shape), model))
        for name, template in templates.items()
    }


def tensor(name: str, shape: tuple[int, ...], model: str) -> np.ndarray:
    """Return the value of one tensor, float32 or (``num_batches_tracked``) int64.

    Args:
        name: Name of the tensor in mmdet.
        shape: Shape of the tensor.
        model: Key of ``CALIBRATION``.
    """
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    value = _value(name, shape, CALIBRATION[model])
    return np.ascontiguousarray(value, np.float32)


def input_tensor(key: str, shape: tuple[int, int, int, int], images: list[tuple[int, int]]) -> np.ndarray:
    """Return a network input (N, 3, H, W) float32 with the falling spectrum of a photograph.

    It is a sum of random blocks of 64, 16, 4 and 1 pixels, with mean 0 and a standard deviation near 1.

    Args:
        key: Text key.
        shape: (N, 3, H, W).
        images: (height, width) in pixels of each image, which fills the top left; the rest is 0.
    """
    count, channels, height, width = shape
    total = np.zeros(shape)
    for size, weight in ((64, 0.8), (16, 0.5), (4, 0.3), (1, 0.1)):
        coarse = (count, channels, -(-height // size), -(-width // size))
        blocks = uniform(f"{key}/{size}", coarse) * 2.0 - 1.0
        blocks = np.repeat(np.repeat(blocks, size, axis=2), size, axis=3)
        total += blocks[:, :, :height, :width] * (weight * np.sqrt(3.0))
    for image, (filled_height, filled_width) in enumerate(images):
        total[image, :, filled_height:] = 0.0
        total[image, :, :, filled_width:] = 0.0
    return total.astype(np.float32)


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float64 numbers in (0, 1) that depend on a text key."""
    return ((_raw_bits(key, int(np.prod(shape))) + 0.5) / 65536.0).reshape(shape)


def _raw_bits(key: str, count: int) -> np.ndarray:
    """Return reproducible uint16 numbers for a text key."""
    philox = np.random.Philox(key=zlib.crc32(key.encode("utf-8")))
    words = np.asarray(philox.random_raw((count + 3) // 4))
    return words.astype("<u8").view("<u2")[:count]


def _centered(key: str, shape: tuple[int, ...], axis: tuple[int, ...] | None = None) -> np.ndarray:
    """Return uniform numbers of unit variance and zero mean; the mean over ``axis`` is exactly zero."""
    count = int(np.prod(shape, dtype=np.int64))
    odd = 2 * _raw_bits(key, count).astype(np.int64).reshape(shape) - 65535
    scale = np.sqrt(3.0) / 65536.0
    if axis is None:
        return odd * scale
    size = int(np.prod([shape[i] for i in axis], dtype=np.int64))
    return (odd * size - odd.sum(axis=axis, keepdims=True)) * (scale / size)


def _conv(key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """Return convolution weights of standard deviation gain / sqrt(fan in).

    The weights of each output channel sum to 0. Otherwise the positive mean of the features after a ReLU
    would grow from layer to layer until all positions have equal outputs.
    """
    fan_in = shape[1] * shape[2] * shape[3]
    return _centered(key, shape, axis=(1, 2, 3)) * (gain / np.sqrt(fan_in))


def _smooth_conv(key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """Return convolution weights that mostly average over their window, which makes masks blobs."""
    shared = _conv(key + "/shared", shape[:2] + (1, 1), gain) / 9.0
    return shared * np.sqrt(1.0 - _OWN_TAP * _OWN_TAP) + _conv(key + "/own", shape, gain) * _OWN_TAP


def _per_cell(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return unit-variance numbers whose first axis runs over grid cells (g * g), columns or rows (g)."""
    cells = shape[0]
    if cells > 40:
        grid = int(round(np.sqrt(cells)))
        row, column = np.divmod(np.arange(cells), grid)
        index = row // _BLOCK * -(-grid // _BLOCK) + column // _BLOCK
    else:
        index = np.arange(cells) // _BLOCK
    axis = (1, 2, 3) if len(shape) == 4 else None
    shared = _centered(key + "/shared", (int(index[-1]) + 1, *shape[1:]), axis)
    varied = _centered(key + "/own", shape, axis)
    return shared[index] * np.sqrt(1.0 - _OWN_CELL * _OWN_CELL) + varied * _OWN_CELL


def _value(name: str, shape: tuple[int, ...], constants: dict[str, Any]) -> np.ndarray:
    """Return the float64 value of a tensor."""
    layer, parameter = name.rsplit(".", 1)
    if parameter == "running_mean":
        return 0.2 * _centered(name, shape)
    if parameter == "running_var":
        return 1.0 + 0.2 * _centered(name, shape)
    level_fraction = _LEVEL_ENDS.get(layer, 1.0)
    if len(shape) == 1 and parameter == "weight":  # of a norm layer; small at the end of a residual branch
        is_last = layer.endswith(constants.get("last_norm", "bn3"))
        return (0.3 if is_last else level_fraction) * (1.0 + 0.15 * _centered(name, shape))
    if "conv_mask_list" in layer:
        if parameter == "bias":
            return constants["mask_bias"] + constants["mask_spread"] * _per_cell(name, shape)
        return constants["mask_gain"] / np.sqrt(shape[1] * shape[2] * shape[3]) * _per_cell(name, shape)
    if layer.endswith("conv_cls"):
        if parameter == "bias":
            bias = constants["cls_bias"] + 0.3 * _centered(name, shape)
            if "background" in constants:
                bias.reshape(3, 81)[:, 80] += constants["background"]
            return bias
        return _conv(name, shape, constants["cls_gain"])
    if layer.endswith("conv_kernel"):
        if parameter == "bias":
            return constants["kernel_bias"] + 0.01 * _centered(name, shape)
        return _smooth_conv(name, shape, constants["kernel_gain"])
    if layer.endswith("conv_offset") and parameter == "weight":
        value = _conv(name, shape, 1.0)
        value[: shape[0] // 3 * 2] *= _OFFSET_GAIN  # the others are logits of factors
        return value
    if parameter == "bias":
        return level_fraction * 0.1 * _centered(name, shape)
    if layer.startswith(_SMOOTH_BRANCHES):
        value = _smooth_conv(name, shape, np.sqrt(2.0))
        if shape[1] in (257, 258):  # x, y or both after 256 features
            value[:, 256:] *= _COORDINATE_GAIN
        return value
    if layer.startswith("mask_head.protonet"):
        gain = constants["proto_gain"] if layer == "mask_head.protonet.10" else 1.0
        return gain * _smooth_conv(name, shape, np.sqrt(2.0))
    if layer.startswith("neck.fpn_convs") and "background" in constants:
        return _PYRAMID_GAINS[int(layer.split(".")[2])] * _conv(name, shape, np.sqrt(2.0))
    return _conv(name, shape, np.sqrt(2.0))
