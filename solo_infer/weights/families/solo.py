"""Checkpoints of SOLO, Decoupled SOLO, Decoupled Light SOLO and SOLOv2.

Known writers: mmdet 2.x and 3.x, the authors' code (mmdet 1.x) and this library.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from solo_infer.config.architecture import Preset
from solo_infer.config.solo import (
    BACKBONES,
    LITE0,
    BackboneName,
    DeformableHead,
    HeadName,
    SOLOConfig,
    solo_preset,
    solov2_light_deformable_preset,
    solov2_preset,
)
from solo_infer.weights.families.tensor_sizes import (
    count_names,
    count_second_parts,
    first_dimension,
    infer_resnet,
    most_common,
)
from solo_infer.weights.key_mapping import MMDET_PYRAMID, OLD_OFFSETS, KeyMap, Rules

MODELS = f"SOLO, Decoupled SOLO, Decoupled Light SOLO or SOLOv2 on {', '.join(BACKBONES)}"
LIMITS = {"num_classes": 1 << 16, "num_grids": 1 << 10, "stacked_convs": 100}

_AUTHORS_HEAD = re.compile(r"bbox_head\.(?:ins_convs|cate_convs|kernel_convs|d?solo_)|mask_feat_head\.")
_HEAD = re.compile(
    r"mask_head\.(?:cls_convs|conv_cls|mask_convs|conv_mask_list|kernel_convs|conv_kernel|mask_feature_head)"
)
_BLOCK = r"mask_head\.(?:cls|mask|kernel)_convs\w*\.\d+\.conv\."
_FEATURE_CONV = r"mask_head\.mask_feature_head\..*\.conv\."
_OFFSET = r"conv_offset\.weight"
_MASK_CHANNELS = r"mask_head\.(?:conv_kernel|mask_feature_head\.conv_pred\.(?:conv|gn))\.\w+"
# SOLOv2's branches have 512 channels, those of its light models 256.
_MAX_LIGHT_CHANNELS = 384

_MMDET: Rules = (*MMDET_PYRAMID, *OLD_OFFSETS)
_AUTHORS: Rules = (
    (re.compile(r"^bbox_head\."), "mask_head."),
    (re.compile(r"^mask_head\.ins_convs(?=[._])"), "mask_head.mask_convs"),
    (re.compile(r"^mask_head\.cate_convs\."), "mask_head.cls_convs."),
    (re.compile(r"^mask_head\.d?solo_ins_list(?=[._])"), "mask_head.conv_mask_list"),
    (re.compile(r"^mask_head\.d?solo_cate\."), "mask_head.conv_cls."),
    (re.compile(r"^mask_head\.solo_kernel\."), "mask_head.conv_kernel."),
    (re.compile(r"^mask_feat_head\."), "mask_head.mask_feature_head."),
    (re.compile(r"^mask_head\.mask_feature_head\.conv_pred\.0\."), "mask_head.mask_feature_head.conv_pred."),
    *_MMDET,
)


def recognizes(names: Collection[str]) -> bool:
    """Return whether a file has tensors of a SOLO head."""
    return any(_HEAD.match(name) or _AUTHORS_HEAD.match(name) for name in names)


def key_map(names: Collection[str]) -> KeyMap:
    """Return the key map of the authors' code or of mmdet."""
    return KeyMap(_AUTHORS if any(_AUTHORS_HEAD.match(name) for name in names) else _MMDET)


def infer_preset(state_dict: Mapping[str, Tensor]) -> Preset:
    """Infer head, backbone, depth, sizes and variants from tensors; see ``CheckpointFamily``."""
    preset = _most_similar_preset(state_dict)
    published = cast(SOLOConfig, preset.architecture)

    def size(pattern: str, default: int) -> int:
        return first_dimension(state_dict, pattern, default)

    architecture = replace(
        published,
        num_classes=size(r"mask_head\.conv_cls\.\w+", published.num_classes),
        num_grids=_infer_grids(state_dict, published),
        stacked_convs=_infer_depth(state_dict, published.stacked_convs),
        pyramid_channels=size(r"neck\..+", published.pyramid_channels),
        head_channels=_infer_head_channels(state_dict, published.head_channels),
        mask_channels=size(_MASK_CHANNELS, published.mask_channels),
        **_infer_variant(state_dict),
    )
    return replace(preset, architecture=architecture)


