"""From a checkpoint file of any known layout to a configuration and a state dict that fit each other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solo_infer import categories
from solo_infer.categories import Categories
from solo_infer.config import Architecture, ModelConfig, preset
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.models import build_network
from solo_infer.models.backbones import RESNET_BLOCKS
from solo_infer.weights.keymaps import our_names
from solo_infer.weights.pickles import read_pickled

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
_SHOWN = 5  # keys named in a refusal

# Buffers that later writers added and that inference does not read.
_OPTIONAL = re.compile(r"\.num_batches_tracked$")


@dataclass(frozen=True)
class Checkpoint:
    """Weights that are known to fit a configuration.

    Attributes:
        config: Architecture, preprocessing, thresholds and categories.
        state_dict: Every tensor of ``build_network(config.architecture)``, on the CPU.
    """

    config: ModelConfig
    state_dict: dict[str, Tensor]


def read_checkpoint(path: Path, config: ModelConfig | None = None) -> Checkpoint:
    """Read a checkpoint: a file of mmdet, the authors or ourselves, or a directory of ``save_pretrained``.

    Args:
        path: A ``.pth`` / ``.pt`` / ``.safetensors`` file or a directory.
        config: What the weights must fit; read or inferred from the file if not given.

    Raises:
        CheckpointError: The file cannot be read, holds no state dict, or fits no known model; the message
            names the first keys and shapes that do not fit.
        ConfigError: The directory's ``config.json`` is wrong.
    """
    if path.is_dir():
        config, path = _read_directory(path, config)
    tensors, names = _read_file(path)
    state_dict = _in_our_names(tensors, path)
    if config is None:
        config = infer_config(state_dict, names, path)
    elif names is not None and len(names) == config.architecture.num_classes:
        config = replace(config, categories=_keep_ids(names, config.categories))
    return Checkpoint(config, fit(state_dict, config.architecture, path))


def _read_directory(folder: Path, config: ModelConfig | None) -> tuple[ModelConfig, Path]:
    weights = folder / WEIGHTS_NAME
    missing = [item.name for item in (weights, folder / CONFIG_NAME) if not item.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {' and '.join(missing)}: expected a directory written by save_pretrained, or "
            "the path of a checkpoint file."
        )
    return config or read_config(folder / CONFIG_NAME), weights


def read_config(path: Path) -> ModelConfig:
    """Read a ``config.json``.

    Raises:
        ConfigError: It cannot be read or is not what ``save_pretrained`` writes.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: not a config of ours.")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ConfigError(f"expected a JSON object, got {type(values).__name__}.")
        return ModelConfig.from_dict(values)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _read_file(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Return the tensors of a file by their names there, and its class names if it has any."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path), None
    contents = read_pickled(path)
    tensors = contents
    if isinstance(contents, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(contents.get(key), Mapping):
                tensors = contents[key]
                break
    if not isinstance(tensors, Mapping) or not any(isinstance(value, Tensor) for value in tensors.values()):
        found = list(contents)[:_SHOWN] if isinstance(contents, Mapping) else type(contents).__name__
        raise CheckpointError(f"{path} holds no state dict: expected a mapping of tensors, found {found}.")
    named = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    meta = contents.get("meta")
    return named, _class_names(meta) if isinstance(meta, Mapping) else None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no safetensors file or damaged: {error}.") from error


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names of mmdet's meta: "CLASSES" (2.x), "dataset_meta" (3.x)."""
    dataset = meta.get("dataset_meta")
    places = [meta, dataset] if isinstance(dataset, Mapping) else [meta]
    for place in places:
        for key in ("CLASSES", "classes"):
            names = place.get(key)
            if isinstance(names, str):
                return (names,)
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None


def _in_our_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, ours in our_names(tensors).items():
        if ours in renamed:
            raise CheckpointError(f"{path} holds {ours!r} twice (once as {name!r}).")
        renamed[ours] = tensors[name]
    return renamed


def _keep_ids(names: tuple[str, ...], given: Categories) -> Categories:
    return given if names == given.names else categories.named(names)


def infer_config(
    state_dict: Mapping[str, Tensor], names: tuple[str, ...] | None = None, path: Path | str = "the file"
) -> ModelConfig:
    """Tell head, depth, widths, grids and number of classes from the tensors; the rest is the preset's.

    Args:
        state_dict: Tensors by our names.
        names: Class names, if the file has them.
        path: For messages.

    Raises:
        CheckpointError: They are of no SOLO network.
    """
    head = _infer_head(state_dict)
    backbone = _infer_backbone(state_dict)
    classifier = state_dict.get("mask_head.conv_cls.weight")
    if head is None or backbone is None or classifier is None or classifier.ndim != 4:
        raise CheckpointError(
            f"{path} fits no known model: expected the tensors of SOLO, Decoupled SOLO or Decoupled Light "
            f"SOLO with ResNet-50 or -101; its first are {_describe(state_dict)}."
        )
    count = len(classifier)
    labels = categories.named(names) if names is not None and len(names) == count else None
    base = preset(head, backbone, labels or categories.unnamed(count))
    mask_convs = "mask_convs_x" if head == "decoupled" else "mask_convs"
    depth = _count(state_dict, rf"mask_head\.{mask_convs}\.(\d+)\.conv\.weight")
    try:
        architecture = replace(
            base.architecture,
            num_grids=_infer_grids(state_dict, head),
            stacked_convs=depth,
            head_channels=classifier.shape[1],
            pyramid_channels=_first_size(state_dict, "neck.inner_blocks.0.0.weight"),
        )
        return replace(base, architecture=architecture)
    except ConfigError as error:
        raise CheckpointError(f"{path} fits no known model: {error}") from error


def _infer_head(state_dict: Mapping[str, Tensor]) -> str | None:
    if "mask_head.conv_mask_list.0.weight" in state_dict:
        return "solo"
    if "mask_head.conv_mask_list_x.0.weight" not in state_dict:
        return None
    separate = "mask_head.mask_convs_x.0.conv.weight" in state_dict
    return "decoupled" if separate else "decoupled_light"


def _infer_backbone(state_dict: Mapping[str, Tensor]) -> str | None:
    blocks = tuple(
        _count(state_dict, rf"backbone\.layer{stage}\.(\d+)\.conv1\.weight") for stage in range(1, 5)
    )
    return next((name for name, known in RESNET_BLOCKS.items() if known == blocks), None)


def _infer_grids(state_dict: Mapping[str, Tensor], head: str) -> tuple[int, ...]:
    names = "conv_mask_list" if head == "solo" else "conv_mask_list_x"
    levels = _count(state_dict, rf"mask_head\.{names}\.(\d+)\.weight")
    rows = [_first_size(state_dict, f"mask_head.{names}.{level}.weight") for level in range(levels)]
    return tuple(round(row**0.5) for row in rows) if head == "solo" else tuple(rows)


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many different indices a pattern finds among the names."""
    return len({found.group(1) for name in state_dict if (found := re.fullmatch(pattern, name))})


def _first_size(state_dict: Mapping[str, Tensor], name: str) -> int:
    tensor = state_dict.get(name)
    return len(tensor) if tensor is not None and tensor.ndim else 0


def _describe(tensors: Mapping[str, Tensor]) -> str:
    shown = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(tensors) > _SHOWN else "")


def fit(state_dict: Mapping[str, Tensor], architecture: Architecture, path: Path | str) -> dict[str, Tensor]:
    """Return exactly the tensors of a network, in its order.

    Raises:
        CheckpointError: One is missing, left over, or of another shape or kind.
    """
    expected = build_network(architecture, device="meta").state_dict()
    problems = []
    fitted: dict[str, Tensor] = {}
    for name, slot in expected.items():
        found = state_dict.get(name)
        if found is None and _OPTIONAL.search(name):
            found = torch.zeros((), dtype=torch.int64)
        if found is None:
            problems.append(f"{name} {tuple(slot.shape)} is missing")
        elif found.shape != slot.shape:
            problems.append(f"{name} is {tuple(found.shape)} instead of {tuple(slot.shape)}")
        elif found.is_floating_point() != slot.is_floating_point():
            problems.append(f"{name} is {found.dtype} instead of {slot.dtype}")
        else:
            fitted[name] = found.to(slot.dtype)
    left_over = [name for name in state_dict if name not in expected]
    problems += [f"{name} {tuple(state_dict[name].shape)} is unknown" for name in left_over]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"{path} does not fit {architecture.head} on {architecture.backbone} with "
            f"{architecture.num_classes} classes: {'; '.join(problems[:_SHOWN])}{more}."
        )
    return fitted
