"""Matrix-NMS (SOLOv2, arXiv 2003.10152, section 3.3): duplicates lose score, in one step, in parallel.

The decay of detection j, when all are sorted by score and only equal labels count, is

    min over i before j of f(iou(i, j)) / f(greatest iou of i with any one before it)

with f(t) = exp(-sigma * t^2) (gaussian) or 1 - t (linear), as in mmdet's ``mask_matrix_nms``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from solo_infer.errors import ConfigError
from solo_infer.ops import packed_masks

_UNPACKED_BYTES = 8 << 20  # of float32 masks at a time


class NMSResult(NamedTuple):
    """What Matrix-NMS keeps, best first."""

    scores: Tensor  # (K,) float32, after the decay
    labels: Tensor  # (K,) int64
    keep: Tensor  # (K,) int64 indices into the inputs


def matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    nms_pre: int = -1,
    max_num: int = -1,
    filter_thr: float = -1.0,
) -> NMSResult:
    """Run Matrix-NMS on masks.

    Args:
        masks: (N, H, W) bool.
        labels: (N,) int64.
        scores: (N,) float32.
        kernel: "gaussian" or "linear".
        sigma: Width of the gaussian kernel.
        nms_pre: Only this many of the best enter; all if not positive.
        max_num: Only this many of the best are kept; all if not positive.
        filter_thr: Only scores of at least this are kept; all if not positive.

    Raises:
        ConfigError: The kernel is unknown.
    """
    packed = packed_masks.pack(masks.flatten(1))  # (N, ceil(H * W / 8))
    areas = masks.flatten(1).sum(1).float()
    return matrix_nms_packed(
        packed,
        areas,
        labels,
        scores,
        kernel=kernel,
        sigma=sigma,
        nms_pre=nms_pre,
        max_num=max_num,
        filter_thr=filter_thr,
    )


def matrix_nms_packed(
    packed: Tensor,
    areas: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: str,
    sigma: float,
    nms_pre: int,
    max_num: int,
    filter_thr: float,
    owners: Tensor | None = None,
) -> NMSResult:
    """Run Matrix-NMS on bit-packed masks; see ``matrix_nms``.

    Args:
        packed: (M, B) uint8, flattened masks as ``packed_masks.pack`` gives them.
        areas: (N,) float32, pixels of each detection's mask.
        labels: (N,) int64.
        scores: (N,) float32.
        kernel: "gaussian" or "linear".
        sigma: Width of the gaussian kernel.
        nms_pre: Only this many of the best enter; all if not positive.
        max_num: Only this many of the best are kept; all if not positive.
        filter_thr: Only scores of at least this are kept; all if not positive.
        owners: (N,) int64, the row of ``packed`` of each detection (several may share one); N = M and
            each its own row if not given.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[:nms_pre] if nms_pre > 0 else order
    scores, labels, areas = scores[order], labels[order], areas[order]
    rows = order if owners is None else owners[order]
    intersections = same_label_intersections(packed, rows, labels)
    unions = areas[:, None] + areas[None] - intersections
    ious = (intersections / unions.clamp(min=1)).triu(diagonal=1)
    scores = scores * decay(ious, kernel, sigma)
    if filter_thr > 0:
        passed = scores >= filter_thr
        scores, labels, order = scores[passed], labels[passed], order[passed]
    best = scores.argsort(descending=True, stable=True)
    best = best[:max_num] if max_num > 0 else best
    return NMSResult(scores[best], labels[best], order[best])


def same_label_intersections(packed: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """Return the common pixels (N, N), float32, of masks of equal label; 0 between different labels.

    Label by label and part by part of the masks, so that few are ever unpacked. Counts up to 2^24 are exact.
    """
    intersections = torch.zeros((len(labels), len(labels)), device=packed.device)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        if len(members) == 1:
            continue
        masks, common = packed[rows[members]], intersections.new_zeros((len(members), len(members)))
        for part in masks.split(max(_UNPACKED_BYTES // (32 * len(members)), 1), dim=1):
            pixels = packed_masks.unpack_float(part)
            common.addmm_(pixels, pixels.T)
        intersections[members[:, None], members] = common
    return intersections


def decay(ious: Tensor, kernel: str, sigma: float) -> Tensor:
    """Return the factor (N,) in 0..1 of each detection.

    Args:
        ious: (N, N) float32, the IoU of i and j at [i, j] for i before j and equal labels, else 0.
        kernel: "gaussian" or "linear".
        sigma: Width of the gaussian kernel.

    Raises:
        ConfigError: The kernel is unknown.
    """
    if len(ious) == 0:
        return ious.new_zeros(0)
    compensation = ious.amax(dim=0)[:, None]  # of i, for row i
    if kernel == "gaussian":
        factors = torch.exp(-sigma * ious**2) / torch.exp(-sigma * compensation**2)
    elif kernel == "linear":
        # A mask equal to a better one has compensation 1. Against its own copies that is 0 / 0 (NaN in
        # mmdet); they equal the better one too, which already takes them to 0.
        factors = ((1 - ious) / (1 - compensation)).nan_to_num(nan=0.0, posinf=torch.inf)
    else:
        raise ConfigError(f"kernel={kernel!r}: expected 'gaussian' or 'linear'.")
    return factors.amin(dim=0)