def _most_similar_preset(state_dict: Mapping[str, Tensor]) -> Preset:
    """Return the published settings that are most similar, on the backbone of the tensors."""
    head, backbone = _infer_head(state_dict), _infer_backbone(state_dict)
    if head != "solov2":
        return solo_preset(head, backbone)
    light = _infer_head_channels(state_dict, 512) <= _MAX_LIGHT_CHANNELS
    if not light or not count_names(state_dict, rf".*\.{_OFFSET}"):
        return solov2_preset(backbone, light=light)
    preset = solov2_light_deformable_preset(_infer_modulated(state_dict))
    architecture = cast(SOLOConfig, preset.architecture)
    return replace(preset, architecture=replace(architecture, backbone=backbone, deformable_stages=()))


def _infer_head(state_dict: Mapping[str, Tensor]) -> HeadName:
    counts = count_second_parts(state_dict, "mask_head")
    kernels = sum(counts[part] for part in ("kernel_convs", "conv_kernel", "mask_feature_head"))
    if kernels > sum(counts.values()) - kernels - counts["cls_convs"] - counts["conv_cls"]:
        return "solov2"
    if counts["conv_mask_list"] >= counts["conv_mask_list_x"] + counts["conv_mask_list_y"]:
        return "solo"
    separate = counts["mask_convs_x"] + counts["mask_convs_y"]
    return "decoupled" if separate > counts["mask_convs"] else "decoupled_light"


def _infer_backbone(state_dict: Mapping[str, Tensor]) -> BackboneName:
    counts = count_second_parts(state_dict, "backbone")
    if counts["stages"] > sum(counts[f"layer{stage}"] for stage in (1, 2, 3, 4)):
        return LITE0
    return infer_resnet(state_dict)


def _infer_grids(state_dict: Mapping[str, Tensor], published: SOLOConfig) -> tuple[int, ...]:
    """Infer the grids from the output channels: one per cell in SOLO, one per row or column if decoupled."""
    is_plain = published.head == "solo"
    grids = []
    for level, grid in enumerate(published.num_grids):
        pattern = rf"mask_head\.conv_mask_list(?:_[xy])?\.{level}\.\w+"
        channels = first_dimension(state_dict, pattern, grid * grid if is_plain else grid)
        grids.append(round(channels**0.5) if is_plain else channels)
    return tuple(grids)


def _infer_depth(state_dict: Mapping[str, Tensor], default: int) -> int:
    """Return the number of convolutions in most branches of the head."""
    blocks = defaultdict(set)
    for name in state_dict:
        if match := re.fullmatch(r"mask_head\.(\w+_convs\w*)\.(\d+)(\.(?:conv|gn)\.\w+)", name):
            blocks[match[1], match[3]].add(match[2])
    return most_common([len(indices) for indices in blocks.values()], default)


def _infer_head_channels(state_dict: Mapping[str, Tensor], default: int) -> int:
    return first_dimension(state_dict, r"mask_head\.\w+\.\d+\.gn\.\w+", default)


def _infer_variant(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the options that most published networks do not use; most blocks decide."""

    def is_deformable(conv: str) -> bool:
        return 2 * count_names(state_dict, conv + _OFFSET) > count_names(state_dict, conv + "weight")

    stages = [stage for stage in (1, 2, 3, 4) if is_deformable(rf"backbone\.layer{stage}\.\d+\.conv2\.")]
    biases, weights = (count_names(state_dict, _BLOCK + name) for name in ("bias", "weight"))
    has_extra_conv = count_names(state_dict, r"neck\.layer_blocks\.4\.0\.\w+") > 0
    return {
        "head_bias": 2 * biases > weights,
        "extra_level": "conv" if has_extra_conv else "max_pool",
        "deformable_head": _infer_deformable_head(state_dict),
        "deformable_stages": tuple(stages),
        "modulated": _infer_modulated(state_dict),
        "deformable_mask_features": is_deformable(_FEATURE_CONV),
    }


def _infer_deformable_head(state_dict: Mapping[str, Tensor]) -> DeformableHead:
    """Return which convolutions of each branch have offsets: about none, one or all of them."""
    offsets, weights = (count_names(state_dict, _BLOCK + name) for name in (_OFFSET, "weight"))
    depth = _infer_depth(state_dict, 1)
    if 2 * depth * offsets > (depth + 1) * weights:
        return "all"
    return "last" if 2 * depth * offsets > weights else "none"


def _infer_modulated(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the offset convolutions have channels for factors, in kernels of 3x3 or 1x1."""
    return first_dimension(state_dict, r".*\.conv_offset\.\w+", 18) in (27, 3)
