"""From what users name (a published model, a file, a directory, a Hub repo) to a checkpoint; and back."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from solo_infer.config import ModelConfig, find_preset
from solo_infer.errors import CacheError, CheckpointError, DownloadError, OfflineError, UnknownModelError
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.weights import fetch
from solo_infer.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Checkpoint, read_checkpoint, read_config
from solo_infer.weights.manifest import (
    ManifestEntry,
    find_entry,
    load_manifest,
    unknown_model_message,
)
from solo_infer.weights.match_state_dict import unshare_storage

logger = logging.getLogger(__name__)

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_checkpoint(
    name_or_path: str | os.PathLike[str],
    *,
    config: ModelConfig | None = None,
    revision: str = "main",
    offline: bool | None = None,
    check: Callable[[ModelConfig], None] | None = None,
) -> Checkpoint:
    """Find and read a checkpoint.

    Args:
        name_or_path: A file or directory, a name of the manifest, or a Hub repo id (owner/name).
        config: What the weights must fit; else the directory's or the manifest's, else inferred.
        revision: Branch, tag or commit of a Hub repo id.
        offline: Never touch the network; if None the environment decides.
        check: Called with the configuration of a published model, before anything is downloaded; raises if
            the model will not do.

    Raises:
        UnknownModelError: It is none of these; the message suggests similar names.
        WeightsError: It cannot be had, read or fitted.
        ConfigError: The ``config.json`` of a directory or repo is wrong.
        OfflineError: It would have to be downloaded, but must not.
    """
    name = os.fsdecode(name_or_path)
    path = _existing(name)
    if path is not None:
        return read_checkpoint(path, config)
    if name in load_manifest():
        entry = find_entry(name)
        if check is not None:
            check(config or published_config(entry))
        return _load_published(entry, config, offline)
    if "://" in name or _looks_like_file(name):
        raise CheckpointError(_no_such_file(name))
    if _REPO_ID.fullmatch(name):
        return _load_from_hub(name, config, revision, offline)
    raise UnknownModelError(unknown_model_message(name))


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except PermissionError as error:
        raise CheckpointError(f"{name} cannot be read: {error}.") from error
    except (OSError, RuntimeError, ValueError) as error:
        logger.debug("%r is no path: %s", name, error)
        return None


def _looks_like_file(name: str) -> bool:
    return name.endswith((".pth", ".pt", ".safetensors")) or name.startswith(("/", "./", "../", "~"))


def _no_such_file(name: str) -> str:
    filename = name.rsplit("/", 1)[-1]
    published = [entry.name for entry in load_manifest().values() if entry.filename == filename]
    hint = f" For the published file of that name ask for {published[0]!r}." if published else ""
    if "://" in name:
        return f"{name} is an address: expected a name or a path. Download it, then give its path.{hint}"
    return f"{name} does not exist (current directory: {Path.cwd()}).{hint}"


def _load_published(entry: ManifestEntry, config: ModelConfig | None, offline: bool | None) -> Checkpoint:
    if not entry.commercial_use:
        logger.warning("The weights %s are licensed: %s.", entry.name, entry.license)
    path = fetch.fetch(entry, offline=offline)
    return read_checkpoint(path, config or published_config(entry))


def published_config(entry: ManifestEntry) -> ModelConfig:
    """Return the configuration of a model of the manifest, which need not be on this machine."""
    return find_preset(entry.preset) if entry.folder is None else read_config(entry.folder / CONFIG_NAME)


def _load_from_hub(repo: str, config: ModelConfig | None, revision: str, offline: bool | None) -> Checkpoint:
    """Read what ``save_pretrained`` wrote from a Hub repo."""
    entries = load_manifest().values()
    published = [entry.name for entry in entries if any(source.repo == repo for source in entry.sources)]
    if published:
        names = ", ".join(published)
        held = "several models" if len(published) > 1 else "a published model"
        raise UnknownModelError(f"{repo} holds {held}: ask for one by its own name, {names}.")
    config_path = _hub_file(repo, CONFIG_NAME, revision, offline)
    # Both files of one commit, even if the branch moves on between the two requests.
    commit = config_path.parent.name
    _hub_file(repo, WEIGHTS_NAME, commit if _COMMIT.fullmatch(commit) else revision, offline)
    return read_checkpoint(config_path.parent, config)


def _hub_file(repo: str, filename: str, revision: str, offline: bool | None) -> Path:
    try:
        return fetch.hub_file(repo, filename, revision, offline=offline)
    except (DownloadError, OfflineError) as error:
        raise type(error)(
            f"{repo!r} is no file or directory here, and as a Hub repo it gives no {filename}: {error}"
        ) from error


def save_checkpoint(config: ModelConfig, state_dict: Mapping[str, Tensor], folder: Path) -> Path:
    """Write ``config.json`` and ``model.safetensors``, both or, if anything fails, neither.

    Raises:
        CacheError: The directory cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = folder.expanduser()
    tensors = unshare_storage({name: tensor.cpu() for name, tensor in state_dict.items()})
    text = json.dumps(config.to_dict(), indent=2) + "\n"

    def write_both(config_file: Path) -> None:
        config_file.write_text(text, encoding="utf-8")

        def write_weights(weights_file: Path) -> None:
            save_file(tensors, weights_file, {"format": "pt"})
            # Some versions of safetensors let only the owner read what they write.
            weights_file.chmod(stat.S_IMODE(config_file.stat().st_mode))

        write_whole(folder / WEIGHTS_NAME, write_weights)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG_NAME, write_both)
    except (OSError, SafetensorError) as error:
        raise CacheError(f"{folder} cannot be written: {error}. Choose another directory.") from error
    return folder
