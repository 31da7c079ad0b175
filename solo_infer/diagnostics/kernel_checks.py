"""Check of each Triton kernel against its PyTorch reference on a device.

Each kernel and its reference process a small input. Their results must be equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solo_infer.ops import dispatch, packed_masks
from solo_infer.ops.group_norm_relu import group_norm_relu
from solo_infer.ops.mask_statistics import axis_mask_statistics, cell_mask_statistics
from solo_infer.ops.matrix_nms import decay_factors
from solo_infer.ops.paste_masks import paste_masks
from solo_infer.ops.preprocess import preprocess
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
    image = _random(37, 53, 3).mul(256).to(torch.uint8)
    arguments = [image], [(48, 69)], (64, 96), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True
    output = preprocess(*arguments, device, torch.float32)
    return torch.equal(output.cpu(), preprocess.reference(*arguments, torch.device("cpu"), torch.float32))


def _group_norm_agrees(device: torch.device) -> bool:
    x = _random(1, 64, 19, 23).sub(0.3).to(device, memory_format=torch.channels_last)
    weight, bias = _random(2, 64).to(device)
    output = group_norm_relu(x, 32, weight, bias, 1e-5)
    expected = group_norm_relu.reference(x.contiguous(), 32, weight, bias, 1e-5)
    return torch.allclose(output, expected, rtol=1e-4, atol=1e-4)


def _cell_masks_agree(device: torch.device) -> bool:
    sizes = ((8, 12), (4, 6), (2, 3))  # of the distinct level sizes
    logits = _random(1, 40, sum(height * width for height, width in sizes)).mul(6).sub(3).to(device)
    levels = _integers(40, device) % 5
    return _masks_agree(cell_mask_statistics, logits, levels, sizes, (16, 24), threshold=0.25, margin=1e-4)


def _axis_masks_agree(device: torch.device) -> bool:
    maps = _random(2, 1, 9, 16, 24).to(device)  # of the columns and rows of a decoupled head
    columns, rows = _integers(40, device) % 9, _integers(40, device) // 9
    return _masks_agree(axis_mask_statistics, *maps, columns, rows, threshold=0.25, margin=1e-4)


def _matrix_nms_agrees(device: torch.device) -> bool:
    masks = (_random(1, 40, 30, 34) > 0.4).flatten(2)
    packed, areas = packed_masks.pack(masks).to(device), masks.sum(2).float().to(device)
    labels = _integers(40, device) % 3
    arguments = packed, areas, labels, "gaussian", 2.0
    return torch.allclose(decay_factors(*arguments), decay_factors.reference(*arguments), rtol=0, atol=1e-5)


def _mask_pasting_agrees(device: torch.device) -> bool:
    soft = _random(3, 16, 24).to(device)
    return _masks_agree(paste_masks, soft, (64, 96), (61, 90), (101, 77), threshold=0.5, margin=1e-5)


def _masks_agree(function: Any, *arguments: Any, threshold: float, margin: float) -> bool:
    """Return whether the packed masks of a kernel equal those of its reference.

    Args:
        function: Function with a Triton kernel, whose last argument is the threshold of mask pixels.
        arguments: Its other arguments.
        threshold: Threshold, 0..1.
        margin: Distance to the threshold within which pixels may differ.
    """
    packed = function(*arguments, threshold).packed
    lower = function.reference(*arguments, threshold + margin).packed
    upper = function.reference(*arguments, threshold - margin).packed
    return not bool((lower & ~packed).any() or (packed & ~upper).any())


def _random(*shape: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")


def _integers(count: int, device: torch.device) -> Tensor:
    """Return 0..count-1 as (1, count) int64."""
    return torch.arange(count, dtype=torch.int64, device=device)[None]


# By the name of the kernel in ``dispatch.failures``.
CHECKS = {
    "preprocessing": _preprocessing_agrees,
    "GroupNorm": _group_norm_agrees,
    "cell mask statistics": _cell_masks_agree,
    "axis mask statistics": _axis_masks_agree,
    "Matrix-NMS": _matrix_nms_agrees,
    "mask pasting": _mask_pasting_agrees,
}
