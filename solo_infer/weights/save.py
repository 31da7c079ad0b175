"""Write a checkpoint: ``config.json`` and ``model.safetensors`` in a directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from solo_infer.config import ModelConfig
from solo_infer.errors import CacheError
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME
from solo_infer.weights.match_state_dict import unshare_storage
from solo_infer.weights.saved_pair import files_of_pair

_HUB_FILES = "blobs"  # folder of the Hub's cache with the files that its snapshots refer to


def save_checkpoint(config: ModelConfig, state_dict: Mapping[str, Tensor], folder: Path) -> Path:
    """Write ``config.json`` and ``model.safetensors``: both, or neither if anything fails.

    Args:
        config: Configuration of the model.
        state_dict: Weights of its network.
        folder: Directory to write to. It is created if it does not exist.

    Returns:
        The directory, with "~" expanded.

    Raises:
        CacheError: The directory cannot be written, or is part of the Hub's cache.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(os.path.expanduser(folder))
    _refuse_hub_cache(folder)
    tensors = unshare_storage({name: tensor.cpu() for name, tensor in state_dict.items()})
    text, metadata = files_of_pair(config, tensors)

    def write_both(config_file: Path) -> None:
        config_file.write_text(text, encoding="utf-8")
        write_whole(folder / WEIGHTS_NAME, lambda staged: save_file(tensors, staged, metadata))

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG_NAME, write_both)
    except (OSError, ValueError, SafetensorError) as error:
        raise CacheError(f"{folder} cannot be written: {error}. Choose another directory.") from error
    return folder


def _refuse_hub_cache(folder: Path) -> None:
    """Raise ``CacheError`` if the files of a directory are links to files that the Hub's cache shares."""
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        path = folder / name
        if path.is_symlink() and Path(os.path.realpath(path)).parent.name == _HUB_FILES:
            raise CacheError(
                f"{folder} is part of the cache of the Hugging Face Hub, whose files other programs share. "
                "Choose another directory."
            )
