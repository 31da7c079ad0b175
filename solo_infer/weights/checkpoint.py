"""From a checkpoint file of any known layout to a configuration and a state dict that fit each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from solo_infer.config import ModelConfig
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.weights.key_mapping import background_last, is_original_yolact, map_keys
from solo_infer.weights.match_state_dict import SHOWN, fit, infer_config, quoted, with_names
from solo_infer.weights.pickles.reader import OpaqueObject, read_pickled

__all__ = ["Checkpoint", "fit", "infer_config", "read_checkpoint", "read_config"]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
_OVERLAP = 4  # bytes of tensors a file may have for each byte of its own, as some share their data


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
    state_dict, file_names = _in_our_names(tensors, path)
    if config is None:
        config = infer_config(state_dict, names, path, file_names)
    fitted = fit(state_dict, config.architecture, path, file_names)
    return Checkpoint(with_names(config, names), fitted)


def _read_directory(folder: Path, config: ModelConfig | None) -> tuple[ModelConfig, Path]:
    weights = folder / WEIGHTS_NAME
    missing = [item.name for item in (weights, folder / CONFIG_NAME) if not item.is_file()]
    if missing:
        files = sorted(path.name for kind in ("*.pth", "*.pt", "*.safetensors") for path in folder.glob(kind))
        hint = f" It holds {', '.join(files[:SHOWN])}: give the path of the file." if files else ""
        raise CheckpointError(
            f"The directory {folder} lacks {' and '.join(missing)}: expected one written by "
            f"save_pretrained, or the path of a checkpoint file.{hint}"
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
    if not path.is_file():
        raise CheckpointError(f"{path} is no file and no directory: expected a checkpoint.")
    if _is_safetensors(path):
        tensors, names = _read_safetensors(path), None
        if not tensors:
            raise CheckpointError(f"{path} holds no tensors.")
        return tensors, names
    contents = read_pickled(path)
    tensors = _state_dict(contents, path)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    size = path.stat().st_size
    if needed > _OVERLAP * size:
        raise CheckpointError(
            f"{path} has {size} bytes, but tensors of {needed} bytes that share their data."
        )
    meta = contents.get("meta")
    return tensors, _class_names(meta) if isinstance(meta, Mapping) else None


def _state_dict(contents: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of what a pickle holds: a mapping of them, or one that has it as an entry."""
    candidates = [contents]
    if isinstance(contents, Mapping):
        candidates = [contents.get("state_dict"), contents.get("model"), contents]
    for found in candidates:
        if isinstance(found, Mapping):
            tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
    if isinstance(contents, Mapping):
        shown = ", ".join(quoted(str(key)) for key in islice(contents, SHOWN))
        what = f"the entries {shown}" if contents else "an empty one"
    elif isinstance(contents, OpaqueObject):
        what = f"a whole object of class {quoted(contents.name)}: save its state_dict() instead"
    else:
        what = f"a {type(contents).__name__}"
    raise CheckpointError(f"{path} holds no state dict: expected a mapping of tensors, found {what}.")


def _is_safetensors(path: Path) -> bool:
    """Tell by the name, or by the start: the length of a JSON header, then the header."""
    if path.suffix == ".safetensors":
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(9)[8:] == b"{"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    except (SafetensorError, LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
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


def _in_our_names(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by our names, and {our name: name in the file}."""
    file_names: dict[str, str] = {}
    for name, ours in map_keys(tensors).items():
        if ours in file_names:
            both = f"{quoted(file_names[ours])} and {quoted(name)}"
            raise CheckpointError(f"{path} holds a tensor twice: as {both}.")
        file_names[ours] = name
    renamed = {ours: tensors[name] for ours, name in file_names.items()}
    if is_original_yolact(tensors):
        for name, tensor in renamed.items():
            if name.startswith("bbox_head.conv_cls."):
                renamed[name] = background_last(tensor)
    return renamed, file_names
