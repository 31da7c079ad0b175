"""Matrix-NMS (SOLOv2, arXiv 2003.10152, section 3.3): suppression by one parallel rescoring.

With detections sorted by score and IoUs between detections of equal label only, the decay of detection j is

    min over i before j of f(iou(i, j)) / f(maximum IoU of i with the detections before it)

where f(t) = exp(-sigma * t^2) ("gaussian") or 1 - t ("linear"), as in mmdet's ``mask_matrix_nms``.

All functions share these arguments:

* ``labels``: (N,) int64, ``scores``: (N,) float32, ``areas``: (N,) float32 pixels of the masks.
* ``kernel``: "gaussian" or "linear"; ``sigma``: coefficient of the gaussian kernel.
* ``nms_pre``: number of detections that enter, highest scores first; all if it is not positive.
* ``max_num``: maximum number of detections to keep, highest scores first; all if it is not positive.
* ``filter_thr``: minimum score after the decay; no minimum if it is not positive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from solo_infer.errors import ConfigError
from solo_infer.ops import packed_masks
from solo_infer.ops.dispatch import triton_kernel
from solo_infer.ops.native import mask_intersections
from solo_infer.ops.native.library import kernel_library

KERNELS = ("gaussian", "linear")
# Bytes of masks that are unpacked to float32 at the same time. On the CPU they fit the cache.
_UNPACKED_BYTES_CPU = 8 << 20
_UNPACKED_BYTES = 128 << 20
_FEW_MASKS = 1024  # masks whose pairs are looked at one by one
_PAIRS_BYTES = 1 << 20  # of packed masks that are compared pair by pair: more take longer than a product


class NMSResult(NamedTuple):
    """Detections that an NMS keeps, highest score first."""

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
    """Run Matrix-NMS on bool masks (N, H, W); the module docstring describes the other arguments.

    Raises:
        ConfigError: ``kernel`` is unknown.
    """
    check_kernel(kernel)
    return matrix_nms_packed(
        packed_masks.pack(masks.flatten(1)),  # (N, ceil(H * W / 8))
        masks.flatten(1).sum(1).float(),
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
    mask_index: Tensor | None = None,
) -> NMSResult:
    """Run Matrix-NMS on packed masks; the module docstring describes the other arguments.

    ``packed`` (M, B) uint8 are flattened masks packed by ``packed_masks.pack``. ``mask_index`` (N,) int64 is
    the row of ``packed`` of each detection, where detections may share a row. It defaults to one row per
    detection, in the same order.

    Raises:
        ConfigError: ``kernel`` is unknown.
    """
    check_kernel(kernel)
    order = scores.argsort(descending=True, stable=True)
    order = order[:nms_pre] if nms_pre > 0 else order
    scores, labels = scores[order], labels[order]
    rows = order if mask_index is None else mask_index[order]
    factors = decay_factors(packed[rows][None], areas[order][None], labels[None], kernel, sigma)
    scores = scores * factors[0]
    if filter_thr > 0:
        passed = scores >= filter_thr
        scores, labels, order = scores[passed], labels[passed], order[passed]
    best = scores.argsort(descending=True, stable=True)
    best = best[:max_num] if max_num > 0 else best
    return NMSResult(scores[best], labels[best], order[best])


@triton_kernel("Matrix-NMS", "solo_infer.ops.triton.matrix_nms:decay_factors")
def decay_factors(packed: Tensor, areas: Tensor, labels: Tensor, kernel: str, sigma: float) -> Tensor:
    """Return the decay (N, P) float32 in 0..1 of P detections in each of N images.

    The shape of the result depends on the shapes of the arguments only, and the device is not synchronized
    except on the CPU. The kernel and the PyTorch implementation differ by at most 1e-5.

    Args:
        packed: (N, P, B) uint8, flattened masks packed by ``packed_masks.pack``, highest score first.
        areas: (N, P) float32, pixels of the masks.
        labels: (N, P) int64.
        kernel: "gaussian" or "linear".
        sigma: Coefficient of the gaussian kernel.

    Raises:
        ConfigError: ``kernel`` is unknown.
    """
    check_kernel(kernel)
    if packed.device.type == "cpu":
        pairs = zip(packed, labels, strict=True)
        images = [same_label_intersections(masks, classes) for masks, classes in pairs]
        intersections = torch.stack(images) if images else areas.new_zeros((*areas.shape, areas.shape[1]))
    else:
        intersections = pairwise_intersections(packed) * (labels[:, :, None] == labels[:, None])
    unions = areas[:, :, None] + areas[:, None] - intersections
    ious = (intersections / unions.clamp(min=1)).triu(diagonal=1)
    return decay(ious, kernel, sigma)


def decay(ious: Tensor, kernel: str, sigma: float) -> Tensor:
    """Return the decay (N, P) of detections.

    Args:
        ious: (N, P, P) float32, IoU of detections i and j at [i, j] if i is before j and their labels are
            equal, otherwise 0.
        kernel: "gaussian" or "linear".
        sigma: Coefficient of the gaussian kernel.
    """
    if ious.shape[-1] == 0:
        return ious.new_zeros(ious.shape[:2])
    compensation = ious.amax(dim=1)[:, :, None]  # of detection i, in row i
    if kernel == "gaussian":
        factors = torch.exp(-sigma * ious**2) / torch.exp(-sigma * compensation**2)
    else:
        # The compensation of a copy of a better mask is 1, and its decay of other copies is 0 / 0 (NaN in
        # mmdet). The better mask already decays those to 0.
        factors = ((1 - ious) / (1 - compensation)).nan_to_num(nan=0.0, posinf=torch.inf)
    return factors.amin(dim=1)


def check_kernel(kernel: str) -> None:
    """Raise a ConfigError if a kernel is unknown."""
    if kernel not in KERNELS:
        raise ConfigError(f"kernel={kernel!r}: expected 'gaussian' or 'linear'.")


def same_label_intersections(packed: Tensor, labels: Tensor) -> Tensor:
    """Return the common pixels of masks of equal label, 0 for different labels.

    A compiled kernel, where the package has one for the CPU, compares pairs of masks of equal label bit by
    bit. Elsewhere so do operations of torch, if few pairs touch the same words of 64 pixels; otherwise masks
    are unpacked label by label and in chunks, which bounds the memory. Devices other than the CPU are
    synchronized. Counts up to 2^24 are exact.

    Args:
        packed: (P, B) uint8.
        labels: (P,) int64.

    Returns:
        (P, P) float32.
    """
    library = kernel_library() if packed.device.type == "cpu" else None
    if library is not None:
        return mask_intersections.same_label_intersections(library, packed, labels)
    intersections = torch.zeros((len(labels), len(labels)), dtype=torch.float32, device=packed.device)
    pairs = _close_pairs(packed, labels) if len(labels) <= _FEW_MASKS else None
    if pairs is not None and len(pairs[0]) * packed.shape[1] <= _PAIRS_BYTES:
        rows, columns = pairs
        words = packed_masks.as_words(packed)
        counts = packed_masks.count_bits(words[rows] & words[columns]).float()
        intersections[rows, columns] = intersections[columns, rows] = counts
        return intersections
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        counts = intersections.new_zeros((len(members), len(members)))
        for chunk in packed[members].split(max(_UNPACKED_BYTES_CPU // (32 * len(members)), 1), dim=1):
            pixels = packed_masks.unpack_float(chunk)
            counts.addmm_(pixels, pixels.T)
        intersections[members[:, None], members] = counts
    return intersections


def _close_pairs(packed: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the pairs of masks of equal label that touch the same word of 64 pixels."""
    touched = (packed_masks.as_words(packed) != 0).float()
    close = (touched @ touched.T > 0) & (labels[:, None] == labels)
    rows, columns = torch.nonzero(close.triu(), as_tuple=True)
    return rows, columns


def pairwise_intersections(packed: Tensor) -> Tensor:
    """Return the common pixels (N, P, P) float32 of all masks (N, P, B) of each image.

    The device is not synchronized. Counts up to 2^24 are exact.
    """
    images, count, _ = packed.shape
    intersections = torch.zeros((images, count, count), dtype=torch.float32, device=packed.device)
    for chunk in packed.split(max(_UNPACKED_BYTES // (32 * max(images * count, 1)), 1), dim=2):
        masks = packed_masks.unpack(chunk, chunk.shape[2] * 8).float()
        intersections += masks @ masks.mT
    return intersections
