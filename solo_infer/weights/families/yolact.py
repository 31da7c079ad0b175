"""Checkpoints of YOLACT.

Known writers: mmdet 2.x and 3.x, the original implementation and this library.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor

from solo_infer.config.architecture import Preset
from solo_infer.config.yolact import YOLACT_BACKBONES, YOLACTConfig, yolact_preset
from solo_infer.models.yolact.head import ANCHORS_PER_CELL
from solo_infer.weights.families.tensor_sizes import first_dimension, infer_resnet
from solo_infer.weights.key_mapping import MMDET_PYRAMID, KeyMap, Rules

MODELS = f"YOLACT on {', '.join(YOLACT_BACKBONES)}"
LIMITS = {"num_classes": 1 << 16}

_HEAD = re.compile(r"bbox_head\.conv_(?:cls|coeff)\.|mask_head\.protonet\.")
_ORIGINAL_HEAD = re.compile(r"prediction_layers\.|proto_net\.|fpn\.lat_layers\.")

# mmdet 2.x names the semantic branch segm_head.
_MMDET: Rules = ((re.compile(r"^segm_head\.(?=segm_conv\.)"), "mask_head.segm_branch."), *MMDET_PYRAMID)

# The original implementation counts the levels of the pyramid from the coarsest to the finest.
_ORIGINAL: Rules = (
    (re.compile(r"^backbone\.layers\.(\d)\."), lambda match: f"backbone.layer{int(match[1]) + 1}."),
    (re.compile(r"^fpn\.lat_layers\.([012])\."), lambda match: f"neck.inner_blocks.{2 - int(match[1])}.0."),
    (re.compile(r"^fpn\.pred_layers\.([012])\."), lambda match: f"neck.layer_blocks.{2 - int(match[1])}.0."),
    (
        re.compile(r"^fpn\.downsample_layers\.([01])\."),
        lambda match: f"neck.layer_blocks.{3 + int(match[1])}.0.",
    ),
    (re.compile(r"^prediction_layers\.0\.upfeature\.0\."), "bbox_head.head_convs.0.conv."),
    (re.compile(r"^prediction_layers\.0\.conf_layer\."), "bbox_head.conv_cls."),
    (re.compile(r"^prediction_layers\.0\.bbox_layer\."), "bbox_head.conv_reg."),
    (re.compile(r"^prediction_layers\.0\.mask_layer\."), "bbox_head.conv_coeff."),
    (re.compile(r"^proto_net\."), "mask_head.protonet."),
    (re.compile(r"^semantic_seg_conv\."), "mask_head.segm_branch.segm_conv."),
)
# Its first files hold the backbone twice, and pyramid layers that were removed later.
_ORIGINAL_IGNORED = re.compile(r"backbone\.layer\d\.|fpn\.downsample_layers\.[2-9]\.")


def recognizes(names: Collection[str]) -> bool:
    """Return whether a file has tensors of a YOLACT head."""
    return any(_HEAD.match(name) or _ORIGINAL_HEAD.match(name) for name in names)


def key_map(names: Collection[str]) -> KeyMap:
    """Return the key map of the original implementation or of mmdet."""
    if any(_ORIGINAL_HEAD.match(name) for name in names):
        return KeyMap(_ORIGINAL, _ORIGINAL_IGNORED, {"bbox_head.conv_cls.": background_last})
    return KeyMap(_MMDET)


def background_last(tensor: Tensor) -> Tensor:
    """Move the background from the first to the last class in the weight or bias of the class layer.

    A tensor whose length is not a multiple of the anchors per cell is returned unchanged; it fits no network.

    Args:
        tensor: (anchors * (1 + classes), ...) of any dtype.
    """
    if tensor.ndim == 0 or len(tensor) % ANCHORS_PER_CELL:
        return tensor
    return tensor.unflatten(0, (ANCHORS_PER_CELL, -1)).roll(-1, dims=1).flatten(0, 1)


def infer_preset(state_dict: Mapping[str, Tensor]) -> Preset:
    """Infer variant, backbone and sizes from tensors; see ``CheckpointFamily``.

    No tensor shows the size of the network input. It is taken to be 550 pixels.
    """
    width = max(first_dimension(state_dict, r"neck\..+", 256), 1)
    p6_weight = state_dict.get("neck.layer_blocks.3.0.weight")
    p6_is_from_p5 = p6_weight is not None and p6_weight.ndim == 4 and p6_weight.shape[1] == width
    preset = yolact_preset("original" if p6_is_from_p5 else "mmdet", infer_resnet(state_dict))
    published = cast(YOLACTConfig, preset.architecture)
    scores = (published.num_classes + 1) * ANCHORS_PER_CELL
    scores = first_dimension(state_dict, r"bbox_head\.conv_cls\.\w+", scores)
    coefficients = published.num_protos * ANCHORS_PER_CELL
    coefficients = first_dimension(state_dict, r"bbox_head\.conv_coeff\.\w+", coefficients)
    architecture = replace(
        published,
        num_classes=max(scores // ANCHORS_PER_CELL - 1, 1),
        num_protos=max(coefficients // ANCHORS_PER_CELL, 1),
        pyramid_channels=width,
    )
    return replace(preset, architecture=architecture)
