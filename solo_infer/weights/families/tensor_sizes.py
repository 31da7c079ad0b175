"""Inference of sizes from the tensors of a state dict, shared by the families."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from solo_infer.config.solo import ResNetName

_BLOCK_OF_STAGE_3 = re.compile(r"backbone\.layer3\.(\d+)\.")


def most_common(numbers: Iterable[int], default: int) -> int:
    """Return the most frequent number, or a default if there is none."""
    ranked = Counter(numbers).most_common(1)
    return ranked[0][0] if ranked else default


def first_dimension(state_dict: Mapping[str, Tensor], pattern: str, default: int) -> int:
    """Return the most frequent first dimension of the tensors whose full name matches a pattern."""
    matching = [tensor for name, tensor in state_dict.items() if re.fullmatch(pattern, name)]
    return most_common([len(tensor) for tensor in matching if tensor.ndim], default)


def count_names(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """Return the number of tensors whose full name matches a pattern."""
    return sum(re.fullmatch(pattern, name) is not None for name in state_dict)


def count_second_parts(state_dict: Mapping[str, Tensor], first: str) -> Counter[str]:
    """Count the tensors named "first.second..." by the second part of their names."""
    return Counter(name.split(".")[1] for name in state_dict if name.startswith(f"{first}."))


def infer_resnet(state_dict: Mapping[str, Tensor]) -> ResNetName:
    """Return the ResNet with the blocks of a backbone.

    It shows in the third convolution of each bottleneck block, the width of the first stage, and the number
    of blocks in the third stage: 2 or 6, with bottlenecks 6 or 23.
    """
    blocks = len({match[1] for name in state_dict if (match := _BLOCK_OF_STAGE_3.match(name))})
    second, third = (count_names(state_dict, rf"backbone\.layer\d\..*\.conv{n}\.weight") for n in (2, 3))
    if 2 * third < second:
        return "resnet34" if blocks > 4 else "resnet18"
    if first_dimension(state_dict, r"backbone\.layer1\.\d+\.conv2\.weight", 64) > 128:
        return "resnext101_64x4d"
    return "resnet101" if blocks > 14 else "resnet50"
