"""Translation of the tensor names of other writers into the names of this library.

Our names are those of mmdet 3.x, except in the feature pyramid, whose names are torchvision's. What is
specific to one family of models is in ``solo_infer.weights.families``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Rules = tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]
Transform = Callable[[Tensor], Tensor]

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile

MMDET_PYRAMID: Rules = (
    (re.compile(r"^neck\.lateral_convs\.(\d+)\.conv\."), r"neck.inner_blocks.\1.0."),
    (re.compile(r"^neck\.fpn_convs\.(\d+)\.conv\."), r"neck.layer_blocks.\1.0."),
)
# Early mmdet named the offsets of a deformable convolution after it: conv2_offset, not conv2.conv_offset.
OLD_OFFSETS: Rules = (
    (re.compile(r"^(backbone\..*\.conv\d)_offset\."), r"\1.conv_offset."),
    (re.compile(r"^(mask_head\..*)(?<!\.conv)\.conv_offset\."), r"\1.conv.conv_offset."),
)
_TO_MMDET_PYRAMID: Rules = (
    (re.compile(r"^neck\.inner_blocks\.(\d+)\.0\."), r"neck.lateral_convs.\1.conv."),
    (re.compile(r"^neck\.layer_blocks\.(\d+)\.0\."), r"neck.fpn_convs.\1.conv."),
)


@dataclass(frozen=True)
class KeyMap:
    """Translation of the tensors of one writer of checkpoints.

    Attributes:
        rules: Patterns and their replacements, applied to each name in this order.
        ignored: Pattern of the names that no network reads; their tensors are left out.
        transforms: {start of our name: function of the tensor}, for values in another order.
    """

    rules: Rules = MMDET_PYRAMID
    ignored: re.Pattern[str] | None = None
    transforms: Mapping[str, Transform] = field(default_factory=dict)

    def rename(self, name: str) -> str | None:
        """Return our name of a tensor, or None if the tensor is ignored."""
        if self.ignored is not None and self.ignored.match(name):
            return None
        return apply_rules(name, self.rules)

    def transform(self, name: str, tensor: Tensor) -> Tensor:
        """Return the values of a tensor in our order.

        Args:
            name: Our name of the tensor.
            tensor: Tensor of the file.
        """
        for start, function in self.transforms.items():
            if name.startswith(start):
                return function(tensor)
        return tensor


def strip_wrappers(name: str) -> str:
    """Return a name without the prefixes of modules that wrap a network."""
    return _WRAPPERS.sub("", name)


def mmdet_name(name: str) -> str:
    """Return the name that mmdet 3.x gives to one of our tensors."""
    return apply_rules(name, _TO_MMDET_PYRAMID)


def apply_rules(name: str, rules: Rules) -> str:
    """Apply patterns and their replacements to a name, in order."""
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
