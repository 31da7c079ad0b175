"""Check of each Triton kernel against its PyTorch reference on a device.

Each kernel and its reference process a small input. Their results must be equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from solo_infer.config import PreprocessConfig
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.ops import dispatch, packed_masks
from solo_infer.ops.group_norm_relu import group_norm_relu
from solo_infer.ops.mask_statistics import axis_mask_statistics, cell_mask_statistics
from solo_infer.ops.matrix_nms import decay_factors
from solo_infer.ops.paste_masks import paste_masks
from solo_infer.runtime.device import FastPaths, fast_paths, is_corex_card
from solo_infer.runtime.messages import first_line

TRITON = "triton"
WRONG = "triton, but WRONG"
FAILS = "FAILS"


def describe_paths(device: torch.device) -> dict[str, str]:
    """Return the implementation in use of each operation and feature on a device.

    Returns:
        For kernels "triton", ``WRONG``, "torch (reason)" or "FAILS (error)"; for the other features "on",
        "available", or "off" or "not available" with the reason.
    """
    supported = fast_paths(device)
    reason = _reason(device, supported)
    graphs = "on" if supported.graphs else f"off ({reason})"
    return {
        **{name: _kernel_path(name, check, device, reason) for name, check in CHECKS.items()},
        "CUDA graphs": graphs,
        "static shapes": graphs,
        "torch.compile": "available" if supported.compile else f"not available ({reason})",
    }


def _reason(device: torch.device, supported: FastPaths) -> str:
    """Return why a fast path is not supported."""
    if device.type != "cuda":
        return "for CUDA only"
    if is_corex_card(device.index):
        return "not supported on Iluvatar cards"
    if not supported.graphs:
        return "for NVIDIA cards only"
    return "Triton is not installed, or the card is older than compute capability 7.0"


@torch.no_grad()
def _kernel_path(name: str, check: Callable[[torch.device], bool], device: torch.device, reason: str) -> str:
    if not fast_paths(device).triton:
        return f"torch ({reason})"
    try:
        is_equal = check(device)
    except RuntimeError as error:  # a broken device, where the reference fails too
        return f"{FAILS} ({first_line(error)})"
    if name in dispatch.failures():
        return f"torch ({dispatch.failures()[name]})"
    return TRITON if is_equal else WRONG


def _preprocessing_agrees(device: torch.device) -> bool:
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    config = PreprocessConfig(short_side=48, long_side=96)
    geometries = [plan(image, config)]
    on_device, on_cpu = (
        prepare([image], geometries, config, target) for target in (device, torch.device("cpu"))
    )
    return torch.equal(on_device.cpu(), on_cpu)


def _group_norm_agrees(device: torch.device) -> bool:
    x = _random(1, 64, 19, 23).sub(0.3).to(device, memory_format=torch.channels_last)
    weight, bias = _random(2, 64).to(device)
    output = group_norm_relu(x, 32, weight, bias, 1e-5)
    expected = group_norm_relu.reference(x.contiguous(), 32, weight, bias, 1e-5)
    return torch.allclose(output, expected, rtol=1e-4, atol=1e-4)


def _matrix_nms_agrees(device: torch.device) -> bool:
    masks = (_random(1, 40, 30, 34) > 0.4).flatten(2)
    packed, areas = packed_masks.pack(masks).to(device), masks.sum(2).float().to(device)
    labels = (torch.arange(40) % 3)[None].to(device)
    arguments = packed, areas, labels, "gaussian", 2.0
    return torch.allclose(decay_factors(*arguments), decay_factors.reference(*arguments), rtol=0, atol=1e-5)


def _mask_pasting_agrees(device: torch.device) -> bool:
    sizes = (64, 96), (61, 90), (101, 77)
    soft = _random(3, 16, 24).to(device)
    packed = paste_masks(soft, *sizes, 0.5).packed
    lower, upper = (paste_masks.reference(soft, *sizes, 0.5 + offset).packed for offset in (1e-5, -1e-5))
    return _is_between(packed, lower, upper)


def _mask_statistics_agree(device: torch.device) -> bool:
    sizes, out_size = ((8, 12), (4, 6), (2, 3)), (16, 24)
    logits = (8 * _random(1, 40, sum(height * width for height, width in sizes)) - 4).to(device)
    levels = (torch.arange(40) % 5)[None].to(device)
    packed = cell_mask_statistics(logits, levels, sizes, out_size, 0.25).packed
    lower, upper = (
        cell_mask_statistics.reference(logits, levels, sizes, out_size, 0.25 + offset).packed
        for offset in (1e-4, -1e-4)
    )
    if not _is_between(packed, lower, upper):
        return False
    column_masks, row_masks = _random(2, 1, 7, 16, 24).to(device)
    columns, rows = levels, 6 - levels
    packed = axis_mask_statistics(column_masks, row_masks, columns, rows, 0.25).packed
    lower, upper = (
        axis_mask_statistics.reference(column_masks, row_masks, columns, rows, 0.25 + offset).packed
        for offset in (1e-4, -1e-4)
    )
    return _is_between(packed, lower, upper)


def _is_between(packed: Tensor, lower: Tensor, upper: Tensor) -> bool:
    """Return whether packed masks include the lower ones and are included in the upper ones."""
    return not bool((lower & ~packed).any() or (packed & ~upper).any())


def _random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


CHECKS = {
    "preprocessing": _preprocessing_agrees,
    "GroupNorm": _group_norm_agrees,
    "mask statistics": _mask_statistics_agree,
    "Matrix-NMS": _matrix_nms_agrees,
    "mask pasting": _mask_pasting_agrees,
}
