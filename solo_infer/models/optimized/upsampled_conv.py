"""3x3 convolution of a bilinearly up-sampled map, without the up-sampled map.

Each of the four output pixels of an input pixel is a linear function of the 3 x 3 input pixels around it, so
that one convolution of the small map with four times the outputs gives the same. The border, where the
up-sampling repeats pixels and the convolution pads with zeros, is computed step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.models.layers.resize import upsample
from solo_infer.models.layers.upsampled_conv import UpsampledConv2d
from solo_infer.models.optimized.winograd_conv import can_use_winograd
from solo_infer.ops import winograd

# Output channels from which Winograd's method is faster than oneDNN's direct convolution of 256 channels.
_MIN_OUTPUTS = 64
# The three taps on an up-sampled line, whose pixels are (3 a + b) / 4 and (a + 3 b) / 4 of neighbors a and b,
# as three taps on the line itself, for its even and its odd pixels.
_EVEN = ((0.75, 0.25, 0.0), (0.25, 0.75, 0.75), (0.0, 0.0, 0.25))
_ODD = ((0.25, 0.0, 0.0), (0.75, 0.75, 0.25), (0.0, 0.25, 0.75))


class FastUpsampledConv2d(UpsampledConv2d):
    """A 3x3 ``UpsampledConv2d`` that computes selected channels without the up-sampled map.

    Args:
        conv: Convolution whose weights are shared.
    """

    def __init__(self, conv: UpsampledConv2d) -> None:
        torch.nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)

    def select(self, x: Tensor, channels: Tensor) -> Tensor:
        """Compute some of the output channels (N, k, 2h, 2w), float32; see ``UpsampledConv2d.select``."""
        return upsampled_convolution(x, self.weight[channels], self.get_parameter("bias")[channels])


def upsampled_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the convolution, with a padding of 1, of a map at twice its size.

    Args:
        x: (N, C, h, w) of any float dtype.
        weight: (K, C, 3, 3).
        bias: (K,).

    Returns:
        (N, K, 2h, 2w) float32.
    """
    if min(x.shape[-2:]) < 4 or torch.is_grad_enabled():
        return F.conv2d(upsample(x), weight, bias, padding=1).float()
    out = _interior(x, weight, bias)
    for axis in (2, 3):
        end = x.shape[axis] - 2
        for start, border in ((0, 0), (end, 2)):
            strip = F.conv2d(upsample(x.narrow(axis, start, 2)), weight, bias, padding=1)
            out.narrow(axis, 2 * start + border, 2).copy_(strip.narrow(axis, border, 2))
    return out


def _interior(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the convolution of the up-sampled map; only the outermost two lines are wrong."""
    taps = torch.tensor((_EVEN, _ODD), dtype=torch.float32, device=x.device)
    phases_weight = torch.einsum("pmi,qnj,kcij->kpqcmn", taps, taps, weight.float()).flatten(0, 2)
    phases_bias = bias.float().repeat_interleave(4)
    if can_use_winograd(x) and len(phases_weight) >= _MIN_OUTPUTS:
        (out,) = winograd.convolve([x], winograd.transform_weight(phases_weight), phases_bias)
    else:
        out = F.conv2d(x, phases_weight.to(x.dtype), phases_bias.to(x.dtype), padding=1)
    count, (height, width) = len(x), x.shape[-2:]
    # Contiguous before it is interleaved: a transposition is faster than steps across channels.
    phases = out.contiguous().float().view(count, len(weight), 2, 2, height, width)
    return phases.permute(0, 1, 4, 2, 5, 3).reshape(count, len(weight), 2 * height, 2 * width)
