"""Published files from the cache, the Hub, their publisher's host or the user's mirror.

``fetch`` verifies each file against the SHA-256 and size in the manifest, where these were published.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from solo_infer.errors import CacheError, DownloadError, OfflineError
from solo_infer.runtime import environment
from solo_infer.weights.cache_files import as_cache_error, checksum_error, locked, matches
from solo_infer.weights.download import download_file
from solo_infer.weights.hub import cached_hub_file, fetch_from_hub
from solo_infer.weights.manifest import ManifestEntry, Source

logger = logging.getLogger(__name__)


def fetch(
    entry: ManifestEntry, *, home: Path | None = None, offline: bool | None = None, progress: bool = True
) -> Path:
    """Return the path of a verified local file of a checkpoint.

    Sources are tried in this order: the cache ``<home>/weights/<filename>``, the Hub, URLs, and the user's
    mirror (``SOLO_INFER_MIRROR``, a URL or a directory). Files from the Hub stay in the Hub's cache; all
    others are written to ours. The result for a model that is part of the package is its directory.

    Args:
        entry: Checkpoint to fetch.
        home: Cache directory. Defaults to ``SOLO_INFER_HOME`` or its default.
        offline: Whether to refuse network use. Defaults to the environment's setting.
        progress: Whether to show progress bars on stderr, if stderr is a terminal.

    Raises:
        DownloadError: No source provides the file; the message lists the cause for each source, and how to
            download the file manually.
        OfflineError: In offline mode, the file is not on this machine.
        CacheError: The cache cannot be written.
        ConfigError: ``SOLO_INFER_TIMEOUT`` is not a positive number.
    """
    if entry.folder is not None:
        return entry.folder
    if offline is None:
        offline = environment.is_offline()
    target = cache_path(entry, home)
    problem = _cache_problem(entry, target, offline)
    if not problem:
        return target
    causes = [f"Cache {target}: {problem}."]
    for attempt in _attempts(entry, target, offline, progress):
        try:
            return attempt()
        except DownloadError as error:
            causes.append(str(error))
        except CacheError as error:
            raise CacheError("\n".join([str(error), "Failed before:", *_bullet_points(causes)])) from error
    advice = "\n".join([*_bullet_points(causes), _manual_download_hint(entry, target)])
    if offline:
        raise OfflineError(f"Offline mode is on, and {entry.name} is not on this machine. Sources:\n{advice}")
    raise DownloadError(f"No source provides {entry.name}:\n{advice}")


def hub_file(repo: str, filename: str, revision: str = "main", *, offline: bool | None = None) -> Path:
    """Return the path of any Hub file in the Hub's cache; download it if it is not there.

    Args:
        repo: Repo id (owner/name).
        filename: Path of the file in the repo.
        revision: Branch, tag or commit.
        offline: Whether to refuse network use. Defaults to the environment's setting.

    Raises:
        DownloadError: The Hub does not provide the file.
        OfflineError: In offline mode, the file is not in the Hub's cache.
    """
    if offline is None:
        offline = environment.is_offline()
    source = Source("hub", repo=repo, filename=filename, revision=revision)
    try:
        return fetch_from_hub(source, offline=offline)
    except DownloadError as error:
        if offline:
            raise OfflineError(f"Offline mode is on. {error}") from error
        raise


def cache_path(entry: ManifestEntry, home: Path | None = None) -> Path:
    """Return the path of a checkpoint's file in the cache, which need not exist."""
    return (environment.cache_home() if home is None else home) / "weights" / entry.filename


def is_cached(entry: ManifestEntry, home: Path | None = None) -> bool:
    """Return whether a cache holds a file of the name and size of a checkpoint.

    The content is not verified, and no network is used.

    Raises:
        CacheError: The cache cannot be read.
    """
    if entry.folder is not None:
        return True
    target = cache_path(entry, home)
    with as_cache_error(target):
        if _has_size(target, entry.size):
            return True
    return any(_is_in_hub_cache(source, entry.size) for source in entry.sources if source.kind == "hub")


def bundle(entries: Iterable[ManifestEntry], directory: Path, *, progress: bool = True) -> list[Path]:
    """Copy checkpoints to a directory for a machine without network.

    Each file is verified and copied to ``<directory>/weights/<filename>``. On the other machine, set
    ``SOLO_INFER_HOME`` to the directory. Models that are part of the package are not copied.

    Args:
        entries: Checkpoints to copy.
        directory: Directory to copy to. It is created if it does not exist.
        progress: Whether to show progress bars on stderr, if stderr is a terminal.

    Returns:
        The path of each copy, in the order of ``entries``; for models of the package, their directories.

    Raises:
        DownloadError: No source provides a file.
        OfflineError: A file would have to be downloaded in offline mode.
        CacheError: The directory or the cache cannot be written.
    """
    return [
        entry.folder or _copy_verified(fetch(entry, progress=progress), cache_path(entry, directory), entry)
        for entry in entries
    ]


