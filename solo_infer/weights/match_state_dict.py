"""Which network a state dict is of, whether it fits, and if not, what does not."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solo_infer.config import ArchitectureConfig, ModelConfig, SOLOConfig, YOLACTConfig, categories
from solo_infer.config.categories import COCO, Categories
from solo_infer.config.presets import config_from_preset
from solo_infer.config.solo import BACKBONES, LITE0, solo_preset
from solo_infer.config.yolact import yolact_preset
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.models import build_network
from solo_infer.models.yolact.network import ANCHORS_PER_CELL
from solo_infer.weights.key_mapping import mmdet_name

SHOWN = 5  # keys of each kind named in a refusal

# Far beyond any real model: what keeps a hostile file from making us build one for hours.
_LIMITS = {"num_classes": 1 << 16, "num_grids": 1 << 10, "stacked_convs": 100}

_BLOCK = r"mask_head\.(?:cls|mask)_convs\w*\.\d+\.conv\."
_SOLO_HEAD = re.compile(r"mask_head\.(?:cls_convs|conv_cls|mask_convs|conv_mask_list)")
_YOLACT_HEAD = re.compile(r"bbox_head\.conv_(?:cls|coeff)\.|mask_head\.protonet\.")
_SAFE_NAME = re.compile(r"[\w.]{1,200}", re.ASCII)
_COUNTER = ".num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def infer_config(
    state_dict: Mapping[str, Tensor],
    names: tuple[str, ...] | None = None,
    path: Path | str = "the file",
    file_names: Mapping[str, str] | None = None,
) -> ModelConfig:
    """Tell head, depth, widths, grids, classes and variant from the tensors; the rest is the preset's.

    Each number is what most of the tensors that show it say, so that ``fit`` can name the odd ones.

    Args:
        state_dict: Tensors by our names.
        names: Class names, if the file has them; another number of them than of classes is ignored.
        path: For messages.
        file_names: For messages, {our name: name in the file}.

    Raises:
        CheckpointError: They are of no SOLO or YOLACT network.
    """
    infer = _infer_yolact if any(_YOLACT_HEAD.match(name) for name in state_dict) else _infer_solo
    base, architecture = infer(state_dict, path, file_names or {})
    _check_limits(architecture, path)
    labels = categories.unnamed(architecture.num_classes)
    return with_names(replace(base, architecture=architecture, categories=labels), names)


def _infer_solo(
    state_dict: Mapping[str, Tensor], path: Path | str, file_names: Mapping[str, str]
) -> tuple[ModelConfig, SOLOConfig]:
    """Return the preset that comes nearest, and the architecture that the tensors show."""
    base = config_from_preset(solo_preset(_infer_head(state_dict), _infer_backbone(state_dict)))
    assert isinstance(base.architecture, SOLOConfig)
    is_solo = any(_SOLO_HEAD.match(name) for name in state_dict)
    if not is_solo or not any(name.startswith("backbone.") for name in state_dict):
        _, problems = _compare(state_dict, base.architecture, file_names)
        raise CheckpointError(
            f"{path} fits no known model: expected the tensors of SOLO, Decoupled SOLO or Decoupled Light "
            f"SOLO on {', '.join(BACKBONES)}, or of YOLACT. Beside {_describe(base.architecture)}: "
            f"{problems}."
        )
    try:
        return base, _infer_sizes(state_dict, base.architecture)
    except ConfigError as error:
        raise CheckpointError(f"{path} fits no known model: {error}") from error


def with_names(config: ModelConfig, names: tuple[str, ...] | None) -> ModelConfig:
    """Return the configuration with a file's class names, if these are as many as its classes.

    A known set of the same names, the configuration's own or COCO's, brings its category ids with it.
    """
    if names is None or len(names) != config.architecture.num_classes:
        return config
    # mmdet 1.x, and so the authors' files, wrote COCO's names with underscores.
    spaced = tuple(name.replace("_", " ") for name in names)
    for known in (config.categories, COCO):
        if known.names in (names, spaced):
            return replace(config, categories=known)
    return replace(config, categories=Categories(names))


def _infer_head(state_dict: Mapping[str, Tensor]) -> str:
    parts = Counter(name.split(".")[1] for name in state_dict if name.startswith("mask_head."))
    if parts["conv_mask_list"] >= parts["conv_mask_list_x"] + parts["conv_mask_list_y"]:
        return "solo"
    separate = parts["mask_convs_x"] + parts["mask_convs_y"]
    return "decoupled" if separate > parts["mask_convs"] else "decoupled_light"


def _infer_backbone(state_dict: Mapping[str, Tensor]) -> str:
    parts = Counter(name.split(".")[1] for name in state_dict if name.startswith("backbone."))
    if parts["stages"] > sum(parts[f"layer{stage}"] for stage in (1, 2, 3, 4)):
        return LITE0
    blocks = {found[1] for name in state_dict if (found := re.match(r"backbone\.layer3\.(\d+)\.", name))}
    return "resnet101" if len(blocks) > 14 else "resnet50"  # which have 23 and 6


def _infer_yolact(
    state_dict: Mapping[str, Tensor], path: Path | str, file_names: Mapping[str, str]
) -> tuple[ModelConfig, YOLACTConfig]:
    """As ``_infer_solo``; the size of the input shows in no tensor: 550 pixels."""
    width = max(_length(state_dict, r"neck\..+", 256), 1)
    extra = state_dict.get("neck.layer_blocks.3.0.weight")
    from_p5 = extra is not None and extra.ndim == 4 and extra.shape[1] == width
    base = config_from_preset(yolact_preset("original" if from_p5 else "mmdet", _infer_backbone(state_dict)))
    assert isinstance(base.architecture, YOLACTConfig)
    rows = _length(state_dict, r"bbox_head\.conv_cls\.\w+", 81 * ANCHORS_PER_CELL)
    coefficients = _length(state_dict, r"bbox_head\.conv_coeff\.\w+", 32 * ANCHORS_PER_CELL)
    return base, replace(
        base.architecture,
        num_classes=max(rows // ANCHORS_PER_CELL - 1, 1),
        num_protos=max(coefficients // ANCHORS_PER_CELL, 1),
        pyramid_channels=width,
    )


def _length(state_dict: Mapping[str, Tensor], pattern: str, default: int) -> int:
    """Return the length of most tensors whose whole name matches a pattern."""
    shown_by = [tensor for name, tensor in state_dict.items() if re.fullmatch(pattern, name)]
    return _commonest([len(tensor) for tensor in shown_by if tensor.ndim], default)


def _infer_sizes(state_dict: Mapping[str, Tensor], base: SOLOConfig) -> SOLOConfig:
    def size(pattern: str, default: int) -> int:
        return _length(state_dict, pattern, default)

    grids = []
    for level, usual in enumerate(base.num_grids):
        rows = usual * usual if base.head == "solo" else usual
        rows = size(rf"mask_head\.conv_mask_list(?:_[xy])?\.{level}\.\w+", rows)
        grids.append(round(rows**0.5) if base.head == "solo" else rows)
    return replace(
        base,
        num_classes=size(r"mask_head\.conv_cls\.\w+", base.num_classes),
        num_grids=tuple(grids),
        stacked_convs=_infer_depth(state_dict, base.stacked_convs),
        pyramid_channels=size(r"neck\..+", base.pyramid_channels),
        head_channels=size(r"mask_head\.\w+\.\d+\.gn\.\w+", base.head_channels),
        **_infer_variant(state_dict),
    )


def _infer_variant(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tell what a network has beyond the published ones; of its blocks, what most of them have."""

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in state_dict)

    def most_blocks_have(name: str) -> bool:
        return 2 * count(_BLOCK + name) > count(_BLOCK + "weight")

    stages = [
        stage
        for stage in (1, 2, 3, 4)
        if 2 * count(rf"backbone\.layer{stage}\.\d+\.conv2\.conv_offset\.weight")
        > count(rf"backbone\.layer{stage}\.\d+\.conv2\.weight")
    ]
    extra = count(r"neck\.layer_blocks\.4\.0\.\w+") > 0
    return {
        "head_bias": most_blocks_have("bias"),
        "extra_level": "conv" if extra else "max_pool",
        "deformable_head": count(_BLOCK + r"conv_offset\.\w+") > 0,
        "deformable_stages": tuple(stages),
    }


