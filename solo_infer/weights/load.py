"""Find and read a checkpoint by model name, path or Hub repo."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection
from pathlib import Path

from solo_infer.config import ModelConfig, find_preset
from solo_infer.config.validation import require_instance
from solo_infer.errors import CheckpointError, ConfigError, DownloadError, OfflineError, UnknownModelError
from solo_infer.runtime.messages import quoted, shortened
from solo_infer.weights import fetch
from solo_infer.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Checkpoint, read_checkpoint, read_config
from solo_infer.weights.manifest import ManifestEntry, find_entry, load_manifest, unknown_model_message

logger = logging.getLogger(__name__)

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_checkpoint(
    name_or_path: str | os.PathLike[str],
    *,
    config: ModelConfig | None = None,
    revision: str = "main",
    offline: bool | None = None,
    families: Collection[str] | None = None,
) -> Checkpoint:
    """Find and read a checkpoint.

    Args:
        name_or_path: Path of a file or directory, name in the manifest, or Hub repo id (owner/name). A path
            that exists takes precedence.
        config: Configuration that the weights must fit. Defaults to that of the directory or published model,
            or is inferred from the tensors of a file.
        revision: Branch, tag or commit of a Hub repo.
        offline: Whether to refuse network use. Defaults to the environment's setting.
        families: Keys of ``solo_infer.config.families.FAMILIES``, one of which the model must have. Published
            models of other families are refused before anything is downloaded. Defaults to all families.

    Raises:
        UnknownModelError: There is no such path, model or repo; the message suggests similar names.
        WeightsError: The weights cannot be downloaded or read, or fit no model.
        ConfigError: The ``config.json`` of a directory or repo is invalid, the model is of another family, or
            an argument has the wrong type.
        OfflineError: A file would have to be downloaded in offline mode.
    """
    try:
        name = os.fsdecode(name_or_path)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"name_or_path={quoted(name_or_path)}: expected a name or a path (str or PathLike)."
        ) from error
    if config is not None:
        require_instance("config", config, ModelConfig)
    require_instance("revision", revision, str)
    path = _existing_path(name)
    if path is None and name in load_manifest():
        checkpoint = _load_published(find_entry(name), config, offline, families)
    elif path is None:
        checkpoint = _load_from_hub(_require_repo_id(name), config, revision, offline)
    else:
        checkpoint = read_checkpoint(path, config)
    require_families(name, checkpoint.config, families)
    return checkpoint


def local_files(name_or_path: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of the files on this machine that ``load_checkpoint`` may read.

    Args:
        name_or_path: As for ``load_checkpoint``. Files in the Hub's cache are not returned.
    """
    name = os.fsdecode(name_or_path)
    path = _existing_path(name)
    if path is not None:
        return [path / CONFIG_NAME, path / WEIGHTS_NAME] if path.is_dir() else [path]
    entry = load_manifest().get(name)
    return [] if entry is None or entry.folder is not None else [fetch.cache_path(entry)]


def published_config(entry: ManifestEntry) -> ModelConfig:
    """Return the configuration of a published model, without its weights."""
    return find_preset(entry.preset) if entry.folder is None else read_config(entry.folder / CONFIG_NAME)


def require_families(name: str, config: ModelConfig, families: Collection[str] | None) -> None:
    """Raise ``ConfigError`` if a model is of none of some families; None stands for all families."""
    architecture = config.architecture
    if families is not None and architecture.family not in families:
        raise ConfigError(
            f"{name} is a {architecture.name} model of the family {architecture.family!r}: expected one of "
            f"{', '.join(families)}. Use load_model, which loads every family."
        )


def _existing_path(name: str) -> Path | None:
    try:
        path = Path(os.path.expanduser(name))
        return path if path.exists() else None
    except PermissionError as error:
        raise CheckpointError(f"{shortened(name)} cannot be read: {error}.") from error
    except (OSError, ValueError) as error:
        logger.debug("%r is not a path: %s", name, error)
        return None


def _require_repo_id(name: str) -> str:
    """Return a name that may be a Hub repo id; explain any other name."""
    if "://" in name or _looks_like_file(name):
        raise CheckpointError(_missing_file_message(name))
    if not _REPO_ID.fullmatch(name):
        raise UnknownModelError(unknown_model_message(name))
    return name


def _looks_like_file(name: str) -> bool:
    return name.endswith((".pth", ".pt", ".safetensors", ".onnx", ".xml")) or name.startswith(
        ("/", "./", "../", "~")
    )


def _missing_file_message(name: str) -> str:
    filename = name.rsplit("/", 1)[-1]
    published = [entry.name for entry in load_manifest().values() if entry.filename == filename]
    hint = f" To load the published file of that name, pass {published[0]!r}." if published else ""
    if "://" in name:
        advice = "expected a name or a path. Download the file and pass its path."
        return f"{shortened(name)} is a URL: {advice}{hint}"
    return f"{shortened(name)} does not exist (current directory: {Path.cwd()}).{hint}"


def _load_published(
    entry: ManifestEntry, config: ModelConfig | None, offline: bool | None, families: Collection[str] | None
) -> Checkpoint:
    config = config or published_config(entry)
    require_families(entry.name, config, families)
    if not entry.commercial_use:
        logger.warning("The weights %s are licensed: %s.", entry.name, entry.license)
    return read_checkpoint(fetch.fetch(entry, offline=offline), config)


def _load_from_hub(repo: str, config: ModelConfig | None, revision: str, offline: bool | None) -> Checkpoint:
    """Load the files that ``save_pretrained`` wrote from a Hub repo."""
    entries = load_manifest().values()
    published = [entry.name for entry in entries if any(source.repo == repo for source in entry.sources)]
    if published:
        count = "several models" if len(published) > 1 else "a published model"
        raise UnknownModelError(f"{repo} holds {count}: pass its name instead, {', '.join(published)}.")
    config_path = _hub_file(repo, CONFIG_NAME, revision, offline)
    # Take both files from one commit, even if the branch moves between the two requests.
    commit = config_path.parent.name
    _hub_file(repo, WEIGHTS_NAME, commit if _COMMIT.fullmatch(commit) else revision, offline)
    return read_checkpoint(config_path.parent, config)


def _hub_file(repo: str, filename: str, revision: str, offline: bool | None) -> Path:
    try:
        return fetch.hub_file(repo, filename, revision, offline=offline)
    except (DownloadError, OfflineError) as error:
        raise type(error)(
            f"{quoted(repo, 100)} is not a file or directory, and the Hub repo of that name has no "
            f"{filename}: {error}"
        ) from error
