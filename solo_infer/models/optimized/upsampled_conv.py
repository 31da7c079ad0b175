"""A 3x3 convolution of a bilinearly doubled map, without the doubled map.

Each of the four pixels that a pixel becomes is a linear function of its 3 x 3 neighbors before the doubling,
so that a convolution of the small map, with four outputs in place of one, gives the same; only at the rim,
where the doubling repeats pixels and the convolution sees zeros, it has to be done step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.models.optimized.winograd_conv import goes_winograds_way
from solo_infer.ops import winograd

# Outputs from which Winograd's way was faster than oneDNN's direct one, on 256 channels.
_MANY_OUTPUTS = 64
# Three taps on a doubled line, which has (3 a + b) / 4 and (a + 3 b) / 4 of neighbors a and b, as three
# taps on the line itself, for its even and its odd pixels.
_EVEN = ((0.75, 0.25, 0.0), (0.25, 0.75, 0.75), (0.0, 0.0, 0.25))
_ODD = ((0.25, 0.0, 0.0), (0.75, 0.75, 0.25), (0.0, 0.25, 0.75))


def upsample(maps: Tensor) -> Tensor:
    """Double the size of maps (N, C, H, W) bilinearly."""
    return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


def upsampled_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the convolution, with a padding of 1, of a map at twice its size.

    Args:
        x: (N, C, h, w), any float dtype.
        weight: (K, C, 3, 3).
        bias: (K,).

    Returns:
        (N, K, 2h, 2w) float32.
    """
    if min(x.shape[-2:]) < 4 or torch.is_grad_enabled():
        return F.conv2d(upsample(x), weight, bias, padding=1).float()
    out = _inside(x, weight, bias)
    for axis in (2, 3):
        end = x.shape[axis] - 2
        for start, rim in ((0, 0), (end, 2)):
            strip = F.conv2d(upsample(x.narrow(axis, start, 2)), weight, bias, padding=1)
            out.narrow(axis, 2 * start + rim, 2).copy_(strip.narrow(axis, rim, 2))
    return out


def _inside(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the convolution of the doubled map, right everywhere but in the outermost two lines."""
    taps = torch.tensor((_EVEN, _ODD), device=x.device)
    small = torch.einsum("pmi,qnj,kcij->kpqcmn", taps, taps, weight.float()).flatten(0, 2)
    biases = bias.float().repeat_interleave(4)
    if goes_winograds_way(x) and len(small) >= _MANY_OUTPUTS:
        (out,) = winograd.convolve([x], winograd.transform_weight(small), biases)
    else:
        out = F.conv2d(x, small.to(x.dtype), biases.to(x.dtype), padding=1)
    count, (height, width) = len(x), x.shape[-2:]
    # In one piece before it is spread: a transposition is faster than steps across channels.
    phases = out.contiguous().float().view(count, len(weight), 2, 2, height, width)
    return phases.permute(0, 1, 4, 2, 5, 3).reshape(count, len(weight), 2 * height, 2 * width)