def _infer_depth(state_dict: Mapping[str, Tensor], usual: int) -> int:
    """Return how many convolutions most branches of the head have."""
    blocks = defaultdict(set)
    for name in state_dict:
        if found := re.fullmatch(r"mask_head\.(\w+_convs\w*)\.(\d+)(\.(?:conv|gn)\.\w+)", name):
            blocks[found[1], found[3]].add(found[2])
    return _commonest([len(indices) for indices in blocks.values()], usual)


def _commonest(numbers: Iterable[int], default: int) -> int:
    ranked = Counter(numbers).most_common(1)
    return ranked[0][0] if ranked else default


def fit(
    state_dict: Mapping[str, Tensor],
    architecture: ArchitectureConfig,
    path: Path | str,
    file_names: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Return exactly the tensors of a network, in its order and dtypes, independent of each other.

    Args:
        state_dict: Tensors by our names.
        architecture: Of the network.
        path: For messages.
        file_names: For messages, {our name: name in the file}.

    Raises:
        CheckpointError: One is missing, left over, or of another shape or kind.
    """
    _check_limits(architecture, path)
    matching, problems = _compare(state_dict, architecture, file_names or {})
    if problems:
        raise CheckpointError(f"{path} does not fit {_describe(architecture)}: {problems}.")
    return unshare_storage(matching)


def _check_limits(architecture: ArchitectureConfig, path: Path | str) -> None:
    for name, limit in _LIMITS.items():
        value = getattr(architecture, name, 0)  # YOLACT has no grids
        if (max(value) if isinstance(value, tuple) else value) > limit:
            raise CheckpointError(f"{path} is of a model with {name}={value}: at most {limit} is supported.")


def _compare(
    state_dict: Mapping[str, Tensor], architecture: ArchitectureConfig, file_names: Mapping[str, str]
) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a network, in its dtypes, and what is wrong ("" for nothing)."""
    expected = _slots(architecture)
    foreign = any(ours != theirs for ours, theirs in file_names.items())

    def shown(name: str) -> str:
        return quoted(file_names.get(name, mmdet_name(name) if foreign else name))

    # Later writers added this counter, and inference does not read it.
    counters = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith(_COUNTER)}
    found = {**counters, **state_dict}
    missing = [
        f"{shown(name)} {tuple(slot.shape)} is missing"
        for name, slot in expected.items()
        if name not in found
    ]
    unknown = [
        f"{shown(name)} {tuple(tensor.shape)} is unknown"
        for name, tensor in found.items()
        if name not in expected
    ]
    wrong = [
        f"{shown(name)} is {problem}"
        for name, slot in expected.items()
        if name in found and (problem := _misfit(found[name], slot))
    ]
    problems = "; ".join(_first(kind) for kind in (wrong, unknown, missing) if kind)
    if problems:
        return {}, problems
    # Only now: a tensor of a wrong shape could be one number that pretends to be a terabyte.
    return {name: found[name].to(slot.dtype) for name, slot in expected.items()}, ""


def _slots(architecture: ArchitectureConfig) -> dict[str, Tensor]:
    """Return the tensors of a network without data."""
    try:
        return build_network(architecture, device="meta").state_dict()
    except (RuntimeError, TypeError, ValueError) as error:  # sizes that PyTorch cannot count
        raise CheckpointError(f"No network can be built with {architecture}: {error}") from error


def _misfit(tensor: Tensor, slot: Tensor) -> str:
    if tensor.shape != slot.shape:
        return f"{tuple(tensor.shape)} instead of {tuple(slot.shape)}"
    if tensor.dtype not in (_FLOATS if slot.is_floating_point() else _INTEGERS):
        return f"{tensor.dtype} instead of {slot.dtype}"
    return ""


def _first(problems: list[str]) -> str:
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "; ".join(problems[:SHOWN] + more)


def _describe(architecture: ArchitectureConfig) -> str:
    return f"{architecture.name} on {architecture.backbone} with {architecture.num_classes} classes"


def quoted(name: str) -> str:
    """Return a name from a file for a message: short, on one line, without control characters."""
    return name if _SAFE_NAME.fullmatch(name) else repr(name[:200])


def unshare_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors of which no two share memory, copying only where they do."""
    taken: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result
