"""Checkpoints of SOLO, Decoupled SOLO and Decoupled Light SOLO.

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
from solo_infer.config.solo import BACKBONES, LITE0, BackboneName, HeadName, SOLOConfig, solo_preset
from solo_infer.weights.families.tensor_sizes import (
    count_names,
    count_second_parts,
    first_dimension,
    infer_resnet,
    most_common,
)
from solo_infer.weights.key_mapping import MMDET_PYRAMID, KeyMap, Rules

MODELS = f"SOLO, Decoupled SOLO or Decoupled Light SOLO on {', '.join(BACKBONES)}"
LIMITS = {"num_classes": 1 << 16, "num_grids": 1 << 10, "stacked_convs": 100}

_AUTHORS_HEAD = re.compile(r"bbox_head\.(?:ins_convs|cate_convs|d?solo_)")
_HEAD = re.compile(r"mask_head\.(?:cls_convs|conv_cls|mask_convs|conv_mask_list)")
_BLOCK = r"mask_head\.(?:cls|mask)_convs\w*\.\d+\.conv\."

_AUTHORS: Rules = (
    (re.compile(r"^bbox_head\."), "mask_head."),
    (re.compile(r"^mask_head\.ins_convs(?=[._])"), "mask_head.mask_convs"),
    (re.compile(r"^mask_head\.cate_convs\."), "mask_head.cls_convs."),
    (re.compile(r"^mask_head\.d?solo_ins_list(?=[._])"), "mask_head.conv_mask_list"),
    (re.compile(r"^mask_head\.d?solo_cate\."), "mask_head.conv_cls."),
    *MMDET_PYRAMID,
)


def recognizes(names: Collection[str]) -> bool:
    """Return whether a file has tensors of a SOLO head."""
    return any(_HEAD.match(name) or _AUTHORS_HEAD.match(name) for name in names)


def key_map(names: Collection[str]) -> KeyMap:
    """Return the key map of the authors' code or of mmdet."""
    return KeyMap(_AUTHORS) if any(_AUTHORS_HEAD.match(name) for name in names) else KeyMap()


def infer_preset(state_dict: Mapping[str, Tensor]) -> Preset:
    """Infer head, backbone, depth, sizes and variants from tensors; see ``CheckpointFamily``."""
    preset = solo_preset(_infer_head(state_dict), _infer_backbone(state_dict))
    published = cast(SOLOConfig, preset.architecture)

    def size(pattern: str, default: int) -> int:
        return first_dimension(state_dict, pattern, default)

    architecture = replace(
        published,
        num_classes=size(r"mask_head\.conv_cls\.\w+", published.num_classes),
        num_grids=_infer_grids(state_dict, published),
        stacked_convs=_infer_depth(state_dict, published.stacked_convs),
        pyramid_channels=size(r"neck\..+", published.pyramid_channels),
        head_channels=size(r"mask_head\.\w+\.\d+\.gn\.\w+", published.head_channels),
        **_infer_variant(state_dict),
    )
    return replace(preset, architecture=architecture)


def _infer_head(state_dict: Mapping[str, Tensor]) -> HeadName:
    counts = count_second_parts(state_dict, "mask_head")
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


def _infer_variant(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the options that the published networks do not use; most blocks decide."""
    stages = [
        stage
        for stage in (1, 2, 3, 4)
        if 2 * count_names(state_dict, rf"backbone\.layer{stage}\.\d+\.conv2\.conv_offset\.weight")
        > count_names(state_dict, rf"backbone\.layer{stage}\.\d+\.conv2\.weight")
    ]
    biases, weights = (count_names(state_dict, _BLOCK + name) for name in ("bias", "weight"))
    has_extra_conv = count_names(state_dict, r"neck\.layer_blocks\.4\.0\.\w+") > 0
    return {
        "head_bias": 2 * biases > weights,
        "extra_level": "conv" if has_extra_conv else "max_pool",
        "deformable_head": count_names(state_dict, _BLOCK + r"conv_offset\.\w+") > 0,
        "deformable_stages": tuple(stages),
    }
