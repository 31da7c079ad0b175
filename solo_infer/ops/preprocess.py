"""RGB images to a padded, normalized network input, as mmdet's test pipeline computes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops.cv2_resize import resize_bilinear_uint8
from solo_infer.ops.dispatch import triton_kernel
from solo_infer.ops.native import preprocess as native
from solo_infer.ops.native.library import kernel_library
from solo_infer.runtime import kept_memory
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
    """Resize, normalize and pad images. The Triton kernel and the compiled one give the same bits.

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
    library = kernel_library() if device.type == "cpu" and round_to_uint8 else None
    if library is None:
        inputs = torch.zeros((len(images), *padded, 3), dtype=torch.float32, device=device)
    else:
        inputs = kept_memory.empty((len(images), *padded, 3)).zero_()
    for image, size, output in zip(images, sizes, inputs, strict=True):
        if library is not None:
            native.resize_and_normalize(library, image, output[: size[0], : size[1]], mean, std)
            continue
        planes = upload(image, device).permute(2, 0, 1)
        if round_to_uint8:
            planes = resize_bilinear_uint8(planes, *size)
        else:
            planes = F.interpolate(planes[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        output[: size[0], : size[1]] = normalize(planes.permute(1, 2, 0), mean, std)
    return inputs.to(dtype).permute(0, 3, 1, 2)


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return an image (H, W, 3) in 0..255, of any data type, minus the mean and divided by the deviation.

    Args:
        pixels: The image.
        mean: Mean of each channel.
        std: Standard deviation of each channel.

    Returns:
        (H, W, 3) float32.
    """
    width = pixels.shape[1]
    # One row of numbers for each row of pixels: an axis of three channels is too short to vectorize.
    mean_row, std_row = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).repeat(width)
        for values in (mean, std)
    )
    return (pixels.flatten(1).float() - mean_row).div_(std_row).unflatten(1, (width, 3))


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device: from host memory to an NVIDIA card via pinned memory, without waiting."""
    if tensor.device.type != "cpu" or not fast_paths(device).graphs:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
