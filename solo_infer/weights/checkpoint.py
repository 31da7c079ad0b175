"""Read checkpoint files of every known layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solo_infer.config import ModelConfig
from solo_infer.config.model import WEIGHTS_ID
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.models.base import SegmentationNetwork
from solo_infer.runtime.messages import shortened
from solo_infer.runtime.neutral_state import neutral_state
from solo_infer.runtime.text_files import read_json
from solo_infer.weights.infer_config import infer_config, with_class_names
from solo_infer.weights.match_state_dict import MAX_LISTED, build_empty_network, match_state_dict
from solo_infer.weights.named_tensors import quoted_name, translate
from solo_infer.weights.pickles.reader import read_pickled
from solo_infer.weights.pickles.unpickler import OpaqueObject
from solo_infer.weights.saved_pair import MAX_CONFIG_BYTES, config_of_weights

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_MAX_EXPANSION = 4  # bytes of tensors per byte of their file; more than 1 where tensors share data


@dataclass(frozen=True)
class Checkpoint:
    """A configuration and its network with the loaded weights.

    Attributes:
        config: Architecture, preprocessing, thresholds and categories.
        network: Network of ``config.architecture`` on the CPU, in eval mode.
    """

    config: ModelConfig
    network: SegmentationNetwork

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """Weights by our names."""
        return dict(self.network.state_dict())


@neutral_state()
def read_checkpoint(path: Path, config: ModelConfig | None = None) -> Checkpoint:
    """Read a checkpoint of mmdet, of the original implementations or of this library.

    Args:
        path: A ``.pth``, ``.pt`` or ``.safetensors`` file, or a directory that ``save_pretrained`` wrote.
        config: Configuration that the weights must fit. Defaults to the directory's, or is inferred from the
            tensors of a file.

    Raises:
        CheckpointError: The file cannot be read, holds no state dict or fits no known model; the message
            names the first tensors that do not fit.
        ConfigError: The ``config.json`` of the directory is invalid.
    """
    config_id: object = None
    is_pair = path.is_dir() and config is None
    if path.is_dir():
        path = _weights_of_directory(path)
    if is_pair:  # read first, because a save replaces the weights first
        config, config_id = _read_config(path.with_name(CONFIG_NAME))
    file_tensors, class_names, metadata = _read_file(path)
    if is_pair:
        config = config_of_weights(metadata, config_id, path) or config
    tensors = translate(file_tensors, path)
    if config is None:
        config = infer_config(tensors)
    network = build_empty_network(config.architecture, path)
    network.load_state_dict(match_state_dict(tensors, network), assign=True)
    return Checkpoint(with_class_names(config, class_names), network)


def read_config(path: Path) -> ModelConfig:
    """Read a ``config.json``.

    Raises:
        ConfigError: The file cannot be read, or ``save_pretrained`` did not write it.
    """
    return _read_config(path)[0]


def _read_config(path: Path) -> tuple[ModelConfig, object]:
    """Return the configuration in a ``config.json``, and the identifier of its weights, None without one."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"the file has more than {MAX_CONFIG_BYTES} bytes; expected a model's config.")
        values = read_json(path)
        if not isinstance(values, dict):
            raise ConfigError(f"expected a JSON object, got {type(values).__name__}.")
        return ModelConfig.from_dict(values), values.get(WEIGHTS_ID)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {shortened(error, 1000)}") from error


def _weights_of_directory(folder: Path) -> Path:
    weights = folder / WEIGHTS_NAME
    missing = [item.name for item in (weights, folder / CONFIG_NAME) if not item.is_file()]
    if missing:
        patterns = ("*.pth", "*.pt", "*.safetensors")
        files = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
        hint = f" It holds {', '.join(files[:MAX_LISTED])}: give the path of the file." if files else ""
        raise CheckpointError(
            f"The directory {folder} lacks {' and '.join(missing)}: expected one written by "
            f"save_pretrained, or the path of a checkpoint file.{hint}"
        )
    return weights


def _read_file(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None, dict[str, str]]:
    """Return the tensors of a file by their names there, its class names (None without), and its metadata."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, or is not a file: expected a checkpoint.")
    if _is_safetensors(path):
        tensors, metadata = _read_safetensors(path)
        if not tensors:
            raise CheckpointError(f"{path} holds no tensors.")
        return tensors, None, metadata
    contents = read_pickled(path)
    tensors = _find_state_dict(contents, path)
    tensor_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    file_bytes = path.stat().st_size
    if tensor_bytes > _MAX_EXPANSION * file_bytes:
        raise CheckpointError(
            f"{path} has {file_bytes} bytes, but tensors of {tensor_bytes} bytes that share their data."
        )
    meta = contents.get("meta")
    return tensors, _class_names(meta) if isinstance(meta, Mapping) else None, {}


def _find_state_dict(contents: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors in the contents of a pickle: the mapping itself, or one of its entries."""
    candidates = [contents]
    if isinstance(contents, Mapping):
        candidates = [contents.get("state_dict"), contents.get("model"), contents]
    for candidate in candidates:
        if isinstance(candidate, Mapping):
            tensors = {str(name): value for name, value in candidate.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
    description = _describe_contents(contents)
    raise CheckpointError(f"{path} holds no state dict: expected a mapping of tensors, found {description}.")


def _describe_contents(contents: Any) -> str:
    if isinstance(contents, Mapping):
        keys = ", ".join(quoted_name(str(key)) for key in islice(contents, MAX_LISTED))
        return f"the entries {keys}" if contents else "an empty one"
    if isinstance(contents, OpaqueObject):
        return f"an object of the class {quoted_name(contents.name)}; save its state_dict() instead"
    return f"a value of the type {type(contents).__name__}"


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is named, or starts, like safetensors: the length of a JSON header, then "{"."""
    if path.suffix == ".safetensors":
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(9)[8:] == b"{"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of one state of a file that a save may replace meanwhile."""
    from safetensors import SafetensorError, safe_open

    try:
        # The library creates tensors on the default device.
        with torch.device("cpu"), safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    except (SafetensorError, LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        cause = shortened(error)
        raise CheckpointError(f"{path} is damaged, or not a safetensors file: {cause}.") from error


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names in mmdet's meta: "CLASSES" (2.x), or "classes" in "dataset_meta" (3.x)."""
    dataset = meta.get("dataset_meta")
    for mapping in (meta, dataset) if isinstance(dataset, Mapping) else (meta,):
        for key in ("CLASSES", "classes"):
            names = mapping.get(key)
            if isinstance(names, str):
                return (names,)
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None