def _cache_problem(entry: ManifestEntry, target: Path, offline: bool) -> str:
    """Return why the cached file cannot be used, "" if it can; online, also remove a damaged one."""
    with as_cache_error(target):
        if not target.is_file():
            return "there is no such file"
        problem = checksum_error(target, entry.sha256_prefix, entry.size)
    if not problem:
        return ""
    problem = f"the file is damaged ({problem})"
    if offline:
        return problem
    logger.warning("Cache %s: %s; fetching it again.", target, problem)
    try:
        with locked(target), as_cache_error(target):
            if matches(target, entry.sha256_prefix, entry.size):
                return ""  # another process has replaced it in the meantime
            target.unlink(missing_ok=True)
    except CacheError as error:
        problem += f" and cannot be removed: {error}"
    return problem


def _attempts(
    entry: ManifestEntry, target: Path, offline: bool, progress: bool
) -> Iterator[Callable[[], Path]]:
    """Yield a function for each source, in order; it returns the path or raises DownloadError."""
    options: dict[str, Any] = {
        "sha256": entry.sha256_prefix,
        "size": entry.size,
        "offline": offline,
        "progress": progress,
    }
    for source in entry.sources:
        if source.kind == "hub":
            yield partial(fetch_from_hub, source, **options)
    for source in entry.sources:
        if source.kind == "url" and not offline:
            yield partial(download_file, source.url, target, **options)
    if mirror := environment.mirror():
        yield partial(_fetch_from_mirror, mirror, entry, target, offline, progress)


def _fetch_from_mirror(
    mirror: str, entry: ManifestEntry, target: Path, offline: bool, progress: bool
) -> Path:
    name = f"Mirror {mirror} ({environment.MIRROR})"
    directory = environment.mirror_directory(mirror)
    if directory is not None:
        if not (directory / entry.filename).is_file():
            raise DownloadError(f"{name}: there is no file {directory / entry.filename}.")
        return _copy_verified(directory / entry.filename, target, entry)
    if offline:
        raise DownloadError(f"{name}: skipped, because it needs the network.")
    url = f"{mirror.rstrip('/')}/{quote(entry.filename)}"
    try:
        download_file(
            url, target, sha256=entry.sha256_prefix, size=entry.size, progress=progress, offline=False
        )
    except DownloadError as error:
        raise DownloadError(f"{name}: {error}") from error
    if not entry.sha256_prefix:
        logger.warning(
            "%s was downloaded from %s and cannot be verified: no SHA-256 was published.", target, url
        )
    return target


def _copy_verified(source: Path, target: Path, entry: ManifestEntry) -> Path:
    """Copy a file to the target atomically, if it has the content of a checkpoint."""
    staged = target.with_name(f"{target.name}.copy")
    with locked(target), as_cache_error(target):
        if target.is_file() and (
            os.path.samefile(source, target)
            or (entry.sha256_prefix and matches(target, entry.sha256_prefix, entry.size))
        ):
            return target
        try:
            with open(staged, "wb") as copy:
                for block in _blocks(source):
                    copy.write(block)
                copy.flush()
                os.fsync(copy.fileno())
            if problem := checksum_error(staged, entry.sha256_prefix, entry.size):
                raise DownloadError(f"{source}: {problem}.")
            os.replace(staged, target)
        finally:
            staged.unlink(missing_ok=True)
    return target


def _blocks(source: Path) -> Iterator[bytes]:
    # A mirror that cannot be read is the failure of one source, not a CacheError.
    try:
        with open(source, "rb") as file:
            while block := file.read(1 << 20):
                yield block
    except OSError as error:
        raise DownloadError(f"Cannot read {source}: {error}.") from error


def _has_size(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)


def _is_in_hub_cache(source: Source, size: int | None) -> bool:
    try:
        path = cached_hub_file(source)
        return path is not None and _has_size(path, size)
    except (OSError, ValueError) as error:
        logger.debug("Cannot look up %s in the Hub's cache: %s", source, error)
        return False


def _bullet_points(causes: Iterable[str]) -> list[str]:
    return [f"  - {' '.join(cause.split())}" for cause in causes]


def _manual_download_hint(entry: ManifestEntry, target: Path) -> str:
    urls_first = sorted(entry.sources, key=lambda source: source.kind != "url")
    origin = f" from {urls_first[0].address}" if urls_first else ""
    check = f"check that its SHA-256 starts with {entry.sha256_prefix}, " if entry.sha256_prefix else ""
    return (
        f"To download it manually: on a machine with network, download {entry.filename}{origin}, {check}"
        f"and copy it to {target} on this machine, or pass its path to from_pretrained. Alternatively, set "
        f"{environment.MIRROR} to a URL or directory that has {entry.filename}."
    )
