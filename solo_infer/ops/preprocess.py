"""RGB images to a padded, normalized network input, as mmdet's test pipeline computes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops.cv2_resize import resize_bilinear_uint8
from solo_infer.ops.dispatch import triton_kernel
from solo_infer.runtime.device import fast_paths

Size = tuple[int, int]  # (height, width) in pixels


def _supports(
    images: Sequence[Tensor],
    sizes: Sequence[Size],
    padded: Size,
    mean: Sequence[float],
    std: Sequence[float],
    round_to_uint8: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> bool:
    """Return whether the kernel implements these arguments: it resizes in integers only."""
    return round_to_uint8 and len(images) > 0


@triton_kernel("preprocessing", "solo_infer.ops.triton.preprocess:preprocess", supports=_supports)
def preprocess(
    images: Sequence[Tensor],
    sizes: Sequence[Size],
    padded: Size,
    mean: Sequence[float],
    std: Sequence[float],
    round_to_uint8: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Resize, normalize and pad images. The Triton kernel gives the same bits.

    Args:
        images: (H, W, 3) uint8 RGB, each of any size, in host memory.
        sizes: (height, width) to which each image is resized.
        padded: (height, width) of the network input; images fill its top left.
        mean: Mean of each channel, in 0..255.
        std: Standard deviation of each channel, in 0..255.
        round_to_uint8: Whether to resize as OpenCV does uint8 images. If False, images are resized in
            float32 and not rounded.
        device: Device of the result and of the computation.
        dtype: Data type of the result.

    Returns:
        (N, 3, *padded) in channels_last format; 0 in the padding.
    """
    inputs = []
    for image, size in zip(images, sizes, strict=True):
        planes = upload(image, device).permute(2, 0, 1)
        if round_to_uint8:
            planes = resize_bilinear_uint8(planes, *size)
        else:
            planes = F.interpolate(planes[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        inputs.append(normalize_and_pad(planes, padded, mean, std))
    return torch.stack(inputs).to(dtype).contiguous(memory_format=torch.channels_last)


def normalize_and_pad(planes: Tensor, padded: Size, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalize an image and pad it with zeros at the right and bottom.

    Args:
        planes: (3, h, w) in 0..255, of any data type.
        padded: (height, width) of the result.
        mean: Mean of each channel.
        std: Standard deviation of each channel.

    Returns:
        (3, *padded) float32.
    """
    mean_column, std_column = (
        torch.tensor(values, dtype=torch.float32, device=planes.device)[:, None, None]
        for values in (mean, std)
    )
    result = torch.zeros((3, *padded), dtype=torch.float32, device=planes.device)
    height, width = planes.shape[1:]
    result[:, :height, :width] = (planes.float() - mean_column).div_(std_column)
    return result


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device: from host memory to an NVIDIA card via pinned memory, without waiting."""
    if tensor.device.type != "cpu" or not fast_paths(device).graphs:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
